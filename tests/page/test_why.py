"""The scenes of why.js on a separate page, with known pictures."""

import numpy as np
import pytest

from tests.page.conftest import GIVE, element, encoded, give, put, rgba
from tests.server import ROOT

PAGE = ROOT / "model" / "page"
SCRIPTS, STYLES = (
    [(PAGE / name).read_text(encoding="utf-8") for name in names]
    for names in (("film.js", "forms.js", "why.js"), ("elements.css", "why.css"))
)
PIXELS = """canvas => [...canvas.getContext("2d").getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 0)"""
HOW = {"guidance": 1.5, "time_shift": 1.0}


def grey(*values: int) -> np.ndarray:
    """One uniform image per value, with an inverted first pixel: `[N, 28, 28]`."""
    images = np.broadcast_to(np.array(values, np.uint8)[:, None, None], (len(values), 28, 28)).copy()
    images[:, 0, 0] = 255 - images[:, 0, 0]
    return images


NOISY, PREDICTED = grey(10, 60, 110, 160), grey(20, 70, 120, 160)
VELOCITY = np.full((3, 28, 28), 128, np.uint8)
VELOCITY[:, :, :14], VELOCITY[:, :14, 14:] = 255, 0  # darker on the left, brighter at the top right, else unchanged
FILM = {
    **{"digits": ["7"], "seeds": [67], "steps": 3, **HOW, "times": [1, 0.6, 0.3, 0]},
    **{"noisy": NOISY, "predicted": PREDICTED, "velocity": VELOCITY},
}
PATHS = {
    **{"digits": ["8"], "seeds": [5, 6], "steps": 20, **HOW, "dots": [[10, 5], [10, -5], [12, 0]]},
    "runs": [
        {
            "kind": "velocity",
            "steps": steps,
            "path": [[[10 * i / steps, 4 * i / steps], [10 * i / steps, -i / steps]] for i in range(steps + 1)],
            "aims": [[[10, 4], [10, -1]]] * steps,
            "pixels": encoded(grey(steps, 100 + steps)),
        }
        for steps in (1, 4, 20)
    ],
}


def styles(*seeds: int, guidance: float = 1.5) -> dict:
    """A film of two classes from the noise of each seed; the digit of class k of seed s is 10·k + s."""
    ends = [value for seed in seeds for value in (10 + seed, 20 + seed)]
    return {
        **{"digits": ["1", "2"] * len(seeds), "seeds": [seed for seed in seeds for _ in "12"], "steps": 20, **HOW},
        **{"guidance": guidance, "times": [1, 0.5, 0]},
        "noisy": np.stack([grey(*[200 + seed for seed in seeds for _ in "12"]), grey(*ends), grey(*ends)]),
    }


@pytest.fixture
def opened(chromium):
    """Open a page with elements, with reduced motion by default; fails on script errors."""
    contexts, errors = [], []

    def open(*elements: dict, width: int = 800, motion: str = "reduce", scheme: str = "light"):
        size = {"width": width, "height": 700}
        contexts.append(chromium.new_context(viewport=size, reduced_motion=motion, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_content(
            f"<!doctype html><style>body {{ margin: 16px }} {''.join(STYLES)}</style>"
            + "".join(f"<script>{script}</script>" for script in (GIVE, *SCRIPTS))
        )
        put(page, *elements)
        return page

    yield open
    for context in contexts:
        context.close()
    assert not errors


def shown(locator) -> np.ndarray:
    return np.array(locator.evaluate(PIXELS)).reshape(28, 28)


def press(page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


# ---- one step


def pictures(page) -> tuple[np.ndarray, np.ndarray]:
    """The current picture and the one the arrows lead to."""
    return shown(page.get_by_label("The picture after")), shown(page.get_by_label("Where the arrows lead, after"))


def test_one_step_shows_the_next_state_and_where_it_leads(opened):
    page = opened(element("digit-arrows", FILM))
    for i in range(4):
        for found, expected in zip(pictures(page), (NOISY[i], PREDICTED[i]), strict=True):
            assert np.array_equal(found, expected)
        words = page.locator(".why-caption").inner_text()
        assert words.startswith(("Pure noise", "After 1 of 3 steps", "After 2 of 3 steps", "Done: in 3 steps")[i])
        assert page.get_by_role("button", name="One step").is_enabled() == (i < 3)
        if i < 3:
            press(page, "One step")


def test_a_step_goes_straight_from_one_state_to_the_next(opened):
    page = opened(element("digit-arrows", FILM), motion="no-preference")
    page.evaluate("""() => {
        window.seen = [];
        const put = CanvasRenderingContext2D.prototype.putImageData;
        CanvasRenderingContext2D.prototype.putImageData = function(image, ...place) {
            if (this.canvas.ariaLabel.startsWith("The picture")) seen.push([image.data[0], image.data[4]]);
            put.call(this, image, ...place);
        };
    }""")
    press(page, "One step")
    page.get_by_label("The picture after 1 of 3 steps").wait_for()
    first, second = np.array(page.evaluate("seen")).T
    assert (first[-1], second[-1]) == (195, 60)
    assert np.all(np.diff(second) >= 0)
    assert len(set(second)) > 2
    assert np.all(np.abs(first + second - 255) <= 1)  # the two pixels change by the same amount in opposite directions


def test_the_rest_of_the_steps_and_back_to_the_noise(opened):
    for motion in ("reduce", "no-preference"):
        page = opened(element("digit-arrows", FILM), motion=motion)
        press(page, "One step")
        press(page, "All the rest")
        page.get_by_label("The picture after 3 of 3 steps").wait_for()
        assert np.array_equal(pictures(page)[0], NOISY[3])
        press(page, "Start again")
        assert np.array_equal(pictures(page)[0], NOISY[0])


def test_the_rest_of_the_steps_is_announced_once(opened):
    page = opened(element("digit-arrows", FILM), motion="no-preference")
    page.evaluate("""() => {
        window.said = [];
        const caption = document.querySelector("[aria-live]"), tell = () => said.push(caption.textContent);
        new MutationObserver(tell).observe(caption, {childList: true});
    }""")
    press(page, "All the rest")
    page.get_by_label("The picture after 3 of 3 steps").wait_for()
    assert page.evaluate("said") == ["Done: in 3 steps the noise has become a 7. Every step began with a fresh look."]


def test_a_step_by_keyboard(opened):
    page = opened(element("digit-arrows", FILM))
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Space")
    assert np.array_equal(pictures(page)[0], NOISY[2])
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "Start again"  # the only button still enabled
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "One step"


def test_arrows_point_up_where_it_gets_brighter_and_down_where_darker(opened):
    page = opened(element("digit-arrows", FILM))
    red, _, blue, opaque = rgba(page.locator(".why-field")).transpose(2, 0, 1).astype(int)
    side = len(opaque)

    def arrow(row: int, column: int) -> tuple[slice, slice]:
        return tuple(slice(round(place * side / 28), round((place + 1) * side / 28)) for place in (row, column))

    for row, column, brighter in ((3, 20, True), (3, 3, False), (25, 5, False)):
        cell = arrow(row, column)
        up, down = np.split(opaque[cell][: len(opaque[cell]) // 2 * 2].astype(bool), 2)
        assert (down.sum() > up.sum()) == brighter  # a triangle is widest at its base
        assert (red[cell].sum() > blue[cell].sum()) == brighter
    assert not opaque[arrow(25, 20)].any()


def test_the_place_stays_for_the_same_digit_but_not_for_another(opened):
    page = opened(element("digit-arrows", FILM))
    press(page, "One step")
    give(page, "digit-arrows", FILM)
    assert np.array_equal(pictures(page)[0], NOISY[1])
    give(page, "digit-arrows", {**FILM, "digits": ["3"]})
    assert np.array_equal(pictures(page)[0], NOISY[0])
    assert "Asked for a 3" in page.locator("digit-arrows").inner_text()


def test_a_step_of_a_flow_map_is_a_jump(opened):
    words = {}
    for kind in ("velocity", "flow map"):
        page = opened(element("digit-arrows", {**FILM, "kind": kind}))
        page.locator("summary").click()
        words[kind] = page.locator("digit-arrows").inner_text()
    assert "moves every pixel a little along its arrow" in words["velocity"]
    assert "a step is x + (t′ − t)·v" in words["velocity"]
    assert "but a blurred one" in words["velocity"]
    assert "one step jumps" in words["flow map"]
    assert "a step is x + (t′ − t)·u(x, t, t′)" in words["flow map"]
    assert "Beside it is where one jump to the end would land." in words["flow map"]
    assert not [part for part in ("blurred", "x − t·v", "a little along") if part in words["flow map"]]
    page = opened(element("digit-arrows", FILM))  # without a kind
    page.locator("summary").click()
    assert page.locator("digit-arrows").inner_text() == words["velocity"]


# ---- many paths


def ends(page) -> list[np.ndarray]:
    return [shown(one) for one in page.locator(".why-ends canvas").all()]


def points(page, path: int) -> np.ndarray:
    """The points of a path on the map, `[steps + 1, 2]`."""
    text = page.locator(f".why-path[data-path='{path}'] .why-line").get_attribute("points")
    return np.array([[float(value) for value in point.split(",")] for point in text.split()])


def test_the_steps_are_chosen_and_the_paths_lie_where_the_data_say(opened):
    page = opened(element("digit-paths", PATHS))
    for steps in (20, 1, 4):
        if steps < 20:  # the default
            press(page, f"{steps} step{'s' * (steps > 1)}")
        assert [len(points(page, path)) for path in (0, 1)] == [steps + 1] * 2
        upper, lower = (np.diff(points(page, path)[[0, -1]], axis=0)[0] for path in (0, 1))
        scale = upper[0] / 10
        assert np.allclose(upper, [10 * scale, -4 * scale], atol=0.3)  # y decreases upwards
        assert np.allclose(lower, [10 * scale, scale], atol=0.3)
        for found, expected in zip(ends(page), grey(steps, 100 + steps), strict=True):
            assert np.array_equal(found, expected)
        words = page.locator(".why-caption").inner_text()
        assert words.startswith("In one step" if steps == 1 else f"In {steps} steps")
        assert steps < 20 or words.endswith("every patch of noise ends at its own 8.")
        pressed = page.locator(".why-buttons [aria-pressed=true]").all_inner_texts()
        assert pressed == ["1 step" if steps == 1 else f"{steps} steps"]


def test_the_jump_of_a_flow_map_is_shown_beside_the_flow(opened):
    jump = {**PATHS["runs"][0], "kind": "flow map", "pixels": encoded(grey(7, 107))}
    page = opened(element("digit-paths", {**PATHS, "runs": [*PATHS["runs"], jump]}))
    assert page.locator("h3").inner_text() == "Why not in one big step?"
    assert page.locator(".why-buttons button").all_inner_texts() == ["1 step", "4 steps", "20 steps", "1 jump"]
    assert page.locator(".why-buttons [aria-pressed=true]").inner_text() == "20 steps"
    press(page, "1 jump")
    assert np.array_equal(ends(page)[0], grey(7)[0])
    assert page.locator(".why-caption").inner_text().startswith("In one jump. The flow map has learned")
    assert page.locator(".why-note").inner_text().startswith("Left to right")  # the jump itself is the only line


def test_a_flow_map_may_take_one_big_step(opened):
    runs = [{**run, "kind": "flow map"} for run in PATHS["runs"]]
    page = opened(element("digit-paths", {**PATHS, "kind": "flow map", "runs": runs}))
    assert page.locator("h3").inner_text() == "Is one big step enough?"
    assert "Dashed: where one jump would have landed" in page.locator(".why-note").inner_text()
    for name, words in (("1 step", "so it goes there at once"), ("4 steps", "After each jump")):
        press(page, name)
        assert words in page.locator(".why-caption").inner_text()


def test_a_path_is_picked_by_mouse_and_by_keyboard(opened):
    page = opened(element("digit-paths", PATHS))
    large = page.locator(".why-end canvas")
    assert np.array_equal(shown(large), grey(20)[0])
    x, y = points(page, 1)[10]
    svg, box = page.locator("svg"), page.locator("svg").bounding_box()
    scale = box["width"] / float(svg.get_attribute("viewBox").split()[2])
    page.mouse.move(box["x"] + x * scale, box["y"] + y * scale)
    assert np.array_equal(shown(large), grey(120)[0])
    assert page.locator(".why-path[data-chosen] .why-aims line").count() == 20
    assert large.get_attribute("aria-label") == "An 8, drawn in 20 steps from the noise of seed 6"
    page.locator(".why-ends [aria-pressed=true]").focus()
    page.keyboard.press("ArrowUp")
    assert np.array_equal(shown(large), grey(20)[0])
    assert page.locator(".why-ends button[tabindex='0']").count() == 1
    page.get_by_role("button", name="1 step", exact=True).press("Enter")
    assert np.array_equal(shown(large), grey(1)[0])


# ---- one noise, ten digits


def rows(page) -> list[list[int]]:
    """One pixel of every picture, row by row, noise first."""
    return [[shown(one)[5, 5] for one in row.locator("canvas").all()] for row in page.locator(".why-style").all()]


def test_a_row_is_one_noise_and_its_digits_which_are_links(opened):
    page = opened(element("digit-styles", styles(3, 4)))
    assert rows(page) == [[203, 13, 23], [204, 14, 24]]
    links = [link.get_attribute("href") for link in page.locator(".why-style a").all()]
    assert links[1] == "?digit=2&seed=3&steps=20&guidance=1.5"
    page.evaluate("addEventListener('digit-open', event => { event.preventDefault(); window.got = event.detail; })")
    page.get_by_label("A 1, drawn in 20 steps from the noise of seed 4").click()
    assert page.evaluate("got") == {"digit": "1", "seed": 4, "steps": 20, "guidance": 1.5}


def test_digits_emerge_from_their_noise_once(opened):
    page = opened(element("digit-styles", styles(3)), motion="no-preference")
    assert page.locator(".why-style canvas").nth(1).evaluate(PIXELS)[5] in (203, 13)
    page.wait_for_function(f"({PIXELS})(document.querySelectorAll('.why-style canvas')[2])[5] === 23")
    now = page.evaluate(
        f"film => {{ give(shown, film); return ({PIXELS})(document.querySelectorAll('canvas')[1])[5]; }}",
        element("digit-styles", styles(3)),
    )
    assert now == 13


def test_another_noise_is_asked_for_and_its_row_goes_on_top(opened):
    page = opened(element("digit-styles", styles(3, 4)))
    page.evaluate("addEventListener('digit-noise', event => window.seed = event.detail.seed)")
    press(page, "New noise")
    assert 0 <= page.evaluate("seed") < 10_000
    give(page, "digit-styles", styles(9))
    assert [row[0] for row in rows(page)] == [209, 203, 204]
    give(page, "digit-styles", styles(7))
    assert [row[0] for row in rows(page)] == [207, 209, 203]
    give(page, "digit-styles", styles(2, guidance=3))
    assert [row[0] for row in rows(page)] == [202]  # the others had other settings


# ---- all three


@pytest.mark.parametrize("width", [320, 375, 1100])
def test_no_page_scrolls_sideways(opened, width):
    scenes = {"digit-arrows": FILM, "digit-paths": PATHS, "digit-styles": styles(3, 4)}
    page = opened(*(element(tag, data, tag) for tag, data in scenes.items()), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".why-map").bounding_box()["width"] > 0.8 * min(width - 32, 640)
    ends, plane = (page.locator(name).bounding_box() for name in (".why-ends", ".why-map svg"))
    assert abs(ends["height"] - plane["height"]) <= 8
