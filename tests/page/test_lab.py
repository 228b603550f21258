"""The drawing sheet in a real browser: from strokes to pixels."""

import numpy as np
import pytest

from tests.page.conftest import rgba
from tests.server import ROOT

PAGE = ROOT / "model/page"
SEVEN = [[0.25, 0.25], [0.65, 0.25], [0.45, 0.65]]  # as wide as it is high
ELL = [[0.5, 0.1], [0.5, 0.5], [0.7, 0.5]]  # twice as high as wide


def source(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


HARNESS = (
    '<!doctype html><meta name="viewport" content="width=device-width">'
    f"<style>{source('elements.css')}{source('lab.css')}</style>"
    + "".join(f"<script>{source(name)}</script>" for name in ("files.js", "film.js", "lab.js"))
    + '<main><digit-sketch id="sketch"></digit-sketch></main><div style="height: 3000px"></div>'
    + "<script>var events = []; addEventListener('digit-sketch', event => events.push(event.detail.pixels))</script>"
)


@pytest.fixture
def sheet(chromium):
    """A phone page with only a sheet; fails on script errors."""
    context = chromium.new_context(viewport={"width": 375, "height": 667}, has_touch=True, is_mobile=True)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_content(HARNESS)
    yield page
    context.close()
    assert not errors


def on_paper(page, points) -> list[tuple[float, float]]:
    """Points on the sheet, from 0 to 1, in window coordinates."""
    box = page.locator(".lab-paper").bounding_box()
    return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]


def draw(page, points, button: str = "left") -> None:
    """One stroke with the mouse."""
    first, *rest = on_paper(page, points)
    page.mouse.move(*first)
    page.mouse.down(button=button)
    for point in rest:
        page.mouse.move(*point, steps=5)
    page.mouse.up(button=button)


def events(page) -> list:
    return page.evaluate("events")


def result(page) -> np.ndarray:
    return np.array(page.evaluate("document.querySelector('digit-sketch').pixels")).reshape(28, 28)


def of(page, *strokes) -> np.ndarray:
    """The pixels of strokes set by a script."""
    page.evaluate("strokes => document.querySelector('digit-sketch').strokes = strokes", list(map(list, strokes)))
    return result(page)


def middle(pixels: np.ndarray) -> np.ndarray:
    """The centre of mass: row, column."""
    return (np.indices(pixels.shape) * pixels).sum((1, 2)) / pixels.sum()


def sides(pixels: np.ndarray) -> tuple[int, int]:
    """Height and width of the ink: the rows and columns whose brightest pixel is at least 96 of 255."""
    return tuple(int((pixels.max(axis) >= 96).sum()) for axis in (1, 0))


def test_a_stroke_becomes_20_pixels_high_around_its_centre_of_mass(sheet):
    draw(sheet, ELL)
    pixels = result(sheet)
    height, width = sides(pixels)
    assert height in (19, 20)
    assert width in (11, 12)  # half of 17.5, plus the pen's 2.5
    assert middle(pixels) == pytest.approx([14, 14], abs=0.1)  # as in MNIST, on average
    assert pixels.max() == 255
    assert 0.1 < ((pixels > 0) & (pixels < 255)).sum() / (pixels > 0).sum() < 0.8  # antialiased
    assert pixels[:8, 17:].sum() == 0 < pixels[20:, 17:].sum()  # upright, with its foot to the right


def test_size_and_place_of_a_drawing_do_not_matter(sheet):
    large = of(sheet, SEVEN)
    small = of(sheet, (np.array(SEVEN) / 3 + [0.6, 0.1]).tolist())
    assert np.abs(large - small).max() <= 8  # same line width, up to rounding
    assert np.abs(large - of(sheet, ELL)).max() > 200


def test_what_weighs_on_one_end_is_not_cut_off(sheet):
    scribble = [[0.1 + 0.8 * (i % 2), 0.1 + 0.006 * i] for i in range(21)]
    pixels = of(sheet, scribble, [[0.5, 0.1], [0.5, 0.9]])
    assert sides(pixels)[0] == 20
    assert pixels[-1].max() >= 96  # it touches the edge
    assert middle(pixels)[0] < 13  # centring the mass would cut it off
    assert middle(pixels)[1] == pytest.approx(14, abs=0.1)


def test_a_tap_is_a_dot_in_the_middle(sheet):
    sheet.touchscreen.tap(*on_paper(sheet, [(0.2, 0.7)])[0])
    pixels = result(sheet)
    assert middle(pixels) == pytest.approx([14, 14], abs=0.05)
    assert pixels.sum() / 255 == pytest.approx(np.pi * 1.25**2, abs=0.4)  # a circle as wide as the pen


def test_a_finger_draws_and_does_not_scroll_and_a_second_one_does_nothing(sheet):
    drawn = of(sheet, ELL)
    sheet.evaluate("document.querySelector('digit-sketch').strokes = []")
    touch = sheet.context.new_cdp_session(sheet)

    def send(kind, *points):
        places = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(on_paper(sheet, points))]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    send("touchStart", ELL[0])
    second = (0.1, 0.9)
    send("touchStart", ELL[0], second)
    for start, end in ((ELL[0], ELL[1]), (ELL[1], ELL[2])):
        for part in np.linspace(0, 1, 6):
            send("touchMove", (np.array(start) + part * (np.array(end) - start)).tolist(), second)
    send("touchEnd", second)
    send("touchEnd")
    sheet.wait_for_function("events.length === 1")
    assert np.abs(result(sheet) - drawn).max() <= 60  # touch positions are rounded
    assert sheet.evaluate("scrollY") == 0


def test_each_stroke_and_each_undo_is_told_once(sheet):
    draw(sheet, SEVEN)
    assert len(events(sheet)) == 1
    assert events(sheet)[0] == result(sheet).flatten().tolist()
    draw(sheet, [[0.3, 0.5], [0.7, 0.5]])
    one, two = events(sheet)
    assert one != two
    sheet.mouse.move(*on_paper(sheet, [(0.1, 0.1)])[0])  # no button pressed
    draw(sheet, ELL, button="right")
    assert len(events(sheet)) == 2
    sheet.get_by_role("button", name="Undo").click()
    assert events(sheet)[2] == one
    assert len(sheet.evaluate("document.querySelector('digit-sketch').strokes")) == 1


def test_a_cleared_sheet_is_empty_and_says_so(sheet):
    words = sheet.get_by_role("status")
    assert "Draw a digit" in words.inner_text()
    draw(sheet, SEVEN)
    draw(sheet, ELL)
    assert "Scaled to 20 × 20 pixels and centred by its mass" in words.inner_text()
    sheet.get_by_role("button", name="Clear").focus()
    sheet.keyboard.press("Enter")
    assert sheet.evaluate("document.querySelector('digit-sketch').pixels") is None
    assert "Draw a digit" in words.inner_text()
    draw(sheet, SEVEN)
    first, _, cleared, again = events(sheet)
    assert cleared is None
    assert again == first  # the cleared strokes are gone


def test_the_small_picture_shows_the_pixels_and_the_large_one_the_strokes(sheet):
    pixels = of(sheet, SEVEN)
    assert np.array_equal(rgba(sheet.locator(".lab-side canvas"))[..., 0], pixels)
    large = rgba(sheet.locator(".lab-paper"))[..., 0]
    side = len(large)
    for x, y in SEVEN:
        assert large[round(y * side), round(x * side)] == 255
    assert large[round(0.65 * side), round(0.65 * side)] == 0


@pytest.mark.parametrize("width", [320, 375, 900])
def test_the_sheet_fits(sheet, width):
    sheet.set_viewport_size({"width": width, "height": 667})
    assert sheet.evaluate("document.documentElement.scrollWidth") <= width
    box = sheet.locator(".lab-paper").bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1)
    assert box["width"] == 280 or width < 400
    assert box["width"] >= 200
