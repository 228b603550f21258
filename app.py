"""Command: the page, controls in and pictures out. `python app.py --weights FOLDER_OR_REPO --port 7860`"""

import argparse
import atexit
import html
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qsl

if not os.environ.get("GRADIO_TEMP_DIR"):  # Gradio's own is shared by all users of a machine
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="digits-")
    atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
if not find_spec("socksio"):  # without it Gradio cannot even be imported where a SOCKS proxy is named
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        if os.environ[name].startswith("socks"):
            del os.environ[name]
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # of which it keeps a record
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))  # and makes a table of them after every call

try:
    import spaces  # ZeroGPU; must be imported before torch

    on_gpu = spaces.GPU(duration=20)  # at most so many seconds a drawing
except ImportError:

    def on_gpu(function):
        return function


import gradio as gr
import torch
from gradio.context import LocalContext
from starlette.middleware import Middleware

from model import check, sampling, weights
from model.common import add_shared, masked, sentence_on_error
from model.device import pick
from model.images import CLASSES, columns
from model.page import guard
from model.page import html as pictures

PAGE = Path(pictures.__file__).parent  # with page.css and page.js
START = {"digit": "7", "seed": 67}  # what the page opens with; steps and guidance are those of the weights
MAX_SHEET = 400  # digits
ONE_AT_A_TIME = {"concurrency_id": "device", "concurrency_limit": 1}

FONT = ("system-ui", "sans-serif")
THEME = gr.themes.Default(primary_hue="indigo", font=FONT, font_mono=("ui-monospace", "monospace")).set(
    body_text_color_subdued="*neutral_500",  # Gradio's own has too little contrast, as has primary_500
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
)
LAUNCH = {
    "css_paths": PAGE / "page.css",
    "head": f"<script>{(PAGE / 'page.js').read_text(encoding='utf-8')}</script>",
    "theme": THEME,
    "ssr_mode": False,
    "state_session_capacity": 100,  # sessions; Gradio copies its configuration, some 100 kB, for each
    "footer_links": ["api"],
    "run_history": False,
    "enable_monitoring": False,
    "mcp_server": find_spec("mcp") is not None,  # the endpoints as tools, with gradio[mcp] installed
}


def serve(page: gr.Blocks, **options):
    """Launch the page behind its guard; `options` and what it returns are those of `gr.Blocks.launch`."""
    guard.trim()
    return page.launch(**LAUNCH, **options, app_kwargs={"middleware": [Middleware(guard.Guard, work=work)]})


def work(function: str, values: dict) -> int:
    """Steps of single digits that a call takes; only sheets count, and a foreign value counts as the largest."""
    if not function.startswith("sheet"):
        return 0
    asked, most = (values.get("count"), values.get("steps")), (MAX_SHEET, sampling.MAX_STEPS)
    sizes = [
        value if type(value) is int and 0 < value < high else high for value, high in zip(asked, most, strict=True)
    ]
    return sizes[0] * sizes[1]


def listened() -> bool:
    """Whether somebody still waits for the call that runs here; Gradio marks the event of a client that left."""
    page, event = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    event = page and page._queue.event_ids_to_events.get(event)
    return not event or event.alive


def while_listened(chunks: Iterator) -> Iterator:
    """The chunks of a drawing; raises ValueError after the first one that nobody waits for."""
    for chunk in chunks:
        yield chunk
        if not listened():
            raise ValueError("nobody waits for this drawing any more")


def from_link(query: dict, start: dict, classes: tuple = CLASSES) -> dict:
    """The controls that a link asks for: each value clamped to its range, and the default for an invalid one."""
    values = dict(start)
    if query.get("digit") in classes:
        values["digit"] = query["digit"]
    ranges = {"seed": (int, 0, sampling.MAX_SEED), "steps": (int, 1, sampling.MAX_STEPS)}
    ranges["guidance"] = (float, 0, sampling.MAX_GUIDANCE)
    for name, (kind, low, high) in ranges.items():
        try:
            asked = kind(query[name])
        except (KeyError, ValueError):
            continue
        if asked == asked:  # not NaN
            values[name] = min(max(asked, low), high)
    return values


def new_seed() -> int:
    return random.randint(0, 9999)  # short enough to tell a friend


class Studio:
    """What the tabs and the API call: small checked functions of plain values over `model/`."""

    def __init__(self, loaded: weights.Weights):
        self.network, self.sampling, self.classes = loaded.network, loaded.sampling, loaded.network.class_names
        count = sum(parameter.numel() for parameter in self.network.parameters())
        device = next(self.network.parameters()).device.type
        source, at, commit = masked(loaded.source).partition("@")
        self.about = f"{count / 1e6:.2f} M parameters · weights: {source[:60]}{at}{commit[:12]} · {device}"
        self.about = "<br>".join(html.escape(line) for line in (self.about, loaded.notice) if line)
        self.start = {**START, "steps": self.sampling.steps, "guidance": self.sampling.guidance}
        self.can_write_numbers = self.classes[:10] == CLASSES[:10]
        if START["digit"] not in self.classes:
            self.start["digit"] = self.classes[0]
        self.film, self.columns, self.digits = map(on_gpu, (self.film, self.columns, self.digits))

    # ---- what runs on the GPU, once every value is checked

    def film(self, label, seed, config):
        return sampling.draw_film(self.network, torch.tensor([label]), [seed], config)

    def columns(self, labels, seed, config):
        yield from sampling.compare_steps(self.network, labels, seed, config)

    def digits(self, labels, seed, config):
        yield from sampling.draw(self.network, labels, seed, config)

    # ---- one checked call each; ValueError for a bad value

    def draw_one(self, digit, seed, config):
        return self.film(sampling.label(digit, self.classes), sampling.check_seed(seed), config)

    def compare_steps(self, digit, seed, config):
        labels = range(len(self.classes[:10])) if digit == "all" else [sampling.label(digit, self.classes)]
        yield from while_listened(self.columns(torch.tensor(labels), sampling.check_seed(seed), config))

    def labels(self, classes, count):
        return sampling.parse_labels(classes, check.whole("count", count, 1, MAX_SHEET), names=self.classes)

    def draw_sheet(self, labels, seed, config):
        yield from while_listened(self.digits(labels, sampling.check_seed(seed, len(labels)), config))

    # ---- the API

    def draw_api(
        self, digit: str, seed: int = 42, steps: int | None = None, guidance: float | None = None
    ) -> list[list[int]]:
        """One digit ("0" to "9", "black", "white") from the noise of a seed: 28 rows of 28 pixels, 0 black to 255
        white."""
        with sentences():
            return self.draw_one(digit, seed, self.sampling.updated(steps=steps, guidance=guidance)).digits[0].tolist()

    def steps_api(self, digit: str = "all", seed: int = 42, guidance: float | None = None) -> dict[str, list]:
        """One class, or "all" ten digits, from the same noise at 1, 2, 4, 8, 16 and 32 steps: images by number of
        steps."""
        with sentences():
            columns = self.compare_steps(digit, seed, self.sampling.updated(guidance=guidance))
            return {str(count): pixels.tolist() for count, pixels, _ in columns}

    def sheet_api(
        self,
        classes: str = "0-9",
        count: int = 100,
        seed: int = 42,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> dict[str, list]:
        """Up to 400 digits, `classes` in turn ("7", "0-9", "3,5,black"): images and labels, digit i from the noise of
        seed + i."""
        with sentences():
            labels = self.labels(classes, count)
            pixels = torch.cat(
                list(self.draw_sheet(labels, seed, self.sampling.updated(steps=steps, guidance=guidance)))
            )
            return {"images": pixels.tolist(), "labels": labels.tolist()}

    # ---- the tabs

    def open_link(self, request: gr.Request) -> list:
        """The controls of a page opened with `?digit=7&seed=42&steps=8&guidance=1.5`."""
        return list(from_link(dict(request.query_params), self.start, self.classes).values())

    def open_cell(self, event: gr.EventData) -> list:
        """The Draw tab, with the controls that the link of a cell asks for."""
        query = dict(parse_qsl(str(event.link).lstrip("?")))
        return [gr.Tabs(selected="draw"), *from_link(query, self.start, self.classes).values()]

    def draw_tab(self, digit, seed, steps, guidance, with_velocity):
        """The digit, its film, and the status line; for a bad value the status line says so and the pictures stay."""
        try:
            config = replace(self.sampling, steps=steps, guidance=guidance)
            film = self.draw_one(digit, seed, config)
        except ValueError as error:
            return gr.skip(), gr.skip(), html.escape(f"{error}.")
        status = f"{pictures.in_steps(config.steps)[3:]} in {film.milliseconds:.0f} ms<br>{self.about}"
        return pictures.digit_html(film, digit, seed, config), pictures.film_html(film, with_velocity), status

    def steps_tab(self, digit, seed, guidance):
        """The columns of ever more steps, each shown as soon as it is drawn."""
        try:
            columns = []
            for column in self.compare_steps(digit, seed, replace(self.sampling, guidance=guidance)):
                columns.append(column)
                yield pictures.steps_html(columns, self.classes[:10] if digit == "all" else (digit,))
        except ValueError as error:
            yield f"<p>{html.escape(str(error))}.</p>"

    def sheet_tab(self, classes, number, count, seed, steps, guidance, progress=gr.Progress()):  # noqa: B008
        """The sheet, growing as it is drawn, and in the end its files."""
        try:
            written = number and self.can_write_numbers
            labels = sampling.parse_number(number) if written else self.labels(",".join(classes), count)
            config = replace(self.sampling, steps=steps, guidance=guidance)
            width = len(labels) if written else columns(len(labels))
            drawn, cells = [], ""
            progress(0, "Drawing")
            for batch in self.draw_sheet(labels, seed, config):
                for pixels in batch:
                    cells += pictures.cell_html(pixels, self.classes[labels[len(drawn)]], seed + len(drawn), config)
                    drawn.append(pixels)
                progress((len(drawn), len(labels)), unit="digits")
                yield pictures.sheet_html(cells, width)
            files = pictures.files_html(torch.stack(drawn), labels, width, seed, config)
            yield pictures.sheet_html(cells, width, files)
        except ValueError as error:
            yield f"<p>{html.escape(str(error))}.</p>"


@contextmanager
def sentences():
    """Report a bad value to the caller of the API as one sentence."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(f"{error}.", print_exception=False) from None


def slider(*range, **words) -> gr.Slider:
    """A slider that passes its value on unchecked, so that a bad one becomes a sentence beside the picture."""
    made = gr.Slider(*range, **words)
    made.preprocess = lambda value: value
    return made


def build(studio: Studio) -> gr.Blocks:
    """The three tabs and the typed endpoints."""
    start = studio.start
    guidance_range = {
        "minimum": 0,
        "maximum": sampling.MAX_GUIDANCE,
        "value": start["guidance"],
        "step": 0.05,
        "label": "Guidance",
    }
    steps_range = {"minimum": 1, "maximum": sampling.MAX_STEPS, "value": start["steps"], "step": 1, "label": "Steps"}
    with gr.Blocks(title="Digits from noise") as page:
        gr.Markdown(
            "# Digits from noise\nA small Diffusion Transformer turns noise into a handwritten digit, step by step."
        )
        tabs = gr.Tabs()
        with tabs, gr.Tab("Draw", id="draw"):
            with gr.Row():
                with gr.Column(min_width=340):
                    digit_out = gr.HTML(padding=False, elem_id="digit")
                    status = gr.HTML(studio.about, elem_id="status", padding=False)
                    busy = gr.HTML(elem_id="busy", padding=False)  # where a busy page says how many are waiting
                with gr.Column(min_width=300):
                    digit = gr.Radio(studio.classes, value=start["digit"], label="Class", elem_classes="classes")
                    steps = slider(**steps_range, info="how many steps from noise to digit")
                    guidance = slider(**guidance_range, info="1 follows the class, more exaggerates it")
                    seed = gr.Number(start["seed"], label="Seed", info="selects the noise")
                    with gr.Row():
                        dice = gr.Button("⚄ Another seed", size="md", min_width=120)
                        copy = gr.Button("Copy link", size="md", min_width=120, elem_id="copy")
                    velocity = gr.Checkbox(False, label="Show the velocity", container=False)
            film_out = gr.HTML(padding=False)
        controls = [digit, seed, steps, guidance]
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        drawing = {
            "fn": studio.draw_tab,
            "inputs": [*controls, velocity],
            "outputs": [digit_out, film_out, status],
            "show_progress": "full",
            "show_progress_on": busy,
            "api_visibility": "private",
            **ONE_AT_A_TIME,
        }
        follow = {"fn": None, "inputs": digit_out, "js": "drawn => digits.follow(drawn)", "api_visibility": "private"}
        # `change` for sliders, which also clamp and reset themselves
        changes = [digit.input, seed.input, velocity.input, steps.change, guidance.change]
        gr.on(changes, trigger_mode="always_last", **drawing).then(**follow)
        dice.click(new_seed, None, seed, **quiet).then(**drawing).then(**follow)
        page.load(studio.open_link, None, controls, **quiet).then(**drawing)
        copy.click(**follow).then(None, js="() => digits.copyLink()", api_visibility="private")

        with tabs, gr.Tab("Steps", id="steps") as steps_page:
            gr.Markdown("How many steps are enough? The same noise at 1 to 32 steps.")
            which = gr.Radio(["all", *studio.classes[:10]], value="all", label="Class", elem_classes="classes")
            with gr.Row():
                steps_seed = gr.Number(start["seed"], label="Seed")
                steps_guidance = slider(**guidance_range)
            steps_out = gr.HTML(padding=False)
        gr.on(
            [steps_page.select, which.input, steps_seed.input, steps_guidance.change],
            studio.steps_tab,
            [which, steps_seed, steps_guidance],
            steps_out,
            trigger_mode="always_last",
            api_visibility="private",
            **ONE_AT_A_TIME,
        )

        with tabs, gr.Tab("Sheet", id="sheet"):
            with gr.Row():
                number_info = f"up to {sampling.MAX_NUMBER} digits, or leave it empty"
                length, visible = sampling.MAX_NUMBER, studio.can_write_numbers
                number = gr.Textbox(label="Write a number", info=number_info, max_length=length, visible=visible)
                count = slider(1, MAX_SHEET, 100, step=1, label="How many digits", info="of the classes below, in turn")
            classes = gr.CheckboxGroup(studio.classes, value=list(studio.classes[:10]), label="Classes")
            with gr.Row():
                sheet_seed = gr.Number(start["seed"], label="Seed of the first")
                sheet_steps = slider(**steps_range)
                sheet_guidance = slider(**guidance_range)
            with gr.Row():
                go = gr.Button("Draw the sheet", variant="primary")
                halt = gr.Button("Stop")
            sheet_out = gr.HTML(padding=False, js_on_load="digits.openCells(element, trigger)")
        run = gr.on(
            [go.click, number.submit],
            studio.sheet_tab,
            [classes, number, count, sheet_seed, sheet_steps, sheet_guidance],
            sheet_out,
            api_visibility="private",
            **ONE_AT_A_TIME,
        )
        halt.click(None, cancels=run, api_visibility="private")
        sheet_out.select(studio.open_cell, None, [tabs, *controls], **quiet).then(**drawing).then(**follow)

        for function, name in ((studio.draw_api, "draw"), (studio.steps_api, "steps"), (studio.sheet_api, "sheet")):
            gr.api(function, api_name=name, **ONE_AT_A_TIME)
    return page.queue(max_size=guard.PLACES, api_open=False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python app.py", description="The page that draws digits, in the browser.")
    add_shared(parser, "--weights", "--device")
    parser.add_argument("--port", type=int, help="the port to serve on (default: the first free one from 7860)")
    parser.add_argument("--host", help="the address to serve on, 0.0.0.0 for all of the machine (default: 127.0.0.1)")
    parser.add_argument("--root-path", help="the path, or the whole address, under which a proxy shows the page")
    parser.add_argument("--share", action="store_true", help="also show it on a public address of Gradio's for a week")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="let in only who knows them")
    parser.add_argument(
        "--strict-weights", action="store_true", help="refuse to start when the weights cannot be loaded"
    )
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        if options.port is not None:
            check.whole("port", options.port, 1, 65535)
        user, colon, password = (options.auth or "").partition(":")
        if options.auth and not (user and password):
            raise ValueError("--auth takes USER:PASSWORD, neither of them empty")
        load = weights.load if options.strict_weights else weights.load_or_bundled
        page = build(Studio(load(options.weights, pick(options.device))))
        # Gradio asks its own page whether it is there, for which no proxy of the environment is any use.
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
                f"{asked}{options.host or 'this machine'} is in use or not to be had; try another --port or --host"
            ) from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
