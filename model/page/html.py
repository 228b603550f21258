"""The page's texts and forms, and drawings as values for the custom elements of film.js, sheet.js and why.js."""

import html
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jinja2
import torch

from model import images, sampling
from model.dit import DiT
from model.sampling import Film, SamplingConfig
from model.scenes import packed
from model.weights import TEACHER_FROM

HERE = Path(__file__).parent
TITLE = "Digits from noise"
SENTENCE = "A small neural network turns noise into a handwritten digit, step by step."
KEEP = {"__type__": "update"}  # Gradio's empty update: no change
PREVIEW = "/preview.png"  # the picture in previews of links
STYLES = ("elements.css", "forms.css", "why.css", "lab.css", "page.css")
SCRIPTS = ("files.js", "film.js", "forms.js", "sheet.js", "why.js", "lab.js", "page.js")

# ---- the page around the drawings


def head() -> str:
    """The styles and scripts for the head of the page."""
    style, scripts = "".join(map(read, STYLES)), "".join(f"<script>{read(name)}</script>" for name in SCRIPTS)
    return f"<style>{style}</style>{scripts}"


def read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def preview(environment: jinja2.Environment) -> None:
    """Replace the link-preview tags in Gradio's templates with those of this page."""
    tags = {"og:title": TITLE, "og:description": SENTENCE, "og:type": "website", "og:url": "{{ config['root'] }}/"}
    tags |= {"og:image": "{{ config['root'] }}" + PREVIEW, "twitter:card": "summary_large_image"}
    ours = "".join(f'<meta property="{name}" content="{content}" />' for name, content in tags.items())
    ours += f'<meta name="description" content="{SENTENCE}" />'
    changed = {}
    for name in ("frontend/index.html", "frontend/share.html"):
        source = environment.loader.get_source(environment, name)[0]
        source = re.sub(r'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>', "", source)
        changed[name] = source.replace("<head>", f"<head>{ours}", 1)
    environment.loader = jinja2.ChoiceLoader([jinja2.DictLoader(changed), environment.loader])


def title() -> str:
    return f"<h1>{TITLE}</h1><p>{SENTENCE}</p>"


def digit_title() -> str:
    """The heading, filled by the script, and the live region that announces a new digit to screen readers."""
    return '<h2 id="digit-title" tabindex="-1"></h2><p id="announcement" role="status" class="unseen"></p>'


def footer(about: str, static_page: str | None) -> str:
    """The footer, with a link to the same digit on the static page if there is one."""
    address = html.escape(static_page or "")
    link = f'<a id="static" href="{address}">Draw in your own browser instead</a>, without a queue.<br>' * bool(address)
    return f"<p>{link}{about}</p>"


ENOUGH = "How many steps are enough?"
STEPS = (
    ENOUGH,
    "The same noise in 1 to 32 steps. One step lands on an average of many digits; more steps follow the path more "
    "closely, until nothing changes any more.",
)
MAP_STEPS = (
    ENOUGH,
    "The same noise in 1 to 32 steps. This network is a flow map: it has learned where a step ends, however long it "
    "is, so a few steps are enough.",
)
FLOW_AND_MAP = (
    ENOUGH,
    "The same noise in 1 to 32 steps, twice. The flow predicts a velocity; in one step that leads to an average of "
    "many digits, and only many steps follow the path. The flow map was distilled from it: it has learned where a "
    "step ends, however long it is, so a few steps are enough. A call is one run of the network. The page draws with "
    f"the map in up to {TEACHER_FROM - 1} steps, and with the flow in more.",
)
NUMBER = ("Write a number", "All its digits come out of the noise at the same time.")
CHANGE = (
    "Change its mind",
    "The network starts to draw the chosen class and is asked for another one on the way. Time t runs from 1, pure "
    "noise, to 0, the digit. Asked early, the network draws the other class; asked late, it no longer can. The row "
    "shows when the class is decided: long before the digit is clear.",
)
MORPH = (
    "From one handwriting to another",
    "The noise of this seed turns into the noise of another seed in equal steps, and every mixture becomes a digit. "
    "The class stays; the handwriting follows the noise.",
)
SKETCH = (
    "Finish a sketch",
    "Draw something. The page adds noise to it, and the network removes the noise again to draw the chosen class. A "
    "little noise keeps your lines, a lot keeps only the idea.",
)
SHEET = ("A sheet of digits", "Up to 400 digits, each from its own seed. Click one to open it.")


def steps_of(kind: str, compared: bool) -> tuple[str, str]:
    """Heading and text of the comparison of steps, for a kind of network and whether its teacher is `compared`."""
    return STEPS if kind == DiT.kind else FLOW_AND_MAP if compared else MAP_STEPS


def section(name: str, sentence: str) -> str:
    """A heading within a tab, and a sentence about the section."""
    return f"<h2>{name}</h2><p>{sentence}</p>"


def about(kind: str, parameters: list[int], source: str, device: str, notice: str | None) -> str:
    """The lines of the footer: the network, the source of its weights, its device, and a notice of what went wrong.

    `parameters` are the counts of the network and, if there is one, of its teacher.
    """
    where = {"cpu": "the processor (CPU)", "cuda": "a graphics card (GPU)"}.get(device, "a graphics card (GPU)")
    weights = "the bundled weights" if source == "bundled" else f"weights from {source}"
    network = f"A {'network' if kind == DiT.kind else kind} of {parameters[0] / 1e6:.2f} million parameters"
    network += "".join(f" and its teacher of {count / 1e6:.2f} million" for count in parameters[1:])
    line = f"{network} with {weights}, on {where} of this server."
    return "<br>".join(html.escape(text) for text in (line, notice) if text)


# ---- forms: a component's value lists the values of the fields named in data-fields


def panel(classes: Sequence[str], start: dict, drawn: bool) -> str:
    """The controls that all tabs share; unless a digit is `drawn` already, the page requests one on load."""
    blank = ' <span class="hint">a digit, or a blank picture</span>' * ("black" in classes)
    options = "".join(choice("radio", "digit", name, name == start["digit"]) for name in classes)
    rest = slider("guidance", "Guidance", start["guidance"], 0, sampling.MAX_GUIDANCE, 0.05, GUIDANCE) + number(
        "seed", "Seed", start["seed"], sampling.MAX_SEED, "The seed chooses the noise, and with it the handwriting."
    )
    return (
        '<form class="panel" data-fields="digit seed steps guidance"' + " data-visit" * (not drawn) + ">"
        f'<fieldset class="{grid(classes)}" data-field="class"><legend>Class{blank}</legend><div>{options}</div>'
        "</fieldset>"
        + slider("steps", "Steps", start["steps"], 1, sampling.MAX_STEPS, 1, "from noise to digit")
        + f'<div class="buttons">{button("another", "Another seed")}{button("copy", "Copy link")}</div>'
        f'<details><summary>Guidance and seed</summary>{rest}</details><p class="problem" role="alert"></p></form>'
    )


GUIDANCE = "1 follows the class, more exaggerates it, 0 ignores it: any class may appear."


def number_form() -> str:
    return (
        '<form class="line" data-fields="number"><label for="number">A number</label>'
        '<input id="number" name="number" type="text" inputmode="numeric" autocomplete="off" '
        f'placeholder="a birthday, say" aria-describedby="number-hint">{submit("Write it")}'
        f'<p class="hint" id="number-hint">1 to {sampling.MAX_NUMBER} digits, each from its own seed; '
        'dots and dashes are ignored.</p><p class="problem" role="alert"></p></form>'
    )


def change_form(classes: Sequence[str], other: str) -> str:
    options = "".join(f"<option{' selected' * (name == other)}>{html.escape(name)}</option>" for name in classes)
    return (
        '<form class="line" data-fields="other"><div class="field" data-field="class">'
        f'<label for="other">Change to</label><select id="other" name="other">{options}</select></div>'
        '<p class="problem" role="alert"></p></form>'
    )


def morph_form(other: int) -> str:
    field = number("other_seed", "The other seed", other, sampling.MAX_SEED, "")
    return f'<form class="line" data-fields="other_seed">{field}<p class="problem" role="alert"></p></form>'


def noise_form(noise: float) -> str:
    hint = "added to the sketch"
    field = slider("noise", "Noise", noise, 0.1, 1, 0.05, hint)
    return f'<form data-fields="noise">{field}<p class="problem" role="alert"></p></form>'


def sheet_form(classes: Sequence[str], most: int) -> str:
    options = "".join(choice("checkbox", "classes", name, name in classes[:10]) for name in classes)
    return (
        '<form data-fields="classes count">'
        f'<fieldset class="{grid(classes)}" data-field="class"><legend>Classes, in turn</legend><div>{options}</div>'
        "</fieldset>"
        + slider("count", "How many", 100, 1, most, 1, "digits")
        + f'<div class="buttons">{submit("Draw the sheet")}{button("stop", "Stop")}</div>'
        '<p class="problem" role="alert"></p></form>'
    )


def grid(classes: Sequence[str]) -> str:
    """The CSS classes of a group of choices: six columns, or three for longer names."""
    return "classes wide" if max(map(len, classes)) > 5 else "classes"


def choice(kind: str, group: str, name: str, checked: bool) -> str:
    """One class of a group of radio buttons or checkboxes."""
    value = html.escape(name)
    return (
        f'<label><input type="{kind}" name="{group}" value="{value}"{" checked" * checked}><span>{value}</span></label>'
    )


def slider(name: str, label: str, value: float, low: float, high: float, step: float, hint: str) -> str:
    """A number field and a slider for the same value."""
    bounds = f'min="{low}" max="{high}" step="{step}" value="{value:g}"'
    return (
        f'<div class="field" data-field="{name}"><label for="{name}">{label} <span class="hint" id="{name}-hint">{hint}'
        f'</span></label><input type="number" name="{name}" {bounds} aria-label="{label}, typed" '
        f'aria-describedby="{name}-hint" required><input type="range" id="{name}" {bounds} data-for="{name}"></div>'
    )


def number(name: str, label: str, value: int, high: int, hint: str) -> str:
    """A field for a whole number from 0 to `high`."""
    return (
        f'<div class="field" data-field="{name}"><label for="{name}">{label}</label><input type="number" name="{name}" '
        f'id="{name}" min="0" max="{high}" step="1" value="{value}" aria-describedby="{name}-hint" required>'
        f'<p class="hint" id="{name}-hint">{hint}</p></div>'
    )


def button(event: str, words: str) -> str:
    return f'<button type="button" value="{event}">{words}</button>'


def submit(words: str) -> str:
    return f'<button value="submit" class="primary">{words}</button>'


class Told:
    """Catches a ValueError in its block; `both` is the value to show, if set, and the message beside a field."""

    def __init__(self):
        self.value, self.problem = KEEP, None

    def __enter__(self) -> "Told":
        return self

    def __exit__(self, kind, error, trace) -> bool:
        if isinstance(error, ValueError):
            self.problem = problem(error)
        return isinstance(error, ValueError)

    @property
    def both(self) -> tuple:
        return self.value, self.problem


def plain(number: str) -> str:
    """A number without the spaces, dots and dashes that people write into dates."""
    return re.sub(r"[\s./-]", "", number) if isinstance(number, str) else ""


def problem(error: ValueError) -> dict:
    """The sentence of an error and the field it belongs to, whose name is the first word of the error."""
    sentence = re.sub(r"^(\w+) must be (.*), not None$", r"\1 is empty; it must be \2", str(error))
    field, space, rest = sentence.partition(" ")
    name = field.replace("_", " ")
    return {"field": field, "sentence": f"{name[0].upper()}{name[1:]}{space}{rest}."}


def note(field: str, sentence: str) -> dict | None:
    """A note beside a field whose value is valid; None if there is no sentence."""
    return {"field": field, "sentence": sentence, "harmless": True} if sentence else None


# ---- drawings


def film(film: Film, digits: Sequence[str], config: SamplingConfig, **more) -> dict:
    """A film of N digits, for the elements of film.js.

    `more` has their `seeds`, or `about` for digits without a link.
    """
    arrays = {name: packed(getattr(film, name)) for name in ("noisy", "predicted", "velocity")}
    return {
        "digits": list(digits),
        **asdict(config),
        "times": film.times,
        "kind": film.kind,
        **arrays,
        **more,
    }


def row(film: Film, digits: Sequence[str], config: SamplingConfig, frames: int = 24, **more) -> dict:
    """A film of many digits for a row: at most `frames` states, without predicted images and velocities.

    `more` has their `seeds`, or `about` and `captions` for digits without a link.
    """
    kept = film.frames(frames)
    return {
        "digits": list(digits),
        **asdict(config),
        "times": [film.times[i] for i in kept],
        "noisy": packed(film.noisy[kept]),
        **more,
    }


def changed(film: Film, digit: str, other: str, seed: int, at: Sequence[float], config: SamplingConfig) -> dict:
    """A row with one digit per time at which its class changed."""
    other = f"a{named(other)[1:]}"
    about = f"{named(digit)} that becomes {other} at t = {', '.join(map(str, at))}: {settings(seed, config)}"
    captions = ["never" if t == 0 else "at once" if t == 1 else f"t = {t:g}" for t in at]
    return row(film, [digit] * len(at), config, about=about, captions=captions)


def morphed(film: Film, digit: str, seeds: tuple[int, int], count: int, config: SamplingConfig) -> dict:
    """A row of digits between two seeds."""
    first, last = seeds
    about = f"{named(digit)} from the noise of seed {first} to that of seed {last}: {settings(first, config)}"
    between = [f"{i / (count - 1):.0%}" for i in range(1, count - 1)]
    captions = [f"seed {first}", *between, f"seed {last}"]
    return row(film, [digit] * count, config, about=about, captions=captions)


def finished(drawn: Film, digit: str, seed: int, noise: float, config: SamplingConfig) -> dict:
    """The film of a finished sketch."""
    about = f"{named(digit)}, finished from a sketch under noise up to t = {noise:g}: {settings(seed, config)}"
    return film(drawn, [digit], config, about=about)


def named(digit: str) -> str:
    """A class at the beginning of a sentence: A 7, An 8, A black image."""
    return f"An {digit}" if digit == "8" else f"A {digit}" if digit in images.CLASSES[:10] else f"A {digit} image"


def settings(seed: int, config: SamplingConfig) -> str:
    return config.recipe("", seed).removeprefix(": ")


def sheet(digits: Sequence[str], seed: int, config: SamplingConfig, columns: int, labels: Sequence[int]) -> dict:
    """An empty sheet; `pixels` takes one base64 string per batch."""
    seeds = list(range(seed, seed + len(digits)))
    return {
        "digits": list(digits),
        "seeds": seeds,
        **asdict(config),
        "pixels": [],
        "total": len(digits),
        "columns": columns,
        "labels": list(labels),
    }


def steps(digits: Sequence[str], seed: int, config: SamplingConfig, compared: bool) -> dict:
    """An empty comparison of steps; with a row each for a flow map and its teacher if they are `compared`.

    `calls` of a row is the number of network calls per step, and `opens` the range of steps in which the page draws
    with that network, so that the row's pictures are links.
    """
    shown = {"digits": list(digits), "seed": seed, **asdict(config), "columns": [], "total": len(sampling.STEP_COUNTS)}
    guided = config.guidance not in (0, 1)
    rows = [
        {"name": "flow", "calls": 1 + guided, "opens": [TEACHER_FROM, sampling.MAX_STEPS]},
        {"name": "map", "calls": 1, "opens": [1, TEACHER_FROM - 1]},
    ]
    return {**shown, "rows": rows} if compared else shown


def column(count: int, pixels: torch.Tensor, milliseconds: list[float]) -> dict:
    """A column of the comparison of steps, with a time per network."""
    return {"steps": count, "pixels": packed(pixels), "milliseconds": list(map(round, milliseconds))}
