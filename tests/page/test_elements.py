"""The elements shared by both pages, in a browser on a separate page, with films of the bundled weights."""

import base64
import io
import re
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import images, sampling, weights
from tests.page.conftest import GIVE, element, encoded, give, put
from tests.server import ROOT

PAGE = ROOT / "model/page"
PLAYED = 3000  # milliseconds of the browser's clock, which the test controls, after which a film has ended
HARNESS = """<!doctype html><html lang="en"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><style>{css}</style>
<script>
    // What the large canvas of a film showed, in order.
    const painted = [], put = CanvasRenderingContext2D.prototype.putImageData;
    CanvasRenderingContext2D.prototype.putImageData = function (image, ...at) {{
        if (this.canvas.matches(".digits-large")) painted.push(grey(image));
        put.call(this, image, ...at);
    }};
    const base64 = bytes => btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""));
    const grey = image => base64(image.data.filter((_, i) => i % 4 === 0));
    const shown = canvas => grey(canvas.getContext("2d").getImageData(0, 0, 28, 28));
    const file = async blob => base64(new Uint8Array(await (await blob).arrayBuffer()));
</script>
<script>{give}</script><script>{files}</script><script>{film}</script><script>{sheet}</script>
<body style="margin: 16px; font-family: sans-serif"></body></html>"""


def numbers(text: str) -> np.ndarray:
    """Decode uint8 images `[·, 28, 28]` from base64."""
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, 28, 28)


@pytest.fixture(scope="module")
def draw():
    """Films as sent by the server, each drawn once: `draw("7", 67, 20)`, or several digits: `draw("190", 67, 8)`."""
    loaded, drawn = weights.load(), {}

    def draw(digits: str, seed: int, steps: int, guidance: float = 1.15) -> dict:
        key = digits, seed, steps, guidance
        if key not in drawn:
            network, config = loaded.choose(loaded.sampling.updated(steps=steps, guidance=guidance))
            seeds = list(range(seed, seed + len(digits)))
            film = sampling.draw_film(network, torch.tensor(list(map(int, digits))), seeds, config)
            arrays = {name: getattr(film, name).numpy() for name in ("noisy", "predicted", "velocity")}
            drawn[key] = {"digits": list(digits), "seeds": seeds, **asdict(config), "times": film.times, **arrays}
        return drawn[key]

    return draw


@pytest.fixture
def visit(chromium):
    """Open the page of the elements with a paused clock: `visit(width, reduced_motion)`; fails on script errors."""
    contexts, errors = [], []

    def visit(width: int = 900, height: int = 800, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.clock.install(time=0)
        page.clock.pause_at(1000)
        parts = {name: (PAGE / f"{name}.js").read_text(encoding="utf-8") for name in ("files", "film", "sheet")}
        page.route(
            "http://elements.test/**",
            lambda route: route.fulfill(
                content_type="text/html; charset=utf-8",
                body=HARNESS.format(css=(PAGE / "elements.css").read_text(encoding="utf-8"), give=GIVE, **parts),
            ),
        )
        page.goto("http://elements.test/")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not errors


def painted(page) -> list[np.ndarray]:
    """The pictures shown by the large canvas since the last call."""
    return [numbers(text)[0] for text in page.evaluate("painted.splice(0)")]


def shown(page, selector: str) -> np.ndarray:
    return numbers(page.evaluate("selector => shown(document.querySelector(selector))", selector))[0]


def places(pictures: list[np.ndarray], film: dict) -> list[int]:
    """The index of each picture in a film; raises ValueError for a picture that is not in it."""
    states = [state[0].tobytes() for state in film["noisy"]]
    return [states.index(picture.tobytes()) for picture in pictures]


def slider(page):
    return page.get_by_role("slider", name="Time, from noise to digit")


# ---- one digit


def test_a_new_digit_plays_once_from_noise_to_the_end(visit, draw):
    page, film = visit(), draw("7", 67, 20)
    put(page, element("digit-film", film))
    assert page.get_by_role("button", name="Pause").count() == 1
    page.clock.run_for(PLAYED)
    assert places(painted(page), film) == list(range(21))
    assert page.get_by_role("button", name="Play").count() == 1
    page.clock.run_for(PLAYED)
    assert not painted(page)
    assert page.locator(".digits-large").get_attribute("role") == "img"
    label = page.locator(".digits-large").get_attribute("aria-label")
    assert label == "A 7, drawn in 20 steps from the noise of seed 67"


def test_no_noise_is_seen_while_a_value_is_dragged(visit, draw):
    page = visit()
    put(page, element("digit-film", draw("7", 67, 20)))
    page.clock.run_for(500)  # in the middle of the animation
    painted(page)
    for steps, guidance in ((8, 1.15), (4, 1.15), (4, 2.0), (8, 1.15), (20, 1.15)):
        film = draw("7", 67, steps, guidance)
        give(page, "digit-film", film)
        page.clock.run_for(200)
        assert places(painted(page), film) == [steps]
    for film in (draw("3", 67, 8), draw("3", 5, 8)):  # another class, then another seed
        give(page, "digit-film", film)
        page.clock.run_for(PLAYED)
        assert places(painted(page), film) == list(range(9))


def test_the_time_is_moved_by_keyboard_mouse_and_film_strip(visit, draw):
    page, film = visit(), draw("7", 67, 20)
    put(page, element("digit-film", film))
    slider(page).focus()
    page.keyboard.press("ArrowRight")  # stops the animation
    page.clock.run_for(PLAYED)
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert slider(page).get_attribute("aria-valuetext") == f"t = {film['times'][3]:.2f}"
    assert places(painted(page), film) == [0, 1, 2, 3]
    assert (shown(page, ".digits-guess canvas") == film["predicted"][3, 0]).all()
    box = slider(page).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    assert places(painted(page), film)[-1] == 10
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert places(painted(page), film)[-1] == 20
    page.locator(".digits-frame").nth(2).click()
    assert places(painted(page), film) == [5]
    assert slider(page).input_value() == "5"
    assert page.locator("[data-current]").inner_text() == f"{film['times'][5]:.2f}"


def test_the_words_say_what_is_there(visit, draw):
    page, film = visit(reduced_motion="reduce"), draw("7", 67, 20)
    put(page, element("digit-film", film))
    said = page.locator(".digits-caption")
    assert said.inner_text() == "The finished digit, after 20 steps."
    slider(page).press("Home")
    assert said.inner_text() == "Pure noise. Beside it: the image that the network predicts from it."
    differences = np.abs(film["predicted"].astype(int) - film["noisy"][-1]).mean((1, 2, 3))
    for i in range(1, 20):
        slider(page).press("ArrowRight")
        assert said.inner_text().startswith(f"After {i} of 20 steps. ")
        assert ("already close" in said.inner_text()) == (differences[i] < 12)
    assert differences[1] > 12 > differences[19]


def test_a_replaced_film_keeps_the_time(visit, draw):
    page = visit()
    put(page, element("digit-film", draw("7", 67, 20)))
    page.locator(".digits-frame").nth(4).click()  # state 10, t = 0.62
    painted(page)
    for steps in (8, 4):
        film = draw("7", 67, steps)
        give(page, "digit-film", film)
        page.clock.run_for(PLAYED)
        nearest = int(np.abs(np.array(film["times"]) - draw("7", 67, 20)["times"][10]).argmin())
        assert places(painted(page), film) == [nearest]
        assert 0 < nearest < steps


def test_the_same_film_again_does_not_stop_it(visit, draw):
    page, film = visit(), draw("7", 67, 8)
    put(page, element("digit-film", film))
    page.clock.run_for(500)
    give(page, "digit-film", film)
    page.clock.run_for(PLAYED)
    assert places(painted(page), film) == list(range(9))


def test_play_pause_and_on_from_there(visit, draw):
    page, film = visit(), draw("7", 67, 20)
    put(page, element("digit-film", film))
    page.clock.run_for(PLAYED)
    painted(page)
    page.get_by_role("button", name="Play").click()
    page.clock.run_for(500)
    page.get_by_role("button", name="Pause").click()
    first = places(painted(page), film)
    page.clock.run_for(PLAYED)
    assert not painted(page)
    assert first[0] == 0
    assert 3 < first[-1] < 12
    page.get_by_role("button", name="Play").press("Space")
    page.clock.run_for(PLAYED)
    assert places(painted(page), film) == list(range(first[-1], 21))


def test_who_prefers_no_motion_sees_the_digit_at_once(visit, draw):
    page, film = visit(reduced_motion="reduce"), draw("7", 67, 8)
    put(page, element("digit-film", film))
    page.clock.run_for(PLAYED)
    assert places(painted(page), film) == [8]
    page.get_by_role("button", name="Play").click()
    page.clock.run_for(PLAYED)
    assert places(painted(page), film) == list(range(9))


GROW = """([{value}, count]) => {
    const film = digits.film(value), known = window.films ??= {};
    const name = film.digits + film.seeds + film.steps;
    known[name] ??= film;
    known[name].count = count;
    document.querySelector("#shown").film = known[name];
}"""


def grow(page, film: dict, count: int) -> list[int]:
    """Give the element the first `count` states of a film; returns the states that it showed."""
    page.evaluate(GROW, [element("digit-film", film), count])
    return places(painted(page), film)


def test_a_film_that_is_still_drawn_is_followed(visit, draw):
    page, film = visit(), draw("7", 67, 8)
    put(page, element("digit-film"))
    save = page.get_by_role("button", name="Save picture")
    assert grow(page, film, 1) == [0]
    assert save.is_disabled()
    assert [grow(page, film, count) for count in (2, 5, 9)] == [[1], [4], [8]]
    assert save.is_enabled()
    # The steps slider is dragged: the finished digit stays until the next one is complete.
    dragged = draw("7", 67, 4)
    assert [grow(page, dragged, count) for count in (1, 3, 5)] == [[], [], [4]]
    assert not page.locator(".digits-frame canvas.digits-none:not(.digits-velocity)").count()
    # Another class: the visitor goes back to the noise before it is finished.
    other = draw("3", 5, 8)
    assert [grow(page, other, count) for count in (1, 4)] == [[0], [3]]
    slider(page).press("Home")
    assert places(painted(page), other) == [0]
    assert [grow(page, other, count) for count in (6, 9)] == [[], []]
    page.clock.run_for(PLAYED)
    assert not painted(page)


def test_noise_that_waits_for_the_network_is_followed_by_its_film(visit, draw):
    page, film = visit(), draw("7", 67, 8)
    put(page, element("digit-film"))
    give(page, "digit-film", {**film, "count": 1})
    assert places(painted(page), film) == [0]
    assert [grow(page, film, count) for count in (1, 2, 9)] == [[0], [1], [8]]


def test_without_motion_a_film_that_is_drawn_shows_its_start_and_its_end(visit, draw):
    page, film = visit(reduced_motion="reduce"), draw("7", 67, 8)
    put(page, element("digit-film"))
    assert [grow(page, film, count) for count in (1, 2, 5, 9)] == [[0], [], [], [8]]
    other = draw("3", 5, 8)
    assert [grow(page, other, count) for count in (1, 5, 9)] == [[], [], [8]]


def test_the_strips_show_the_states_and_the_velocity(visit, draw):
    page, film = visit(reduced_motion="reduce"), draw("7", 67, 20)
    put(page, element("digit-film", film))
    chosen = [0, 3, 5, 8, 10, 13, 15, 18, 20]
    assert page.locator(".digits-frame").all_inner_texts() == [f"{film['times'][i]:.2f}" for i in chosen]
    for row in ("noisy", "predicted", "velocity"):
        drawn = page.eval_on_selector_all(f".digits-frame .digits-{row}", "all => all.map(shown)")
        for i, text in zip(chosen[: 8 if row == "velocity" else 9], drawn, strict=False):
            assert (numbers(text)[0] == film[row][i, 0]).all()
    velocities = page.locator("canvas.digits-velocity")
    assert not velocities.first.is_visible()
    page.get_by_label("Show the velocity").check()
    assert velocities.first.is_visible()
    assert not velocities.last.is_visible()  # the last state has no velocity
    give(page, "digit-film", draw("7", 67, 8))
    assert velocities.first.is_visible()
    give(page, "digit-film", {**film, "velocity": None})
    assert not velocities.first.is_visible()
    assert not page.get_by_label("Show the velocity").is_visible()


def test_a_film_of_one_step_and_other_subjects(visit, draw):
    page = visit(reduced_motion="reduce")
    film = draw("8", 5, 1, 0)
    put(page, element("digit-film", film))
    label = page.locator(".digits-large").get_attribute("aria-label")
    assert label == "An image of any class, drawn in 1 step from the noise of seed 5"
    assert page.locator(".digits-frame").count() == 2
    put(page, element("digit-film", {**film, "guidance": 1}))
    assert page.locator(".digits-large").get_attribute("aria-label").startswith("An 8, drawn in 1 step from")
    sketch = {**film, "seeds": None, "about": "A 3, finished from a sketch: seed 5, steps 1", "times": [0.6, 0]}
    put(page, element("digit-film", sketch))
    assert page.locator(".digits-large").get_attribute("aria-label") == "A 3, finished from a sketch"
    slider(page).press("Home")
    assert page.locator(".digits-caption").inner_text().startswith("The start: an image covered in noise.")


# ---- several digits


def test_a_row_plays_all_its_digits_together(visit, draw):
    page, film = visit(), draw("190", 67, 8)
    put(page, element("digit-row", film))
    page.clock.run_for(PLAYED)
    slider(page).press("ArrowLeft")
    for i, text in enumerate(page.eval_on_selector_all("canvas", "all => all.map(shown)")):
        assert (numbers(text)[0] == film["noisy"][7, i]).all()
    links = page.eval_on_selector_all("a", "all => all.map(a => a.getAttribute('href'))")
    assert links == [f"?digit={d}&seed={s}&steps=8&guidance=1.15" for d, s in (("1", 67), ("9", 68), ("0", 69))]
    assert page.get_by_role("link", name="A 9, drawn in 8 steps from the noise of seed 68").count() == 1
    morph = {"seeds": None, "predicted": None, "about": "A 1 that becomes a 0: seed 67"}
    put(page, element("digit-row", film | morph | {"captions": ["3", "between", "8"]}))
    page.clock.run_for(PLAYED)
    assert not page.get_by_role("link").count()
    assert page.locator(".digits-cell").all_inner_texts() == ["3", "between", "8"]
    assert page.get_by_role("img", name="between").count() == 1
    assert page.get_by_role("group", name="A 1 that becomes a 0").count() == 1
    give(page, "digit-row", film | morph | {"about": "A 1 that becomes a 0: seed 68"})
    assert page.locator(".digits-cell").all_inner_texts() == ["", "", ""]  # without captions
    assert not page.get_by_role("button", name="Pause").count()  # changed in place
    name, file = saved(page, "Save picture")
    assert name == "1-9-0.png"
    assert Image.open(file).text["Comment"] == "A 1 that becomes a 0: seed 68"


OPENED = """prevent => document.addEventListener("digit-open", event => {
    (window.opened ??= []).push(event.detail);
    if (prevent) event.preventDefault();
})"""


def test_a_cell_opens_its_digit(visit, draw):
    page, film = visit(), draw("190", 67, 8)
    put(page, element("digit-row", film))
    page.evaluate(OPENED, True)
    page.get_by_role("link").nth(1).click()
    page.get_by_role("link").nth(2).press("Enter")
    assert page.evaluate("opened") == [
        {"digit": "9", "seed": 68, "steps": 8, "guidance": 1.15},
        {"digit": "0", "seed": 69, "steps": 8, "guidance": 1.15},
    ]
    assert page.url == "http://elements.test/"
    page.get_by_role("link").nth(1).evaluate(
        "link => link.dispatchEvent(new MouseEvent('click', {ctrlKey: true, cancelable: true}))"
    )  # the browser opens a tab instead
    assert len(page.evaluate("opened")) == 2


def test_a_cell_that_nobody_opens_is_a_link(visit, draw):
    page = visit()
    put(page, element("digit-row", draw("190", 67, 8)))
    page.evaluate(OPENED, False)
    page.get_by_role("link").first.click()
    page.wait_for_url("http://elements.test/?digit=1&seed=67&steps=8&guidance=1.15")


def sheet_of(pixels, total: int, **others) -> dict:
    digits = [str(i % 10) for i in range(total)]
    config = {"steps": 8, "guidance": 1.15, "time_shift": 1.6}
    seeds = list(range(100, 100 + total))
    labels = {"labels": [i % 10 for i in range(total)], "total": total}
    return {"digits": digits, "seeds": seeds, **config, **labels, "columns": 4, "pixels": pixels, **others}


def test_a_sheet_grows_and_is_walked_by_arrow_keys(visit):
    page, pixels = visit(), torch.randint(0, 256, (10, 28, 28), dtype=torch.uint8).numpy()
    put(page, element("digit-sheet", sheet_of(pixels[:6], 10)))
    assert page.locator("a").count() == 6
    assert page.locator(".digits-cell").count() == 10
    assert "6 of 10 digits" in page.locator("#shown").inner_text()
    page.locator("a").nth(1).focus()
    for key, seed in (("ArrowDown", 105), ("ArrowLeft", 104), ("ArrowUp", 100), ("End", 105), ("Home", 100)):
        page.keyboard.press(key)
        assert f"seed={seed}&" in page.evaluate("document.activeElement.search")
    page.keyboard.press("ArrowRight")
    give(page, "digit-sheet", sheet_of(pixels, 10))
    assert page.locator("a").count() == 10
    assert "seed=101&" in page.evaluate("document.activeElement.search")  # the focus stays
    assert page.locator("a[tabindex='0']").count() == 1
    drawn = page.eval_on_selector_all("a canvas", "all => all.map(shown)")
    assert (np.concatenate([numbers(text) for text in drawn]) == pixels).all()
    put(page, element("digit-sheet", sheet_of(pixels[:2], 2)))
    assert page.locator(".digits-cell").count() == 2
    assert page.locator(".digits-caption").inner_text() == "2 digits"
    put(page, element("digit-sheet", sheet_of(pixels[:0], 10)))
    assert page.get_by_role("button", name="Save picture").is_disabled()


def test_a_table_of_steps_grows_by_columns(visit):
    page, pixels = visit(), torch.randint(0, 256, (3, 2, 28, 28), dtype=torch.uint8).numpy()
    columns = [
        {"steps": steps, "pixels": encoded(part), "milliseconds": milliseconds}
        for steps, part, milliseconds in zip((1, 2, 4), pixels, ([31.4], [62], [1250]), strict=True)
    ]
    value = {"digits": ["7", "black"], "seed": 5, "guidance": 1.15, "time_shift": 1.6}
    put(page, element("digit-steps", {**value, "columns": columns[:2]}))
    assert page.locator("a").count() == 4
    page.locator("a").nth(2).focus()  # black, 1 step
    give(page, "digit-steps", {**value, "columns": columns})
    assert page.evaluate("document.activeElement.search") == "?digit=black&seed=5&steps=1&guidance=1.15"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.search") == "?digit=black&seed=5&steps=4&guidance=1.15"
    drawn = [numbers(text)[0] for text in page.eval_on_selector_all("canvas", "all => all.map(shown)")]
    assert (np.array(drawn).reshape(2, 3, 28, 28) == pixels.transpose(1, 0, 2, 3)).all()
    assert page.locator("th").all_inner_texts() == ["1", "2", "4", "7", "black"]
    assert page.locator("tfoot").inner_text().split("\t")[-3:] == ["31 ms", "62 ms", "1.3 s"]
    assert page.get_by_role("link", name="A black image, drawn in 2 steps from the noise of seed 5").count() == 1


def test_a_table_of_steps_has_a_row_for_each_network(visit):
    """A digit is linked in the row of the network that the page uses for that number of steps."""
    page, pixels = visit(), torch.randint(0, 256, (2, 2, 28, 28), dtype=torch.uint8).numpy()
    columns = [
        {"steps": steps, "pixels": encoded(part), "milliseconds": milliseconds}
        for steps, part, milliseconds in zip((8, 9), pixels, ([31, 1250], [62, 9]), strict=True)
    ]
    rows = [{"name": "flow", "calls": 2, "opens": [9, 50]}, {"name": "map", "calls": 1, "opens": [1, 8]}]
    put(page, element("digit-steps", {"digits": ["7"], "seed": 5, "guidance": 1.5, "columns": columns, "rows": rows}))
    drawn = [numbers(text)[0] for text in page.eval_on_selector_all("canvas", "all => all.map(shown)")]
    assert (np.array(drawn).reshape(2, 2, 28, 28) == pixels.transpose(1, 0, 2, 3)).all()
    cells = [cell.split() for cell in page.locator("tbody td:has(canvas)").all_inner_texts()]
    assert [" ".join(cell) for cell in cells] == ["16 calls 31 ms", "18 calls 62 ms", "8 calls 1.3 s", "9 calls 9 ms"]
    assert page.locator("tbody th").all_inner_texts() == ["flow", "map"]
    assert page.locator("a").count() == 2
    for name in ("flow: A 7, drawn in 9 steps", "map: A 7, drawn in 8 steps"):
        assert page.get_by_role("link", name=f"{name} from the noise of seed 5").count() == 1
    assert page.get_by_role("img", name="flow: A 7, drawn in 8 steps from the noise of seed 5").count() == 1
    assert page.locator("tfoot").count() == 0


# ---- files


def made(page, script: str, *arguments) -> io.BytesIO:
    """The file created by a script of the page."""
    return io.BytesIO(base64.b64decode(page.evaluate(f"async values => file({script})", list(arguments))))


def test_png_files_have_the_exact_pixels(visit):
    page, pixels = visit(), torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    one = Image.open(made(page, "digits.png(digits.bytes(values[0]), 1, {scale: 16, comment: values[1]})",
                          encoded(pixels[:1]), "7: seed 67, guidance 1.15"))  # fmt: skip
    assert one.mode == "L"
    assert (np.array(one) == images.enlarge(pixels[0], 16)).all()
    assert one.text == {"Comment": "7: seed 67, guidance 1.15"}
    several = Image.open(made(page, "digits.png(digits.bytes(values[0]), 3, {scale: 2, comment: 'Ж: seed 1'})",
                              encoded(pixels)))  # fmt: skip
    assert (np.array(several) == np.array(images.sheet(pixels, 3))).all()
    assert several.text["Comment"] == "Ж: seed 1"
    assert "Comment" not in Image.open(made(page, "digits.png(digits.bytes(values[0]))", encoded(pixels[:1]))).info


def test_gif_files_loop_with_the_exact_pixels_of_every_frame(visit):
    frames = torch.randint(0, 256, (5, 3, 28, 28), dtype=torch.uint8)
    frames[1] = 0  # long runs
    frames[2] = frames[2] // 128 * 255
    page, texts = visit(), [encoded(frame) for frame in frames]
    made_of = "digits.gif(values.map(digits.bytes), 2, {scale: 4, milliseconds: 500, rest: 1000})"
    film = Image.open(made(page, made_of, *texts))
    assert film.n_frames == 5
    assert film.info["loop"] == 0
    durations = []
    for i, frame in enumerate(frames):
        film.seek(i)
        durations.append(film.info["duration"])
        assert (np.array(film.convert("L")) == np.array(images.sheet(frame, 2, scale=4))).all()
    assert durations == [100, 100, 100, 100, 1000]
    # Different lengths, so that the data ends at different code sizes of 9 to 12 bits and table sizes.
    for scale in (1, 2, 3):
        single = Image.open(made(page, f"digits.gif(values.map(digits.bytes), 1, {{scale: {scale}}})", *texts[:1]))
        assert (np.array(single.convert("L")) == np.array(images.sheet(frames[0], 1, scale=scale))).all()


def test_npz_files_are_data_sets(visit):
    page, pixels = visit(), torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8).numpy()
    file = made(page, "digits.npz(digits.bytes(values[0]), [3, 1, 4, 1, 11])", encoded(pixels))
    assert zipfile.ZipFile(file).testzip() is None
    file.seek(0)
    with np.load(file) as data:
        assert (data["images"] == pixels).all()
        assert (data["images"].dtype, data["images"].shape) == (np.uint8, (5, 28, 28))
        assert data["labels"].tolist() == [3, 1, 4, 1, 11]
        assert data["labels"].dtype == np.int64


def saved(page, button: str) -> tuple[str, Path]:
    """The name and file saved by a button."""
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return download.value.suggested_filename, download.value.path()


def test_a_digit_is_saved_as_picture_and_animation(visit, draw):
    page, film = visit(), draw("7", 67, 20)
    put(page, element("digit-film", film))
    page.clock.run_for(PLAYED)
    slider(page).press("Home")  # the finished digit is saved anyway
    name, file = saved(page, "Save picture")
    assert name == "7-seed67.png"
    picture = Image.open(file)
    assert picture.size == (448, 448)
    assert (np.array(picture) == images.enlarge(torch.from_numpy(film["noisy"][-1, 0]), 16)).all()
    config = sampling.SamplingConfig(film["steps"], film["guidance"], film["time_shift"])
    assert picture.text["Comment"] == config.recipe("7", 67)
    name, file = saved(page, "Save animation")
    assert name == "7-seed67.gif"
    animation = Image.open(file)
    assert animation.n_frames == 21
    animation.seek(9)
    assert (np.array(animation.convert("L"))[::12, ::12] == film["noisy"][9, 0]).all()


def test_a_long_number_is_saved_in_a_small_file(visit):
    count, steps = 16, 50
    noisy = torch.randint(0, 256, (steps + 1, count, 28, 28), dtype=torch.uint8).numpy()
    page, times = visit(reduced_motion="reduce"), torch.linspace(1, 0, steps + 1).tolist()
    film = {"digits": list("3141592653589793"), "seeds": list(range(count)), "steps": steps, "guidance": 1}
    film |= {"time_shift": 1, "times": times, "noisy": noisy, "predicted": noisy}
    put(page, element("digit-row", film))
    name, file = saved(page, "Save animation")
    animation = Image.open(file)
    assert name == "3141592653589793-seed0.gif"
    assert animation.n_frames == 24
    assert animation.width < 1000
    assert file.stat().st_size < 2e6  # pure noise is the worst case
    animation.seek(23)
    assert (np.array(animation.convert("L")) == np.array(images.sheet(torch.from_numpy(noisy[-1]), count))).all()
    name, file = saved(page, "Save picture")
    assert name == "3141592653589793-seed0.png"
    assert Image.open(file).text["Comment"].startswith("3,1,4,1,5,9")


def test_a_sheet_is_saved_as_far_as_it_is_drawn(visit):
    page, pixels = visit(), torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    put(page, element("digit-sheet", sheet_of(pixels.numpy(), 12)))
    name, file = saved(page, "Save picture")
    assert name == "digits-seed100.png"
    picture = Image.open(file)
    assert (np.array(picture) == np.array(images.sheet(pixels, 4, scale=8))).all()
    assert picture.text["Comment"] == "0,1,2,3,4: seed 100, steps 8, guidance 1.15, time_shift 1.6"
    name, file = saved(page, "Save data set (.npz)")
    assert name == "digits-seed100.npz"
    with np.load(file) as data:
        assert (data["images"] == pixels.numpy()).all()
        assert data["labels"].tolist() == [0, 1, 2, 3, 4]
    put(page, element("digit-sheet", sheet_of(pixels.numpy(), 5, labels=[5, 4, 3, 2, 1])))
    with np.load(saved(page, "Save data set (.npz)")[1]) as data:
        assert data["labels"].tolist() == [5, 4, 3, 2, 1]


# ---- words and layout


def test_links_have_the_page_s_form(visit):
    page = visit()
    for values, query in (
        ({"digit": "7", "seed": 42, "steps": 8, "guidance": 1.15}, "?digit=7&seed=42&steps=8&guidance=1.15"),
        ({"digit": "a b", "seed": 0, "steps": 1, "guidance": 1.0}, "?digit=a%20b&seed=0&steps=1&guidance=1"),
        ({"digit": "7", "seed": 1, "steps": 2, "guidance": 0.1 + 0.2}, "?digit=7&seed=1&steps=2&guidance=0.3"),
    ):
        assert page.evaluate("digits.link", values) == query


@pytest.mark.parametrize("width", [320, 375, 900])
def test_everything_fits_its_width(visit, draw, width):
    page, film = visit(width, 667, reduced_motion="reduce"), draw("7", 67, 20)
    pixels = np.zeros((40, 28, 28), np.uint8)
    steps = {"digits": ["7"], "seed": 5, "guidance": 1, "time_shift": 1.6}
    column = {"steps": 1, "pixels": encoded(pixels[0]), "milliseconds": [3]}
    wide = [{"steps": 32, "pixels": encoded(pixels[:2]), "milliseconds": [99_999, 888]} for _ in range(6)]
    rows = [{"name": "flow", "calls": 2, "opens": [9, 50]}, {"name": "map", "calls": 1, "opens": [1, 8]}]
    put(
        page,
        element("digit-film", film, "film"),
        element("digit-row", draw("190", 67, 8), "row"),
        element("digit-sheet", sheet_of(pixels, 60, columns=20), "sheet"),
        element("digit-steps", {**steps, "columns": [column]}, "steps"),
        element("digit-steps", {**steps, "columns": wide, "rows": rows}, "kinds"),
    )
    cells = page.eval_on_selector_all("#kinds td", "all => all.map(one => [one.scrollWidth, one.clientWidth])")
    assert all(needed <= there for needed, there in cells)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    large, guess = (page.locator(f".digits-{name}").first.bounding_box() for name in ("large", "guess"))
    assert large["width"] == large["height"]
    assert large["width"] % 28 == 0
    assert large["width"] == {320: 168, 375: 224, 900: 336}[width]
    assert guess["x"] >= large["x"] + large["width"]  # side by side
    assert guess["y"] >= large["y"]
    for frame in page.locator(".digits-frame").all():
        assert frame.bounding_box()["width"] >= 44
    strip = page.locator(".digits-strip")
    assert strip.evaluate("strip => strip.scrollWidth > strip.clientWidth") == (width < 900)
    if width < 900:  # it scrolls along with the time
        end = strip.evaluate("strip => strip.scrollLeft")
        slider(page).first.press("Home")
        assert strip.evaluate("strip => strip.scrollLeft") == 0 < end
    assert page.locator("#steps canvas").bounding_box()["width"] < 100
    assert page.locator("#sheet canvas").first.bounding_box()["width"] <= 84


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_focus_are_easy_to_see(visit, draw, scheme):
    page = visit(color_scheme=scheme, reduced_motion="reduce")
    put(page, element("digit-film", draw("7", 67, 8)))
    colors = page.evaluate("""() => {
        const names = ["ink", "muted", "accent", "surface"], probe = document.body;
        return Object.fromEntries(names.map(name => {
            probe.style.color = `var(--digits-${name})`;
            return [name, getComputedStyle(probe).color];
        }));
    }""")

    def luminance(color: str) -> float:
        parts = np.array([int(part) for part in re.findall(r"\d+", color)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    ground = luminance(colors["surface"])
    assert (ground < 0.5) == (scheme == "dark")
    for name in ("ink", "muted", "accent"):
        low, high = sorted((ground, luminance(colors[name])))
        assert (high + 0.05) / (low + 0.05) >= 4.5
    for target in (slider(page), page.get_by_role("button", name="Play"), page.get_by_label("Show the velocity")):
        target.focus()
        page.keyboard.press("Shift")  # a key press makes the browser show the focus
        assert target.evaluate("target => getComputedStyle(target).outlineStyle") == "solid"
