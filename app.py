"""Command: serve the Gradio page. `python app.py --weights FOLDER_OR_REPO --port 7860`"""

import argparse
import atexit
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec

if not os.environ.get("GRADIO_TEMP_DIR"):  # Gradio's default folder is shared by all users of the machine
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="digits-")
    atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
if not find_spec("socksio"):  # without it, importing Gradio fails if the environment sets a SOCKS proxy
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        if os.environ[name].startswith("socks"):
            del os.environ[name]
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # events kept in memory
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))  # events between two summaries; the default is 1

try:
    import spaces  # ZeroGPU; must be imported before torch

    on_gpu = spaces.GPU(duration=20)  # seconds per call, at most
except ImportError:

    def on_gpu(function):
        return function


import gradio as gr
from gradio.context import LocalContext
from starlette.middleware import Middleware
from starlette.responses import FileResponse
from starlette.routing import Route

from model import check, weights
from model.common import add_shared, sentence_on_error
from model.device import pick
from model.page import guard
from model.page import html as pictures
from model.page.studio import MAX_SHEET, NOISE, OTHER_SEED, Studio, work

# Calls of one kind share a concurrency limit; running calls take turns on the device.
DIGIT, ROW, SHEET = (
    {"concurrency_id": kind, "concurrency_limit": limit} for kind, limit in (("digit", 1), ("row", 2), ("sheet", 1))
)

FONT = ("system-ui", "sans-serif")
THEME = gr.themes.Default(primary_hue="indigo", font=FONT, font_mono=("ui-monospace", "monospace")).set(
    body_text_color_subdued="*neutral_500",  # Gradio's default has too little contrast, as does primary_500
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
)
LAUNCH = {
    "head": pictures.head(),
    "theme": THEME,
    "ssr_mode": False,
    "state_session_capacity": 100,  # sessions; Gradio copies its configuration, some 100 kB, for each
    "footer_links": ["api"],
    "run_history": False,
    "enable_monitoring": False,
    "mcp_server": find_spec("mcp") is not None,  # serve the endpoints as MCP tools if gradio[mcp] is installed
}


def serve(page: gr.Blocks, **options):
    """Launch the page behind its guard, with the options and the result of `gr.Blocks.launch`."""
    guard.trim()
    pictures.preview(gr.routes.templates.env)
    picture = Route(pictures.PREVIEW, lambda _: FileResponse(pictures.HERE / "preview.png"))
    added = {"middleware": [Middleware(guard.Guard, work=work)], "routes": [picture]}
    return page.launch(**LAUNCH, **options, app_kwargs=added)


def listened() -> bool:
    """Whether a client still waits for the current call; Gradio marks the events of clients that left."""
    page, event = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    event = page and page._queue.event_ids_to_events.get(event)
    return not event or event.alive


def endpoint(function: Callable) -> Callable:
    """Wrap an API function so that its ValueErrors reach the caller as one sentence."""

    @wraps(function)
    def checked(*values, **named):
        try:
            return function(*values, **named)
        except ValueError as error:
            raise gr.Error(f"{error}.", print_exception=False) from None

    return checked


def form(name: str, content: str, value: list) -> tuple[gr.HTML, gr.HTML]:
    """Two components: a form from html.py, whose value is the list of its field values, and its error message."""
    made = gr.HTML(
        value,
        html_template="${content}",  # not `content` itself, which Gradio would parse as a template
        content=content,
        js_on_load="digits.form(element, props, trigger, watch, 'visit')",
        apply_default_css=False,
        elem_id=name,
        elem_classes="form",
    )
    problem = gr.HTML(html_template="", js_on_load=f"digits.problem(props, watch, '{name}')", elem_classes="problem-of")
    return made, problem


def picture(tag: str, value: dict | None = None, about: str = "") -> gr.HTML:
    """A component for a custom element of the scripts, which displays the component's value.

    `about` lists the fields of the subject that the picture depends on. The component then fires `draw` when it is in
    view and one of them has changed.
    """
    event = f", 'draw', '{about}'" if about else ""
    return gr.HTML(
        value,
        html_template=tag,
        js_on_load=f"digits.picture(element, props, trigger, watch{event})",
        apply_default_css=False,
        elem_classes="picture",
    )


def build(studio: Studio, static_page: str | None = None) -> gr.Blocks:
    """Build the four tabs and the typed endpoints; `static_page` is the URL of an exported page to link to."""
    start = list(studio.start.values())
    with gr.Blocks(title=pictures.TITLE) as page:
        gr.HTML(pictures.title(), elem_id="title")
        with gr.Row(elem_id="layout"):
            with gr.Column(elem_id="side"):
                panel, panel_problem = form(
                    "panel", pictures.panel(studio.classes, studio.start, bool(studio.opening)), start
                )
                busy = gr.HTML(elem_id="busy", js_on_load="digits.busy(element)")  # the position in the queue
            with gr.Column(elem_id="stage"), gr.Tabs() as tabs:
                with gr.Tab("Digit", id="digit"):
                    gr.HTML(pictures.digit_title(), apply_default_css=False)
                    digit_out = picture('<digit-film id="film"></digit-film>', studio.opening)
                with gr.Tab("Why it works", id="why"):
                    picture("<digit-arrows></digit-arrows>")
                    paths_out = picture("<digit-paths></digit-paths>", about="digit seed guidance")
                    styles_out = picture("<digit-styles></digit-styles>", about="seed steps guidance")
                    steps_words = pictures.steps_of(studio.network.kind, studio.teacher is not None)
                    gr.HTML(pictures.section(*steps_words), apply_default_css=False)
                    steps_out = picture("<digit-steps></digit-steps>", about="digit seed guidance")
                with gr.Tab("Numbers", id="numbers"):
                    with gr.Column(visible=studio.can_write_numbers):
                        gr.HTML(pictures.section(*pictures.NUMBER), apply_default_css=False)
                        number, number_problem = form("write", pictures.number_form(), [""])
                        row_out = picture('<digit-row id="row"></digit-row>', about="seed steps guidance")
                    gr.HTML(pictures.section(*pictures.SHEET), apply_default_css=False)
                    asked = [",".join(studio.classes[:10]), 100]
                    sheet, sheet_problem = form("sheet", pictures.sheet_form(studio.classes, MAX_SHEET), asked)
                    sheet_out = picture('<digit-sheet id="sheet-cells"></digit-sheet>')
                with gr.Tab("Experiments", id="experiments"):
                    gr.HTML(pictures.section(*pictures.CHANGE), apply_default_css=False)
                    other = next((name for name in studio.classes[8::-1] if name != start[0]), start[0])
                    change, change_problem = form("change", pictures.change_form(studio.classes, other), [other])
                    change_out = picture('<digit-row id="changes"></digit-row>', about="digit seed steps guidance")
                    gr.HTML(pictures.section(*pictures.MORPH), apply_default_css=False)
                    morph, morph_problem = form("morph", pictures.morph_form(OTHER_SEED), [OTHER_SEED])
                    morph_out = picture('<digit-row id="morphs"></digit-row>', about="digit seed steps guidance")
                    gr.HTML(pictures.section(*pictures.SKETCH), apply_default_css=False)
                    sketch = picture('<digit-sketch id="paper"></digit-sketch>', about="sketch")
                    noise, noise_problem = form("finish", pictures.noise_form(NOISE), [NOISE])
                    finished_out = picture('<digit-film id="finished"></digit-film>', about="digit seed steps guidance")
        gr.HTML(pictures.footer(studio.about, static_page), elem_id="about", apply_default_css=False)

        private = {"api_visibility": "private"}
        waiting = {"show_progress": "full", "show_progress_on": busy}
        quiet = {"show_progress": "hidden"}
        last = {"trigger_mode": "always_last"}
        digit_shown, row_shown, sheet_shown = (
            [digit_out, panel_problem],
            [row_out, number_problem],
            [sheet_out, sheet_problem],
        )
        visited = [panel, *digit_shown, number, *row_shown]

        def visit(request: gr.Request):
            return studio.visit(dict(request.query_params))

        panel.visit(visit, None, visited, **private, **waiting, **DIGIT)
        panel.select(None, None, tabs, js="() => ({selected: digits.tab, __type__: 'update'})", **private)
        rows = [
            (studio.number_tab, [number.submit], [number], row_out, number_problem),
            (studio.change_tab, [change.input], [change], change_out, change_problem),
            (studio.morph_tab, [morph.input], [morph], morph_out, morph_problem),
            (studio.sketch_tab, [sketch.draw, noise.input], [sketch, noise], finished_out, noise_problem),
        ]
        for draw, events, fields, out, problem in rows:
            for event in (*events, out.draw):
                event(draw, [*fields, panel], [out, problem], **last, **private, **waiting, **ROW)
        scenery = ((paths_out, studio.paths_tab), (styles_out, studio.styles_tab), (steps_out, studio.steps_tab))
        anew = {"trigger_mode": "multiple"}  # the browser may not know yet that the last call was cancelled
        shown = [out.draw(draw, panel, out, **anew, **private, **quiet, **ROW) for out, draw in scenery]
        panel.input(None, cancels=shown, **private)  # before drawing the digit, which the browser would wait for
        panel.input(studio.digit_tab, panel, digit_shown, **last, **private, **waiting, **DIGIT)
        run = sheet.submit(studio.sheet_tab, [sheet, panel], sheet_shown, **anew, **private, **waiting, **SHEET)
        sheet.stop(None, cancels=run, **private)

        gr.api(endpoint(studio.draw_api), api_name="draw", **DIGIT)
        gr.api(endpoint(studio.steps_api), api_name="steps", **ROW)
        gr.api(endpoint(studio.sheet_api), api_name="sheet", **SHEET)
        gr.api(endpoint(studio.change_api), api_name="change_class", **ROW)
        gr.api(endpoint(studio.morph_api), api_name="morph", **ROW)
        gr.api(endpoint(studio.finish_api), api_name="finish", **DIGIT)
    return page.queue(max_size=guard.PLACES, api_open=False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python app.py", description="Serve the web page that draws digits.")
    add_shared(parser, "--weights", "--device")
    parser.add_argument("--port", type=int, help="the port to serve on (default: the first free one from 7860)")
    parser.add_argument("--host", help="the address to listen on; 0.0.0.0 is all interfaces (default: 127.0.0.1)")
    parser.add_argument("--root-path", help="the path or full URL under which a reverse proxy serves the page")
    parser.add_argument("--share", action="store_true", help="also serve the page at a public Gradio URL for a week")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="require this user name and password")
    parser.add_argument(
        "--static-page",
        metavar="URL",
        default=os.environ.get("STATIC_PAGE"),
        help="link to the exported static page at this URL (default: the variable STATIC_PAGE)",
    )
    parser.add_argument(
        "--strict-weights", action="store_true", help="refuse to start when the weights cannot be loaded"
    )
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        if options.port is not None:
            check.whole("port", options.port, 1, 65535)
        user, colon, password = (options.auth or "").partition(":")
        if options.auth and not (user and password):
            raise ValueError("--auth must be USER:PASSWORD, with neither part empty")
        if options.static_page and not re.fullmatch(r"https?://\S+", options.static_page):
            raise ValueError(f"--static-page must begin with https:// or http://, not {options.static_page}")
        load = weights.load if options.strict_weights else weights.load_or_bundled
        page = build(Studio(load(options.weights, pick(options.device)), on_gpu, listened), options.static_page)
        # Gradio checks at startup that its own page responds; that request must bypass any proxy.
        os.environ["no_proxy"] = f"{os.environ.get('no_proxy', '')},127.0.0.1,localhost" if options.share else "*"
        try:
            serve(
                page,
                server_name=options.host,
                server_port=options.port,
                root_path=options.root_path,
                share=options.share or None,  # None leaves it to GRADIO_SHARE
                auth=(user, password) if colon else None,
            )
        except OSError as error:
            if "empty port" not in str(error):
                raise
            asked = f"port {options.port} of " if options.port else ""
            raise OSError(
                f"cannot listen on {asked}{options.host or 'this machine'}: already in use or not available; "
                "try another --port or --host"
            ) from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
