"""The page as visitors and programs use it: a real server, a real browser, real HTTP."""

import asyncio
import base64
import io
import json
import pickle
import random
import re
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

import app
from model import weights
from model.sampling import draw_film
from tests.benchmark.load import flood
from tests.server import ROOT, ask, close, memory_of, serve, wait_until


@pytest.fixture(scope="session")
def bundled() -> weights.Weights:
    return weights.load()


SEED, STEPS = app.START["seed"], weights.read(weights.BUNDLED).sampling.steps  # what the page opens with


def digit(bundled, label, seed, steps, guidance=None) -> np.ndarray:
    """What the page has to show, drawn here; the guidance is the weights' own unless given."""
    sampling = replace(bundled.sampling, steps=steps)
    sampling = sampling if guidance is None else replace(sampling, guidance=guidance)
    film = draw_film(bundled.network, torch.tensor([label]), [seed], sampling)
    return film.digits[0].numpy().astype(int)


def decoded(source: str) -> np.ndarray:
    """The pixels of a data URI; of an animation, its last frame."""
    file = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))
    file.seek(getattr(file, "n_frames", 1) - 1)
    return np.array(file.convert("L")).astype(int)


# ---- the browser


@pytest.fixture
def tab(chromium, page_url):
    """A fresh visitor on the page, who sees no script error."""
    context = chromium.new_context(viewport={"width": 1100, "height": 900})
    page = context.new_page()
    page.set_default_timeout(120_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(page_url)
    page.wait_for_selector(".digit img")
    settle(page)
    yield page
    context.close()
    assert not errors


def settle(page) -> str:
    """Wait until nothing is on its way any more; the source of the large picture."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(300)
    return page.locator(".digit img").get_attribute("src")


def changed(page, before: str) -> str:
    """The source of the large picture once it is another one."""
    page.wait_for_function("before => document.querySelector('.digit img').src !== before", arg=before)
    return settle(page)


def test_it_opens_with_a_digit_and_its_film(tab, bundled):
    image = tab.locator(".digit img")
    assert image.get_attribute("alt") == f"A 7, drawn in {STEPS} steps from the noise of seed {SEED}"
    assert close(decoded(image.get_attribute("src")), digit(bundled, 7, SEED, STEPS))
    assert tab.locator(".strip").count() == 2
    assert tab.locator(".strip img").count() == 18
    assert "5.86 M parameters · weights: bundled" in tab.locator("#status").inner_text()


def test_a_class_by_mouse_and_the_steps_by_keyboard(tab, bundled):
    before = tab.locator(".digit img").get_attribute("src")
    tab.locator(".classes label").filter(has_text=re.compile("^ *3 *$")).first.click()
    after = changed(tab, before)
    assert close(decoded(after), digit(bundled, 3, SEED, STEPS))
    slider = tab.get_by_role("slider").first
    slider.focus()
    for _ in range(3):
        slider.press("ArrowLeft")
    changed(tab, after)
    tab.wait_for_function(f"document.querySelector('.digit img').alt.includes('{STEPS - 3} steps')")
    assert close(decoded(settle(tab)), digit(bundled, 3, SEED, STEPS - 3))


def test_a_class_by_keyboard(tab, bundled):
    before = tab.locator(".digit img").get_attribute("src")
    tab.get_by_role("radio", name="7").first.focus()
    tab.keyboard.press("Tab")
    tab.keyboard.press("Space")
    eight = changed(tab, before)
    assert close(decoded(eight), digit(bundled, 8, SEED, STEPS))
    tab.keyboard.press("ArrowLeft")
    seven = changed(tab, eight)
    assert close(decoded(seven), digit(bundled, 7, SEED, STEPS))
    tab.keyboard.press("ArrowDown")
    assert close(decoded(changed(tab, seven)), digit(bundled, 8, SEED, STEPS))


def test_the_dice_gives_another_seed_and_draws_it(tab, bundled):
    before = tab.locator(".digit img").get_attribute("src")
    tab.get_by_role("button", name="Another seed").click()
    after = changed(tab, before)
    seed = int(tab.get_by_label("Seed").first.input_value())
    assert seed != SEED
    assert close(decoded(after), digit(bundled, 7, seed, STEPS))


def test_the_velocity_is_shown_on_demand(tab):
    tab.get_by_label("Show the velocity").check()
    tab.wait_for_function("document.querySelectorAll('.strip').length === 3")
    assert tab.get_by_alt_text("velocity at t = 1.00").count() == 1


@pytest.mark.parametrize(
    ("name", "value", "shown"), [("seed", "", "None"), ("seed", "7.5", "7.5"), ("steps", "", "None")]
)
def test_a_bad_value_is_a_sentence_and_picture_and_address_stay(tab, name, value, shown):
    tab.get_by_role("button", name="Another seed").click()
    tab.wait_for_url("**/?digit=7&seed=*")
    before, address = settle(tab), tab.url
    box = {"seed": tab.get_by_label("Seed").first, "steps": tab.get_by_label("number input for Steps").first}[name]
    box.fill(value)
    tab.wait_for_function(f"document.querySelector('#status').innerText.includes('{name} must be a whole number')")
    assert f"not {shown}." in tab.locator("#status").inner_text()
    assert settle(tab) == before
    assert tab.url == address


def test_a_typed_number_that_is_clamped_is_what_is_drawn(tab, bundled):
    box = tab.get_by_label("number input for Steps").first
    box.fill("900")
    tab.wait_for_function(
        "document.querySelector('#status').innerText.includes('steps must be a whole number from 1 to 50, not 900')"
    )
    box.blur()
    tab.wait_for_function("document.querySelector('.digit img').alt.includes('in 50 steps')")
    assert box.input_value() == "50"
    assert close(decoded(settle(tab)), digit(bundled, 7, SEED, 50))


def test_saved_files_are_the_digit_and_its_film(tab, bundled):
    with tab.expect_download() as waiting:
        tab.get_by_role("link", name="Save picture").click()
    assert waiting.value.suggested_filename == f"7-seed{SEED}.png"
    file = Image.open(waiting.value.path())
    assert file.text["Comment"].startswith(f"7: seed {SEED}, steps {STEPS}, guidance {bundled.sampling.guidance}, ")
    picture = np.array(file)
    assert picture.shape == (448, 448)
    assert close(picture[8::16, 8::16], digit(bundled, 7, SEED, STEPS))
    with tab.expect_download() as waiting:
        tab.get_by_role("link", name="Save animation").click()
    film = Image.open(waiting.value.path())
    assert film.n_frames == 1 + 16  # the first is for viewers that know no animations
    for last in (0, 16):
        film.seek(last)
        assert close(np.array(film.convert("L"))[4::8, 4::8], digit(bundled, 7, SEED, STEPS))


def test_a_link_is_a_picture(chromium, page_url, bundled):
    page = chromium.new_page()
    page.goto(f"{page_url}/?digit=5&seed=11&steps=6&guidance=2.5")
    page.wait_for_function(
        "document.querySelector('.digit img')?.alt === 'A 5, drawn in 6 steps from the noise of seed 11'"
    )
    assert close(decoded(settle(page)), digit(bundled, 5, 11, 6, 2.5))
    assert page.get_by_label("Seed").first.input_value() == "11"
    page.close()


def test_the_copied_link_opens_the_same_digit(chromium, page_url):
    context = chromium.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"{page_url}/?digit=4&seed=3&steps=5&guidance=1.5")
    page.wait_for_function("document.querySelector('.digit img')?.alt.startsWith('A 4')")
    first = settle(page)
    page.get_by_role("button", name="Copy link").click()
    page.wait_for_timeout(300)
    assert page.get_by_role("button", name="Link copied").is_visible()
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == f"{page_url}/?digit=4&seed=3&steps=5&guidance=1.5" == page.url
    page.goto(link)
    page.wait_for_function("document.querySelector('.digit img')?.alt.startsWith('A 4')")
    assert settle(page) == first
    context.close()


def test_steps_side_by_side(tab, bundled):
    tab.get_by_role("tab", name="Steps").click()
    tab.wait_for_function("document.querySelectorAll('.steps img').length === 60")
    source = tab.get_by_alt_text("8 in 4 steps").get_attribute("src")
    assert close(decoded(source), digit(bundled, 8, SEED, 4))
    tab.get_by_role("radio", name="all").focus()
    tab.keyboard.press("ArrowRight")  # to the 0
    tab.keyboard.press("ArrowRight")
    tab.get_by_label("Seed").nth(1).fill("77")
    tab.wait_for_function("document.querySelectorAll('.steps img').length === 6")
    settle(tab)
    assert close(decoded(tab.get_by_alt_text("1 in 8 steps").get_attribute("src")), digit(bundled, 1, 77, 8))
    assert tab.get_by_alt_text("1 in 1 step", exact=True).count() == 1


def test_a_number_is_written_and_its_digit_opens(tab, bundled):
    tab.get_by_role("tab", name="Sheet").click()
    tab.get_by_label("Write a number").fill("2026")
    tab.keyboard.press("Enter")
    tab.wait_for_function("document.querySelectorAll('.cells img').length === 4")
    with tab.expect_download() as waiting:
        tab.get_by_role("link", name="Save data set").click()
    data = np.load(waiting.value.path())
    assert data["labels"].tolist() == [2, 0, 2, 6]
    assert close(data["images"][2], digit(bundled, 2, SEED + 2, STEPS))
    with tab.expect_download() as waiting:
        tab.get_by_role("link", name="Save picture").last.click()
    sheet = Image.open(waiting.value.path())
    assert sheet.width > 4 * 28
    assert sheet.text["Comment"].startswith(f"2,0,2,6: seed {SEED}, ")
    tab.locator(".cells a").nth(3).click()
    tab.wait_for_function(
        f"document.querySelector('.digit img')?.alt === 'A 6, drawn in {STEPS} steps from the noise of seed {SEED + 3}'"
    )
    assert tab.locator(".digit img").is_visible()
    tab.wait_for_url(f"**/?digit=6&seed={SEED + 3}&*")
    tab.get_by_role("tab", name="Sheet").click()
    assert tab.locator(".cells img").count() == 4  # the sheet is still there


def test_a_sheet_of_chosen_classes_and_its_stop(tab, bundled):
    tab.get_by_role("tab", name="Sheet").click()
    for name in "01245678":
        tab.get_by_role("checkbox", name=name, exact=True).uncheck()
    tab.get_by_label("number input for How many digits").fill("15")
    tab.get_by_role("button", name="Draw the sheet").click()
    tab.wait_for_selector("text=Save data set")
    alts = tab.locator(".cells img").evaluate_all("images => images.map(image => image.alt)")
    assert alts == ["3", "9"] * 7 + ["3"]
    assert close(decoded(tab.locator(".cells img").nth(13).get_attribute("src")), digit(bundled, 9, SEED + 13, STEPS))
    tab.get_by_label("number input for How many digits").fill("400")
    tab.get_by_role("button", name="Draw the sheet").click()
    tab.wait_for_function("document.querySelectorAll('.cells img').length >= 30")
    tab.get_by_role("button", name="Stop").click()
    tab.wait_for_timeout(1500)
    drawn = tab.locator(".cells img").count()
    tab.wait_for_timeout(2000)
    assert 30 <= tab.locator(".cells img").count() == drawn < 400


CONTRAST = """() => {
    const rgb = colour => colour.match(/[0-9.]+/g).map(Number);
    const linear = value => value <= 10.31475 ? value / 3294.6 : ((value / 255 + .055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b) + .05;
    const ground = item => {
        for (; item; item = item.parentElement) {
            const colour = rgb(getComputedStyle(item).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    const found = [], walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const item = walker.currentNode.parentElement, words = walker.currentNode.data.trim();
        if (!words || !item.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
        const [a, b] = [light(rgb(getComputedStyle(item).color)), light(ground(item))];
        found.push([words, Math.max(a, b) / Math.min(a, b)]);
    }
    return found;
}"""  # WCAG 2.2, success criterion 1.4.3: 4.5 to 1 for each text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(chromium, page_url, scheme):
    context = chromium.new_context(viewport={"width": 1100, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.goto(page_url)
    page.wait_for_selector(".digit img")
    for name in ("Draw", "Steps", "Sheet"):
        page.get_by_role("tab", name=name).click()
        settle(page)
        texts = page.evaluate(CONTRAST)
        assert len(texts) > 10
        assert [text for text in texts if text[1] < 4.5] == [], name
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_no_horizontal_scrolling(chromium, page_url, scheme):
    context = chromium.new_context(viewport={"width": 375, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(page_url)
    page.wait_for_selector(".digit img")
    for name in ("Draw", "Steps", "Sheet"):
        page.get_by_role("tab", name=name).click()
        if name == "Sheet":
            page.get_by_label("number input for How many digits").fill("20")  # ten columns, as any sheet of up to 224
            page.get_by_role("button", name="Draw the sheet").click()
            page.wait_for_selector("text=Save data set")
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, name
    context.close()


# ---- the API


@pytest.fixture(scope="session")
def client(page_url):
    return Client(page_url, verbose=False)


def test_draw_endpoint(client, bundled):
    rows = client.predict(digit="7", seed=5, steps=4, guidance=1.5, api_name="/draw")
    assert close(rows, digit(bundled, 7, 5, 4, 1.5))


def test_steps_endpoint(client, bundled):
    found = client.predict(digit="3", seed=5, api_name="/steps")
    assert list(found) == ["1", "2", "4", "8", "16", "32"]
    assert close(found["8"][0], digit(bundled, 3, 5, 8))


def test_sheet_endpoint(client, bundled):
    found = client.predict(classes="3,white", count=4, seed=5, steps=3, api_name="/sheet")
    assert found["labels"] == [3, 11, 3, 11]
    assert close(found["images"][2], digit(bundled, 3, 7, 3))


BAD = [
    ("/draw", {"digit": "ten"}, "class must be one of"),
    ("/draw", {"digit": 7}, "class must be one of"),
    ("/draw", {"digit": "x" * 50_000}, "class must be one of"),
    ("/steps", {"digit": "x" * 50_000}, "class must be one of"),
    ("/sheet", {"classes": "0-9," * 10_000}, "of at most 1000 characters"),
    ("/draw", {"digit": "7", "steps": 0}, "steps must be a whole number from 1 to 50, not 0"),
    ("/draw", {"digit": "7", "steps": 7.5}, "not 7.5"),
    ("/draw", {"digit": "7", "steps": True}, "not True"),
    ("/draw", {"digit": "7", "steps": "abc"}, "not 'abc'"),
    ("/draw", {"digit": "7", "seed": -1}, "seed must be a whole number from 0 to 2147483647, not -1"),
    ("/draw", {"digit": "7", "seed": None}, "not None"),
    ("/draw", {"digit": "7", "seed": 10**12}, "seed must be"),
    ("/draw", {"digit": "7", "guidance": 5.5}, "guidance must be a number from 0 to 5"),
    ("/draw", {"digit": "7", "guidance": 10**400}, "guidance must be a number from 0 to 5"),
    ("/draw", {"digit": "7", "seed": 10**400}, "seed must be"),
    ("/steps", {"digit": "ten"}, "class must be one of"),
    ("/sheet", {"count": 10**9}, "count must be a whole number from 1 to 400"),
    ("/sheet", {"classes": "9-0"}, "run backwards"),
    ("/sheet", {"count": 10, "seed": 2**31 - 1}, "seed must be a whole number from 0 to 2147483638"),
    ("/sheet", {"classes": ["7"]}, "classes must be"),
]


@pytest.mark.parametrize(("endpoint", "values", "words"), BAD, ids=[f"{b[0]}-{str(b[1])[:40]}" for b in BAD])
def test_a_bad_value_is_one_sentence(client, endpoint, values, words):
    with pytest.raises(AppError) as caught:
        client.predict(**values, api_name=endpoint)
    assert words in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_nan_is_one_sentence_too(page_url):
    """The Python client cannot even send it."""
    body = b'{"data": ["7", 42, 20, NaN]}'
    request = urllib.request.Request(f"{page_url}/gradio_api/call/draw", body, {"Content-Type": "application/json"})
    event = json.load(urllib.request.urlopen(request))["event_id"]
    answer = urllib.request.urlopen(f"{page_url}/gradio_api/call/draw/{event}").read().decode()
    assert "event: error" in answer
    assert "guidance must be a number from 0 to 5, not " in answer


def test_no_file_of_the_machine_is_served(page_url):
    for file in ("README.md", "/etc/passwd", "../../etc/passwd", "weights/config.json"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{page_url}/gradio_api/file={file}")


def test_the_lines_of_the_readme(page_url):
    (lines,) = re.findall(
        "```python\n(from gradio_client.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S
    )
    found = {}
    exec(lines.replace("http://127.0.0.1:7860", page_url), found)
    assert np.array(found["rows"]).shape == (28, 28)
    assert np.array(found["images"]["32"]).shape == (10, 28, 28)
    assert found["sheet"]["labels"] == [3, 5, 10] * 4


# ---- a crowd


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
def test_forty_visitors_at_once(tmp_path, bundled):
    """Everybody gets the picture of their own seed, every bad request a sentence, a flood no more than the places of
    the queue, and a second round of it all needs no more memory."""
    expected = {seed: digit(bundled, seed % 10, seed, 2, 1.0) for seed in range(20)}
    outcomes = []

    bad = (
        ("draw", ("7", 1, 51, 1.0), "steps must be a whole number"),
        ("draw", ("7", 1, "abc", 1.0), "steps must be a whole number"),
        ("draw", ("7", None, 2, 1.0), "seed must be a whole number"),
        ("draw", ("7", 1, 2, "much"), "guidance must be a number"),
        ("draw", ("ten", 1, 2, 1.0), "class must be one of"),
        ("steps", ("ten", 1, 1.0), "class must be one of"),
        ("sheet", ("0-9", 401, 1, 2, 1.0), "count must be a whole number"),
    )

    def visit(number: int) -> None:
        chance = random.Random(number)
        with httpx.Client(timeout=120) as http:
            for _ in range(6):
                dice = chance.random()
                if dice < 0.2:
                    name, values, words = chance.choice(bad)
                    kind, data = ask(http, url, *values, endpoint=name)
                    outcomes.append(kind == "error" and words in json.dumps(data))
                elif dice < 0.25:
                    seed = chance.randrange(19)
                    kind, data = ask(http, url, str(seed % 10), 2, seed, 2, 1.0, endpoint="sheet")
                    outcomes.append(kind == "complete" and close(data[0]["images"][0], expected[seed]))
                else:
                    seed = chance.randrange(20)
                    kind, data = ask(http, url, str(seed % 10), seed, 2, 1.0)
                    outcomes.append(kind == "complete" and close(data[0], expected[seed]))

    def is_served() -> bool:
        """Whether a call is taken and answered, which comes after all that waited before it."""
        with httpx.Client(timeout=120) as http, suppress(KeyError):  # a refused call has no event
            return ask(http, url, "7", 1, 1, 1.0)[0] == "complete"
        return False

    with serve(tmp_path / "log") as (url, server), ThreadPoolExecutor(40) as crowd:
        sizes = []
        for first in (0, 40):
            list(crowd.map(visit, range(first, first + 40)))
            assert crowd.submit(asyncio.run, flood(url, 100)).result() <= 64
            wait_until(is_served, 120, "the flood is dropped")
            sizes.append(memory_of(server))
    assert len(outcomes) == 2 * 40 * 6
    assert all(outcomes)
    assert sizes[1] - sizes[0] < 60


def test_only_checked_values_reach_the_gpu(monkeypatch):
    """On ZeroGPU a drawing runs in another process: its arguments can be pickled, and a visitor's error is found
    before."""
    calls = []

    def on_gpu(function):
        def run(*arguments):
            calls.append(function.__name__)
            return function(*pickle.loads(pickle.dumps(arguments)))

        return run

    monkeypatch.setattr(app, "on_gpu", on_gpu)
    studio = app.Studio(weights.load())
    app.build(studio)
    assert "seed must be" in studio.draw_tab("7", None, 2, 1.0, False)[2]
    assert "&lt;b&gt;" in next(studio.sheet_tab(["7"], "<b>", 1, 1, 1, 1.0))
    assert "&lt;b&gt;" in studio.draw_tab("<b>", 1, 2, 1.0, False)[2]
    for function, values in ((studio.draw_api, ("ten",)), (studio.steps_api, ("ten",)), (studio.sheet_api, ("9-0",))):
        with pytest.raises(app.gr.Error):
            function(*values)
    assert calls == []
    assert np.array(studio.draw_api("7", 1, 1, 1.0)).shape == (28, 28)
    assert len(studio.sheet_api("7", 3, 1, 1, 1.0)["images"]) == 3
    assert list(studio.steps_api("7", 1, 1.0)) == ["1", "2", "4", "8", "16", "32"]
    assert calls == ["film", "digits", "columns"]


def test_a_busy_page_says_so(tab, page_url):
    def sheet(_):
        with httpx.Client(timeout=120) as http:
            event = http.post(f"{page_url}/gradio_api/call/sheet", json={"data": ["0-9", 100, 1, 8, 1.0]}).json()[
                "event_id"
            ]
            return http.get(f"{page_url}/gradio_api/call/sheet/{event}").text

    with ThreadPoolExecutor(3) as crowd:
        others = crowd.map(sheet, range(3))
        tab.wait_for_timeout(700)
        tab.locator(".classes label").nth(3).click()
        tab.wait_for_function("document.querySelector('#busy').innerText.includes('queue')")
        assert all("event: complete" in answer for answer in others)
    tab.wait_for_function("document.querySelector('.digit img').alt.startsWith('A 3')")


def test_an_abandoned_sheet_stops(chromium, bundled, monkeypatch):
    """Closing the page in the middle of a long sheet frees the device for the next visitor."""
    drawn = []

    def draw(*arguments, draw=app.sampling.draw):
        for batch in draw(*arguments):
            drawn.append(len(batch))
            yield batch

    monkeypatch.setattr(app.sampling, "draw", draw)
    server = app.build(app.Studio(bundled))
    _, url, _ = app.serve(server, prevent_thread_lock=True)
    page = chromium.new_page()
    page.goto(url)
    page.wait_for_selector(".digit img")
    page.get_by_role("tab", name="Sheet").click()
    page.get_by_label("number input for How many digits").fill("400")
    page.get_by_role("button", name="Draw the sheet").click()
    page.wait_for_function("document.querySelectorAll('.cells img').length >= 10")
    page.close()
    with httpx.Client(timeout=120) as http:
        assert ask(http, url.rstrip("/"), "7", 1, 2, 1.0)[0] == "complete"  # it had to wait for the sheet to stop
    server.close()
    assert sum(drawn) < 400


# ---- without a server


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ("7", SEED, STEPS, 1.0)),
        ({"digit": "black", "seed": "9", "steps": "8", "guidance": "1.5"}, ("black", 9, 8, 1.5)),
        ({"digit": "ten", "seed": "-4", "steps": "900", "guidance": "99"}, ("7", 0, 50, 5)),
        ({"digit": "3", "seed": "x", "steps": "7.5", "guidance": "nan"}, ("3", SEED, STEPS, 1.0)),
        ({"digit": "<b>", "steps": "", "guidance": "inf", "more": "1"}, ("7", SEED, STEPS, 5)),
    ],
)
def test_a_link_is_clamped_never_an_error(query, expected):
    start = {**app.START, "steps": STEPS, "guidance": 1.0}
    assert tuple(app.from_link(query, start).values()) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["--weights", "nowhere/at/all", "--strict-weights"],
        ["--device", "abacus"],
        ["--port", "99999"],
        ["--auth", "me"],
    ],
)
def test_the_command_refuses_in_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        app.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
