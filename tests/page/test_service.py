"""The page under programs and crowds: the API, concurrent visitors, abandoned drawings."""

import json
import pickle
import re
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError

import app
from model import sampling, weights
from model.dit import DiT
from model.page import studio
from model.sampling import SamplingConfig, change_class, finish, morph
from tests.page.conftest import SEED, STEPS, digit
from tests.server import ROOT, ask, close

# ---- the API


@pytest.fixture(scope="session")
def client(page_url):
    return Client(page_url, verbose=False)


def test_draw_endpoint(client, bundled):
    rows = client.predict(digit="7", seed=5, steps=4, guidance=1.5, api_name="/draw")
    assert close(rows, digit(bundled, 7, 5, 4, 1.5, film=False))


def test_a_digit_may_be_a_number(client, bundled):
    assert close(client.predict(digit=7, seed=5, steps=4, api_name="/draw"), digit(bundled, 7, 5, 4, film=False))


def test_endpoints_of_the_experiments(client, bundled):
    sampling = replace(bundled.sampling, steps=4)
    found = client.predict(digit="3", other="8", seed=5, at=[1, 0.5, 0], steps=4, api_name="/change_class")
    assert close(found, change_class(bundled.network, 3, 8, 5, sampling, [1, 0.5, 0]).digits)
    found = client.predict(digit="3", seed=5, other_seed=6, count=3, steps=4, api_name="/morph")
    assert close(found, morph(bundled.network, 3, 5, 6, 3, sampling).digits)
    pixels = torch.tensor([0] * 300 + [255] * 184 + [0] * 300, dtype=torch.uint8).view(28, 28)
    found = client.predict(sketch=pixels.tolist(), digit="1", noise=0.8, seed=5, steps=4, api_name="/finish")
    assert close(found, finish(bundled.network, pixels, 1, 5, 0.8, sampling).digits[0])


def test_steps_endpoint(client, bundled):
    found = client.predict(digit="3", seed=5, api_name="/steps")
    assert list(found) == ["1", "2", "4", "8", "16", "32"]
    assert close(found["8"][0], digit(bundled, 3, 5, 8, film=False))


def test_sheet_endpoint(client, bundled):
    found = client.predict(classes="3,white", count=4, seed=5, steps=3, api_name="/sheet")
    assert found["labels"] == [3, 11, 3, 11]
    assert close(found["images"][2], digit(bundled, 3, 7, 3, film=False))


BAD = [
    ("/draw", {"digit": "ten"}, "class must be one of"),
    ("/draw", {"digit": 12}, "class must be one of"),
    ("/draw", {"digit": True}, "class must be one of"),
    ("/change_class", {"digit": "7", "other": "ten"}, "class must be one of"),
    ("/change_class", {"digit": "7", "other": "8", "at": [0.5] * 17}, "number of times must be"),
    ("/change_class", {"digit": "7", "other": "8", "at": [2]}, "switch time must be a number from 0 to 1"),
    ("/morph", {"digit": "7", "seed": 1, "other_seed": 2, "count": 17}, "count must be a whole number from 2 to 16"),
    ("/morph", {"digit": "7", "seed": 1, "other_seed": -2}, "other_seed must be"),
    ("/finish", {"sketch": [[9] * 28] * 27, "digit": "7"}, "sketch must be 28 rows of 28 numbers"),
    ("/finish", {"sketch": [[0] * 28] * 28, "digit": "7"}, "not all of them 0"),
    ("/finish", {"sketch": [[256] * 28] * 28, "digit": "7"}, "sketch pixel must be a whole number from 0 to 255"),
    ("/finish", {"sketch": [[9] * 28] * 28, "digit": "7", "noise": 1.5}, "noise must be a number from 0 to 1"),
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
    ("/sheet", {"classes": "9-0"}, "must go from low to high"),
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


def test_each_concurrent_visitor_gets_the_picture_of_its_own_seed(page_url, bundled):
    expected = {seed: digit(bundled, seed % 10, seed, 2, 1.0, film=False) for seed in range(40)}

    def visit(first: int) -> None:
        with httpx.Client(timeout=120) as http:
            for seed in range(first, first + 4):
                kind, data = ask(http, page_url, str(seed % 10), seed, 2, 1.0)
                assert kind == "complete"
                assert close(data[0], expected[seed])

    with ThreadPoolExecutor(10) as crowd:
        list(crowd.map(visit, range(0, 40, 4)))


def test_only_checked_values_reach_the_gpu():
    """On ZeroGPU, drawings run in another process: their arguments must be picklable, and invalid values are rejected
    before."""
    calls = []

    def on_gpu(function):
        def run(*arguments):
            calls.append(function.__name__)
            return function(*pickle.loads(pickle.dumps(arguments)))

        return run

    drawing = studio.Studio(weights.load(), on_gpu)
    app.build(drawing)
    assert drawing.digit_tab(["7", None, 2, 1.0])[1]["sentence"].startswith("Seed is empty")
    assert drawing.digit_tab(["<b>", 1, 2, 1.0])[1]["field"] == "class"
    assert next(drawing.sheet_tab(["7", 0], ["7", 1, 1, 1.0]))[1]["field"] == "count"
    assert drawing.number_tab(["<b>"], ["7", 1, 1, 1.0])[1]["sentence"].startswith("Number must be 1 to 16 digits")
    bad = (
        (drawing.draw_api, ("ten",)),
        (drawing.steps_api, ("ten",)),
        (drawing.sheet_api, ("9-0",)),
        (drawing.change_api, ("7", "ten")),
        (drawing.morph_api, ("7", 1, -1)),
        (drawing.finish_api, ([0], "7")),
    )
    for function, values in bad:
        with pytest.raises(ValueError, match=r"must be|must go"):
            function(*values)
    assert calls == []
    assert np.array(drawing.draw_api("7", 1, 1, 1.0)).shape == (28, 28)
    assert len(drawing.sheet_api("7", 3, 1, 1, 1.0)["images"]) == 3
    assert list(drawing.steps_api("7", 1, 1.0)) == ["1", "2", "4", "8", "16", "32"]
    assert len(drawing.change_api("7", "8", 1, [0.5, 0.1], 1)) == 2
    assert len(drawing.morph_api("7", 1, 2, 3, 1)) == 3
    assert np.array(drawing.finish_api([9] * 784, "7", steps=1)).shape == (28, 28)
    assert drawing.paths_tab(["7", 1, 1, 1.0])["digits"] == ["7"]
    assert calls == ["whole", "batches", "comparison", "film", "film", "whole", "paths"]


# ---- drawings that take turns


@pytest.fixture
def served(bundled):
    """The address of the page with the bundled weights, served in this process."""
    page = app.build(studio.Studio(bundled, listened=app.listened))
    _, url, _ = app.serve(page, prevent_thread_lock=True, quiet=True)
    yield url.rstrip("/")
    page.close()


def test_a_digit_comes_before_the_end_of_a_sheet(visit):
    """Two browsers: one draws a long sheet; in the other, a new visitor chooses a class and writes a number."""
    busy, other = visit("/?steps=8"), None
    busy.open("Numbers")
    busy.page.locator("#sheet input[name=count]").fill("400")
    busy.page.get_by_role("button", name="Draw the sheet").click()
    busy.page.wait_for_selector("digit-sheet canvas")
    other = visit("/?steps=8")
    other.choose("3")
    other.shows(3, steps=8)
    other.open("Numbers")
    other.page.get_by_label("A number").fill("42")
    other.page.keyboard.press("Enter")
    other.page.wait_for_selector("#row canvas")
    assert other.page.locator("#waiting").inner_text() == ""
    drawn = busy.page.locator("digit-sheet canvas").count()
    assert drawn < 400
    busy.until(f"$$('digit-sheet canvas').length > {drawn}")  # the sheet continues
    busy.page.get_by_role("button", name="Stop").click()


def test_who_waits_for_another_sheet_is_told_so(visit):
    busy, other = visit("/?steps=8"), visit("/?steps=8")
    for one in (busy, other):
        one.open("Numbers")
        one.page.locator("#sheet input[name=count]").fill("400")
        one.page.get_by_role("button", name="Draw the sheet").click()
    other.page.get_by_text("The page is busy; your drawing is next.").wait_for()
    busy.page.get_by_role("button", name="Stop").click()
    other.page.wait_for_selector("digit-sheet canvas")
    other.until("$('#waiting').textContent === ''")
    other.page.get_by_role("button", name="Stop").click()


def counted(monkeypatch, name: str) -> list:
    """A list that gets one item for each future step of a function of `sampling`."""
    steps, whole = [], getattr(sampling, name)

    def function(*arguments):
        *arguments, turn = arguments

        @contextmanager
        def counting():
            with turn():
                steps.append(1)
                yield

        return whole(*arguments, counting)

    monkeypatch.setattr(sampling, name, function)
    return steps


def test_an_abandoned_sheet_stops_at_its_next_step(chromium, served, monkeypatch):
    """Closing the page during a long sheet frees the device for the next visitor."""
    steps = counted(monkeypatch, "draw")
    page = chromium.new_page()
    page.goto(f"{served}/?steps=8")
    page.get_by_role("tab", name="Numbers").click()
    page.locator("#sheet input[name=count]").fill("400")
    page.get_by_role("button", name="Draw the sheet").click()
    page.wait_for_selector("digit-sheet canvas")
    page.close()
    with httpx.Client(timeout=120) as http:
        assert ask(http, served, "0-9", 1, 1, 2, 1.0, endpoint="sheet")[0] == "complete"  # after the other ended
    assert len(steps) < 40 * 8  # forty batches of ten


def test_a_comparison_stops_when_its_guidance_changes(chromium, served, monkeypatch):
    """Its columns disappear, and the new one begins."""
    steps, passed = counted(monkeypatch, "compare_steps"), studio.Studio.while_wanted
    held, hold, first = threading.Event(), threading.Event(), iter([True])

    def slowly(self, columns):
        """Hold back all columns except the very first, between two turns."""
        for column in passed(self, columns):
            if not next(first, False):
                held.set()
                hold.wait(60)
            yield column

    monkeypatch.setattr(studio.Studio, "while_wanted", slowly)
    page = chromium.new_page(viewport={"width": 1100, "height": 2400})
    page.goto(served)
    page.get_by_role("tab", name="Why it works").click()
    page.wait_for_function("document.querySelectorAll('digit-steps canvas').length > 0")
    assert held.wait(60)
    page.locator("#panel summary").click()
    page.locator("#panel input[name=guidance]").fill("2")
    page.wait_for_function("document.querySelector('digit-steps').parentElement.classList.contains('stale')")
    hold.set()
    page.wait_for_function("document.querySelector('digit-steps').data?.guidance === 2")
    page.wait_for_selector("digit-steps canvas >> nth=11")
    assert len(steps) < 2 * 63 + 63  # one full comparison of two networks, and the start of another
    page.close()


def test_foreign_class_names_fit(chromium):
    names = ("T-shirt", "Ankle boot", "x" * 60)
    network = DiT(width=32, depth=1, heads=2, classes=3, class_names=names).requires_grad_(False)
    page = app.build(studio.Studio(weights.Weights(network, SamplingConfig(), "here", {})))
    _, url, _ = app.serve(page, prevent_thread_lock=True, quiet=True)
    tab = chromium.new_page(viewport={"width": 375, "height": 667})
    tab.goto(url)
    tab.wait_for_selector("#film canvas")
    assert tuple(tab.locator("#panel .classes label").all_inner_texts()) == names
    assert tab.evaluate("document.documentElement.scrollWidth") <= 375
    tab.get_by_role("radio", name="Ankle boot").check()
    tab.wait_for_function("document.querySelector('#film').film.digits[0] === 'Ankle boot'")
    assert tab.locator("#digit-title").inner_text() == "Ankle boot image from seed 67"
    tab.get_by_role("tab", name="Numbers").click()
    tab.get_by_role("button", name="Draw the sheet").wait_for()
    assert not tab.get_by_label("A number").is_visible()
    tab.close()
    page.close()


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
    start = {**studio.START, "steps": STEPS, "guidance": 1.0}
    assert tuple(studio.from_link(query, start).values()) == expected


def test_a_drawing_that_nobody_waits_for_stops_within_a_batch(small, monkeypatch):
    steps = counted(monkeypatch, "draw")
    loaded = weights.Weights(small.requires_grad_(False), SamplingConfig(), "here", {})
    drawing = studio.Studio(loaded, listened=lambda: len(steps) < 3)
    with pytest.raises(ValueError, match="nobody is waiting"):
        drawing.sheet_api("7", 5, 1, 20, 1.0)
    assert len(steps) == 3


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
