"""The page: controls in, pictures out. `python app.py --weights FOLDER_OR_REPO --port 7860`"""

import argparse
import os
import random
import sys
from contextlib import contextmanager
from importlib.util import find_spec

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

try:
    import spaces  # ZeroGPU; it has to come before torch

    on_gpu = spaces.GPU
except ImportError:

    def on_gpu(function):
        return function


import gradio as gr
import torch

from model import check, generate, show, weights
from model.command import sentence_on_error
from model.device import pick
from model.film import compare, shoot
from model.images import CLASSES

START = {"digit": "7", "seed": 42, "steps": 20}  # what the page opens with; the guidance is the weights' own
MAX_SHEET = 400  # digits
ONE_AT_A_TIME = {"concurrency_id": "device", "concurrency_limit": 1}

CSS = (
    show.CSS
    + """
.gradio-container { max-width: 900px !important; margin: 0 auto !important; }
#status { text-align: center; font-size: 13px; }
#busy { min-height: 24px !important; }
#busy .wrap { position: static !important; background: none; opacity: 0; }
#busy .wrap.translucent { opacity: 1; transition: opacity 1s ease-in; }
#busy .wrap svg { display: none; }
#busy .progress-text { position: static; transform: none; }
.classes label { min-width: 44px; justify-content: center; }
.classes label:has(:checked) { background: var(--color-accent) !important; color: white !important; }
.classes label:focus-within { outline: 2px solid var(--color-accent); outline-offset: 2px; }
.classes input { position: absolute; opacity: 0; }
.classes label span { margin: 0 !important; }
footer .divider { display: none; }
"""
)

FONT = ("system-ui", "sans-serif")
THEME = gr.themes.Default(primary_hue="indigo", font=FONT, font_mono=("ui-monospace", "monospace"))

FOLLOW = """(digit, seed, steps, guidance) => {
    const link = new URL(location.href);
    link.search = new URLSearchParams({digit, seed, steps, guidance});
    history.replaceState(null, "", link);
}"""
COPY_LINK = (
    """() => navigator.clipboard ? navigator.clipboard.writeText(location.href) : prompt("The link to this digit:", location.href)"""
)
ARROWS = """() => document.addEventListener("keydown", event => {
    const way = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[event.key];
    if (!way || event.target.type !== "radio") return;
    const all = [...event.target.closest(".classes").querySelectorAll("input")];
    const next = all[(all.indexOf(event.target) + way + all.length) % all.length];
    event.preventDefault();
    next.focus();
    next.click();
})"""  # Gradio's radio buttons have a name each, so that the browser does not know them for a group


# ---- what a link asks for


def from_link(query: dict, start: dict) -> dict:
    """The controls that a link asks for: each value clamped into its range, and the start's where it makes no sense."""
    values = dict(start)
    if query.get("digit") in CLASSES:
        values["digit"] = query["digit"]
    for name, kind, low, high in (("seed", int, 0, generate.MAX_SEED), ("steps", int, 1, 50), ("guidance", float, 0, 5)):
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
        self.network = loaded.network
        count = sum(parameter.numel() for parameter in self.network.parameters())
        device = next(self.network.parameters()).device.type
        source, at, commit = loaded.source.partition("@")
        self.about = f"{count / 1e6:.2f} M parameters · weights: {source}{at}{commit[:12]} · {device}"
        self.start = {**START, "guidance": loaded.network.default_guidance}
        self.notice = f"\n\n{loaded.notice}" if loaded.notice else ""
        self.shoot, self.compare, self.many = on_gpu(self.shoot), on_gpu(self.compare), on_gpu(self.many)

    # ---- one checked call of the model each; ValueError for a bad value

    def shoot(self, digit, seed, steps, guidance):
        return shoot(self.network, generate.label(digit), *generate.settings(seed, steps, guidance))

    def compare(self, digit, seed, guidance):
        labels = range(10) if digit == "all" else [generate.label(digit)]
        seed, _, guidance = generate.settings(seed, 1, guidance)
        yield from compare(self.network, torch.tensor(labels), seed, guidance)

    def labels(self, classes, count):
        return generate.parse_labels(classes, check.whole("count", count, 1, MAX_SHEET))

    def many(self, labels, seed, steps, guidance):
        yield from generate.draw(self.network, labels, *generate.settings(seed, steps, guidance))

    # ---- the API; a guidance that is left out is the weights' own

    def own(self, guidance):
        return self.start["guidance"] if guidance is None else guidance

    def draw_api(self, digit: str, seed: int = 42, steps: int = 20, guidance: float | None = None) -> list[list[int]]:
        """One digit ("0" to "9", "black", "white") from the noise of a seed: 28 rows of 28 pixels, 0 black to 255 white."""
        with sentences():
            return self.shoot(digit, seed, steps, self.own(guidance)).digit.tolist()

    def steps_api(self, digit: str = "all", seed: int = 42, guidance: float | None = None) -> dict[str, list]:
        """One class, or "all" ten digits, from the same noise at 1, 2, 4, 8, 16 and 32 steps: images by number of steps."""
        with sentences():
            return {str(count): pixels.tolist() for count, pixels, _ in self.compare(digit, seed, self.own(guidance))}

    def sheet_api(
        self, classes: str = "0-9", count: int = 100, seed: int = 42, steps: int = 20, guidance: float | None = None
    ) -> dict[str, list]:
        """Up to 400 digits, `classes` in turn ("7", "0-9", "3,5,black"): images and labels, digit i from the noise of seed + i."""
        with sentences():
            labels = self.labels(classes, count)
            return {"images": torch.cat(list(self.many(labels, seed, steps, self.own(guidance)))).tolist(), "labels": labels.tolist()}

    # ---- the tabs

    def open_link(self, request: gr.Request) -> list:
        """The controls of a page opened with `?digit=7&seed=42&steps=8&guidance=1.5`."""
        return list(from_link(dict(request.query_params), self.start).values())

    def draw_tab(self, digit, seed, steps, guidance, with_velocity):
        """The digit, its film, and the status line; a bad value is a sentence there, and the pictures stay."""
        try:
            film = self.shoot(digit, seed, steps, guidance)
        except ValueError as error:
            return gr.skip(), gr.skip(), f"{error}."
        status = f"{self.about} · {steps} step{'s'[: steps > 1]} in {film.milliseconds:.0f} ms{self.notice}"
        return show.digit_html(film, digit, seed), show.film_html(film, with_velocity), status

    def steps_tab(self, digit, seed, guidance):
        """The columns of ever more steps, each shown when it is drawn."""
        try:
            columns = []
            for column in self.compare(digit, seed, guidance):
                columns.append(column)
                yield show.steps_html(columns, CLASSES[:10] if digit == "all" else (digit,))
        except ValueError as error:
            yield f"<p>{error}.</p>"

    def sheet_tab(self, classes, number, count, seed, steps, guidance, progress=gr.Progress()):  # noqa: B008
        try:
            labels = generate.parse_number(number) if number else self.labels(",".join(classes), count)
            columns = len(labels) if number else generate.columns(len(labels))
            done = []
            progress(0, "Drawing")
            for chunk in self.many(labels, seed, steps, guidance):
                done.append(chunk)
                drawn = torch.cat(done)
                progress((len(drawn), len(labels)), unit="digits")
                yield show.sheet_html(drawn, labels, columns, seed, steps, guidance)
        except ValueError as error:
            yield f"<p>{error}.</p>"


@contextmanager
def sentences():
    """A bad value reaches the caller of the API as its one sentence."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(f"{error}.", print_exception=False) from None


# ---- the page


def build(studio: Studio) -> gr.Blocks:
    """The three tabs and the typed endpoints."""
    start = studio.start
    first = studio.draw_tab(*start.values(), False)
    guidance_range = {"minimum": 0, "maximum": generate.MAX_GUIDANCE, "value": start["guidance"], "step": 0.05, "label": "Guidance"}
    steps_range = {"minimum": 1, "maximum": generate.MAX_STEPS, "value": start["steps"], "step": 1, "label": "Steps"}
    with gr.Blocks(title="Digits from noise") as page:
        gr.Markdown("# Digits from noise\nA small Diffusion Transformer turns noise into a handwritten digit, step by step.")
        with gr.Tab("Draw"):
            with gr.Row():
                with gr.Column(min_width=340):
                    digit_out = gr.HTML(first[0], padding=False)
                    status = gr.Markdown(first[2], elem_id="status")
                    busy = gr.HTML(elem_id="busy", padding=False)  # where a busy page says how many are waiting
                with gr.Column(min_width=300):
                    digit = gr.Radio(CLASSES, value=start["digit"], label="Class", elem_classes="classes")
                    steps = gr.Slider(**steps_range, info="how many steps from noise to digit")
                    guidance = gr.Slider(
                        **guidance_range,
                        info="1 follows the class, more exaggerates it",
                    )
                    seed = gr.Number(start["seed"], label="Seed", info="names the noise", precision=0)
                    with gr.Row():
                        dice = gr.Button("⚄ Another seed", size="md", min_width=120)
                        copy = gr.Button("Copy link", size="md", min_width=120)
                    velocity = gr.Checkbox(False, label="Show the velocity", container=False)
            film_out = gr.HTML(first[1], padding=False)
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
        follow = {"fn": None, "inputs": controls, "js": FOLLOW, "api_visibility": "private"}
        gr.on([item.input for item in (*controls, velocity)], trigger_mode="always_last", **drawing).then(**follow)
        dice.click(new_seed, None, seed, **quiet).then(**drawing).then(**follow)
        page.load(studio.open_link, None, controls, **quiet).then(**drawing)
        page.load(None, js=ARROWS, api_visibility="private")
        copy.click(**follow).then(None, js=COPY_LINK, api_visibility="private")

        with gr.Tab("Steps") as steps_page:
            gr.Markdown("How many steps are enough? The same noise at 1 to 32 steps.")
            which = gr.Radio(["all", *CLASSES[:10]], value="all", label="Class", elem_classes="classes")
            with gr.Row():
                steps_seed = gr.Number(start["seed"], label="Seed", precision=0)
                steps_guidance = gr.Slider(**guidance_range)
            steps_out = gr.HTML(padding=False)
        gr.on(
            [steps_page.select, which.input, steps_seed.input, steps_guidance.input],
            studio.steps_tab,
            [which, steps_seed, steps_guidance],
            steps_out,
            trigger_mode="always_last",
            api_visibility="private",
            **ONE_AT_A_TIME,
        )

        with gr.Tab("Sheet"):
            with gr.Row():
                number = gr.Textbox(
                    label="Write a number", info=f"up to {generate.MAX_NUMBER} digits, or leave it empty", max_length=generate.MAX_NUMBER
                )
                count = gr.Slider(1, MAX_SHEET, 100, step=1, label="How many digits", info="of the classes below, in turn")
            classes = gr.CheckboxGroup(CLASSES, value=list(CLASSES[:10]), label="Classes")
            with gr.Row():
                sheet_seed = gr.Number(start["seed"], label="Seed of the first", precision=0)
                sheet_steps = gr.Slider(**steps_range)
                sheet_guidance = gr.Slider(**guidance_range)
            with gr.Row():
                go = gr.Button("Draw the sheet", variant="primary")
                halt = gr.Button("Stop")
            sheet_out = gr.HTML(padding=False)
        run = gr.on(
            [go.click, number.submit],
            studio.sheet_tab,
            [classes, number, count, sheet_seed, sheet_steps, sheet_guidance],
            sheet_out,
            api_visibility="private",
            **ONE_AT_A_TIME,
        )
        halt.click(None, cancels=run, api_visibility="private")

        for function, name in ((studio.draw_api, "draw"), (studio.steps_api, "steps"), (studio.sheet_api, "sheet")):
            gr.api(function, api_name=name, **ONE_AT_A_TIME)
    return page.queue(max_size=64)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python app.py", description="The page that draws digits, in the browser.")
    parser.add_argument("--weights", help="a folder or USER/NAME[@revision] (default: the variable WEIGHTS, else the bundled ones)")
    parser.add_argument("--port", type=int, help="the port to serve on (default: the first free one from 7860)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument("--strict-weights", action="store_true", help="refuse to start when the weights asked for are not to be had")
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        load = weights.load if options.strict_weights else weights.load_or_bundled
        page = build(Studio(load(options.weights, pick(options.device))))
        page.launch(
            server_port=options.port,
            css=CSS,
            theme=THEME,
            ssr_mode=False,
            max_file_size="1mb",
            state_session_capacity=100,  # Gradio copies its configuration, some 100 kB, for each; the page keeps nothing in them
            footer_links=["api"],
            mcp_server=find_spec("mcp") is not None,  # the endpoints as tools, for whoever installs gradio[mcp]
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
