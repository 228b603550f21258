"""A visitor of the page, and the expected digits."""

import base64
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from model import weights
from model.page import studio
from model.sampling import draw_film, draw_row


@pytest.fixture(scope="session")
def bundled() -> weights.Weights:
    return weights.load()


SEED, STEPS = studio.START["seed"], weights.read(weights.BUNDLED).sampling.steps  # the page's initial settings


def digit(bundled, label, seed, steps, guidance=None, film=True) -> np.ndarray:
    """The digit that the page should show; the guidance defaults to that of the weights.

    Rows, sheets and the API draw without a film, in smaller batches, which a flow map rounds differently.
    """
    sampling = replace(bundled.sampling, steps=steps)
    sampling = sampling if guidance is None else replace(sampling, guidance=guidance)
    network, sampling = bundled.choose(sampling)
    draw = draw_film if film else draw_row
    return draw(network, torch.tensor([label]), [seed], sampling).digits[0].numpy().astype(int)


# ---- the browser

RGBA = """canvas => {
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return [canvas.width, btoa(Array.from(data, byte => String.fromCharCode(byte)).join(""))];
}"""


def rgba(canvas) -> np.ndarray:
    """The pixels of a canvas, uint8 `[height, width, 4]`."""
    width, data = canvas.evaluate(RGBA)
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(-1, width, 4)


TABS = ("Digit", "Why it works", "Numbers", "Experiments")
FILM = "document.querySelector('#film')"


class Visit:
    """A visitor's page, with the requests that it has sent."""

    def __init__(self, context, url: str):
        self.page, self.errors, self.asked = context.new_page(), [], []
        self.page.set_default_timeout(60_000)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: "queue/join" in request.url and self.asked.append(request.post_data))
        self.page.goto(url)
        self.page.wait_for_selector("#film canvas", state="attached")
        self.settle()

    def settle(self) -> None:
        """Wait until the network is idle."""
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_timeout(300)

    def shows(self, digit, seed=SEED, steps=STEPS) -> np.ndarray:
        """Wait until the film of a digit has played; returns its last picture."""
        self.page.wait_for_function(
            f"""([digit, seed, steps]) => {{
                const {{film, index, large}} = {FILM};
                return film.digits[0] === digit && film.seeds[0] === seed && film.steps === steps && index === steps;
            }}""",
            arg=[str(digit), seed, steps],
        )
        return self.pixels()

    def pixels(self, canvas: str = "#film .digits-large") -> np.ndarray:
        """The pixels of a canvas, 28 x 28."""
        return rgba(self.page.locator(canvas).first)[..., 0].astype(int)

    def until(self, condition: str) -> None:
        """Wait until a JavaScript condition is true; in it, `$` and `$$` are querySelector and querySelectorAll."""
        find = "const $ = name => document.querySelector(name), $$ = name => document.querySelectorAll(name)"
        self.page.wait_for_function(f"() => {{ {find}; return {condition}; }}")

    def alt(self) -> str:
        return self.page.locator("#film .digits-large").get_attribute("aria-label")

    def field(self, name: str):
        return self.page.locator(f"#panel input[name={name}]")

    def choose(self, name: str) -> None:
        self.page.locator("#panel .classes label").filter(has_text=re.compile(f"^{name}$")).click()

    def open(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab).click()

    def more(self) -> None:
        """Open the controls that are collapsed at first."""
        self.page.locator("#panel summary").click()

    def save(self, button) -> object:
        with self.page.expect_download() as waiting:
            button.click()
        return waiting.value


# ---- elements on a separate page

PROPERTIES = {"digit-sheet": "sheet", "digit-steps": "steps", "digit-paths": "paths"}  # of the others: film
PUT = """elements => {
    const made = elements.map(({tag, id}) => Object.assign(document.createElement(tag), {id}));
    document.body.replaceChildren(...made);
    elements.forEach((element, i) => give(made[i], element));
}"""
GIVE = """
    // Set the property of an element; its images come as base64.
    function give(element, {property, value}) {
        if (!value) return;
        const pixels = typeof value.pixels === "string" ? {pixels: digits.bytes(value.pixels)} : {};
        element[property] = {...digits.film(value), ...pixels};
    }
"""


def encoded(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def element(tag: str, value: dict | None = None, name: str = "shown") -> dict:
    """An element with the id `name` and its content, for `put`."""
    ready = {key: encoded(part) if isinstance(part, np.ndarray) else part for key, part in (value or {}).items()}
    return {"tag": tag, "id": name, "property": PROPERTIES.get(tag, "film"), "value": ready or None}


def put(page, *elements: dict) -> None:
    """Replace the elements of the page."""
    page.evaluate(PUT, list(elements))


def give(page, tag: str, value: dict) -> None:
    """Replace the content of the element `#shown`."""
    page.evaluate("element => give(document.querySelector('#shown'), element)", element(tag, value))


@pytest.fixture
def visit(chromium, page_url):
    """Opens the page as new visitors and fails on script errors; for the options, see Playwright's `new_context`."""
    visits = []

    def come(query: str = "", **options) -> Visit:
        context = chromium.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
        visits.append((context, Visit(context, page_url + query)))
        return visits[-1][1]

    yield come
    for context, one in visits:
        context.close()
        assert not one.errors
