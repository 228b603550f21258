"""The page: controls in, pictures out. `python app.py --weights FOLDER_OR_REPO --port 7860`"""

import argparse
import html
import os
import random
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from urllib.parse import parse_qsl

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

try:
    import spaces  # ZeroGPU; it has to come before torch

    on_gpu = spaces.GPU(duration=20)  # seconds that a drawing may take at most
except ImportError:

    def on_gpu(function):
        return function


import gradio as gr
import torch

from model import browser, check, generate, show, weights
from model.command import sentence_on_error
from model.device import pick
from model.film import compare, filmed
from model.images import CLASSES

START = {"digit": "7", "seed": 67, "steps": 20}  # what the page opens with; the guidance is the weights' own
MAX_SHEET = 400  # digits
ONE_AT_A_TIME = {"concurrency_id": "device", "concurrency_limit": 1}

FONT = ("system-ui", "sans-serif")
THEME = gr.themes.Default(primary_hue="indigo", font=FONT, font_mono=("ui-monospace", "monospace")).set(
    body_text_color_subdued="*neutral_500",  # of Gradio's own colours two are too pale to read: this one, and white on primary_500
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
)


# ---- what a link asks for


def from_link(query: dict, start: dict) -> dict:
    """The controls that a link asks for: each value clamped into its range, and the start's where it makes no sense."""
    values = dict(start)
    if query.get("digit") in CLASSES:
        values["digit"] = query["digit"]
    ranges = (("seed", int, 0, generate.MAX_SEED), ("steps", int, 1, generate.MAX_STEPS), ("guidance", float, 0, generate.MAX_GUIDANCE))
    for name, kind, low, high in ranges:
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
        self.run = on_gpu(self.run)

    def run(self, function, *arguments):
        """All that `function` of `model/` yields for this network: the one place where a GPU is needed, after every check."""
        yield from function(self.network, *arguments)

    # ---- one checked call of the model each; ValueError for a bad value

    def shoot(self, digit, seed, steps, guidance):
        (film,) = self.run(filmed, generate.label(digit), *generate.settings(seed, steps, guidance))
        return film

    def compare(self, digit, seed, guidance):
        labels = range(10) if digit == "all" else [generate.label(digit)]
        seed, _, guidance = generate.settings(seed, 1, guidance)
        yield from self.run(compare, torch.tensor(labels), seed, guidance)

    def labels(self, classes, count):
        return generate.parse_labels(classes, check.whole("count", count, 1, MAX_SHEET))

    def many(self, labels, seed, steps, guidance):
        yield from self.run(generate.draw, labels, *generate.settings(seed, steps, guidance, len(labels)))

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

    def open_cell(self, event: gr.EventData) -> list:
        """The Draw tab, and its controls as the link of a digit of the sheet asks for."""
        return [gr.Tabs(selected="draw"), *from_link(dict(parse_qsl(str(event.link).lstrip("?"))), self.start).values()]

    def draw_tab(self, digit, seed, steps, guidance, with_velocity):
        """The digit, its film, and the status line; a bad value is a sentence there, and the pictures stay."""
        try:
            film = self.shoot(digit, seed, steps, guidance)
        except ValueError as error:
            return gr.skip(), gr.skip(), f"{error}."
        status = f"{show.in_steps(steps)[3:]} in {film.milliseconds:.0f} ms\\\n{self.about}{self.notice}"
        return show.digit_html(film, digit, seed, guidance), show.film_html(film, with_velocity), status

    def steps_tab(self, digit, seed, guidance):
        """The columns of ever more steps, each shown when it is drawn."""
        try:
            columns = []
            for column in self.compare(digit, seed, guidance):
                columns.append(column)
                yield show.steps_html(columns, CLASSES[:10] if digit == "all" else (digit,))
        except ValueError as error:
            yield f"<p>{html.escape(str(error))}.</p>"

    def sheet_tab(self, classes, number, count, seed, steps, guidance, progress=gr.Progress()):  # noqa: B008
        try:
            labels = generate.parse_number(number) if number else self.labels(",".join(classes), count)
            columns = len(labels) if number else generate.columns(len(labels))
            drawn, cells = [], ""
            progress(0, "Drawing")
            for chunk in self.many(labels, seed, steps, guidance):
                for pixels in chunk:
                    cells += show.cell_html(pixels, CLASSES[labels[len(drawn)]], seed + len(drawn), steps, guidance)
                    drawn.append(pixels)
                progress((len(drawn), len(labels)), unit="digits")
                yield show.sheet_html(cells, columns)
            yield show.sheet_html(cells, columns, show.files_html(torch.stack(drawn), labels, columns))
        except ValueError as error:
            yield f"<p>{html.escape(str(error))}.</p>"


@contextmanager
def sentences():
    """A bad value reaches the caller of the API as its one sentence."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(f"{error}.", print_exception=False) from None


# ---- the page


def slider(*range, **words) -> gr.Slider:
    """A slider whose number only its reader checks, so that a bad or a missing one is a sentence beside the picture."""
    made = gr.Slider(*range, **words)
    made.preprocess = lambda value: value
    return made


def build(studio: Studio) -> gr.Blocks:
    """The three tabs and the typed endpoints."""
    start = studio.start
    guidance_range = {"minimum": 0, "maximum": generate.MAX_GUIDANCE, "value": start["guidance"], "step": 0.05, "label": "Guidance"}
    steps_range = {"minimum": 1, "maximum": generate.MAX_STEPS, "value": start["steps"], "step": 1, "label": "Steps"}
    with gr.Blocks(title="Digits from noise", delete_cache=(3600, 3600)) as page:
        gr.Markdown("# Digits from noise\nA small Diffusion Transformer turns noise into a handwritten digit, step by step.")
        tabs = gr.Tabs()
        with tabs, gr.Tab("Draw", id="draw"):
            with gr.Row():
                with gr.Column(min_width=340):
                    digit_out = gr.HTML(padding=False, elem_id="digit")
                    status = gr.Markdown(studio.about + studio.notice, elem_id="status")
                    busy = gr.HTML(elem_id="busy", padding=False)  # where a busy page says how many are waiting
                with gr.Column(min_width=300):
                    digit = gr.Radio(CLASSES, value=start["digit"], label="Class", elem_classes="classes")
                    steps = slider(**steps_range, info="how many steps from noise to digit")
                    guidance = slider(**guidance_range, info="1 follows the class, more exaggerates it")
                    seed = gr.Number(start["seed"], label="Seed", info="names the noise")
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
        follow = {"fn": None, "inputs": digit_out, "js": browser.FOLLOW, "api_visibility": "private"}
        changes = [digit.input, seed.input, velocity.input, steps.change, guidance.change]  # a slider also clamps and resets itself
        gr.on(changes, trigger_mode="always_last", **drawing).then(**follow)
        dice.click(new_seed, None, seed, **quiet).then(**drawing).then(**follow)
        page.load(studio.open_link, None, controls, **quiet).then(**drawing)
        page.load(None, js=browser.ARROWS, api_visibility="private")
        copy.click(**follow).then(None, js=browser.COPY_LINK, api_visibility="private")

        with tabs, gr.Tab("Steps", id="steps") as steps_page:
            gr.Markdown("How many steps are enough? The same noise at 1 to 32 steps.")
            which = gr.Radio(["all", *CLASSES[:10]], value="all", label="Class", elem_classes="classes")
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
                number = gr.Textbox(
                    label="Write a number", info=f"up to {generate.MAX_NUMBER} digits, or leave it empty", max_length=generate.MAX_NUMBER
                )
                count = slider(1, MAX_SHEET, 100, step=1, label="How many digits", info="of the classes below, in turn")
            classes = gr.CheckboxGroup(CLASSES, value=list(CLASSES[:10]), label="Classes")
            with gr.Row():
                sheet_seed = gr.Number(start["seed"], label="Seed of the first")
                sheet_steps = slider(**steps_range)
                sheet_guidance = slider(**guidance_range)
            with gr.Row():
                go = gr.Button("Draw the sheet", variant="primary")
                halt = gr.Button("Stop")
            sheet_out = gr.HTML(padding=False, js_on_load=browser.OPEN)
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
    return page.queue(max_size=64)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python app.py", description="The page that draws digits, in the browser.")
    parser.add_argument("--weights", help="a folder or USER/NAME[@revision] (default: the variable WEIGHTS, else the bundled ones)")
    parser.add_argument("--port", type=int, help="the port to serve on (default: the first free one from 7860)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument("--strict-weights", action="store_true", help="refuse to start when the weights asked for are not to be had")
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        if options.port is not None:
            check.whole("port", options.port, 1, 65535)
        load = weights.load if options.strict_weights else weights.load_or_bundled
        page = build(Studio(load(options.weights, pick(options.device))))
        page.launch(
            server_port=options.port,
            css=browser.CSS,
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
