"""The static page as its visitors use it: an exported folder on a file server, and Chromium."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect

from model import flow, images, sampling, weights
from model.dit import DiT
from model.flow_map import FlowMap
from model.web import site
from tests.server import serve_files, wait_until

expect.set_options(timeout=60_000)
LETTERS = [f"letter {name}" for name in "abcdefg"]


def save(folder: Path, seed: int = 0, network: type[DiT] = DiT, steps: int = 6, **shape) -> weights.Weights:
    """Save the weights of a small random network in a folder; returns them loaded in float32."""
    torch.manual_seed(seed)
    network = network(width=32, depth=2, heads=2, **shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    weights.save(network, folder, sampling.SamplingConfig(steps=steps, guidance=1.5), {})
    return weights.load(str(folder), dtype=torch.float32)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> weights.Weights:
    return save(tmp_path_factory.mktemp("small") / "weights")


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory) -> Path:
    """The exported page, in a nested folder."""
    folder = tmp_path_factory.mktemp("server") / "a" / "page"
    site.export(small.source, folder)
    return folder


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    with serve_files(folder) as address:
        yield f"{address}/"


@contextmanager
def visit(chromium, address: str, errors: tuple[str, ...] = (), **options):
    """A page for a new visitor; the console must stay empty, except for lines that contain one of `errors`."""
    context = chromium.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
    page, said = context.new_page(), []
    page.set_default_timeout(60_000)
    page.add_init_script("Object.defineProperty(navigator, 'hardwareConcurrency', {value: 4, configurable: true})")
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    try:
        yield page, lambda: page.goto(address)
        assert [line for line in said if not any(error in line for error in errors)] == []
    finally:
        context.close()


@pytest.fixture
def page(chromium, address):
    with visit(chromium, address) as (page, open):
        open()
        settle(page)
        yield page


def settle(page, *words: str) -> str:
    """Wait until something is drawn and its status line contains the words; returns the line."""
    news = page.locator("#news")
    expect(news).to_contain_text(re.compile(".*".join(re.escape(word) for word in words) or "."))
    return news.inner_text()


def drawn(page, element: str = "film") -> np.ndarray:
    """The finished pictures of an element, [N, 28, 28]."""
    pixels = page.evaluate(
        """id => {
            const {film, data} = document.getElementById(id);
            return Array.from(film ? film.noisy.slice(-784 * film.digits.length) : data.pixels);
        }""",
        element,
    )
    return np.array(pixels).reshape(-1, 28, 28)


def expected(loaded: weights.Weights, names: list[str], seeds, **how) -> np.ndarray:
    """The digits drawn by Python, [N, 28, 28]."""
    network, labels = loaded.network, torch.tensor([loaded.network.class_names.index(name) for name in names])
    *_, last = sampling.states(network, labels, seeds, loaded.sampling.updated(**how))
    return images.to_pixels(last.x, network.pixel_mean, network.pixel_std).numpy().astype(int)


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1
    assert len(np.unique(wanted)) > 20  # a picture, not a blank


def values(page) -> dict:
    return page.evaluate("""() => ({
        digit: document.querySelector("[name=digit]:checked").value,
        ...Object.fromEntries(["seed", "steps", "guidance"].map(name => [name,
            +document.querySelector(`[name=${name}]`).value])),
    })""")


def query(page) -> str:
    return page.evaluate("location.search")


# ---- one digit


def test_it_opens_with_the_digit_of_the_weights(page, small):
    assert values(page) == {"digit": "7", "seed": 67, "steps": 6, "guidance": 1.5}
    assert_same(drawn(page), expected(small, ["7"], [67]))
    assert query(page) == "?digit=7&seed=67&steps=6&guidance=1.5"
    assert page.title() == "Digits from noise"
    expect(page.locator("#heading")).to_have_text("7 from seed 67")


def test_the_released_weights_draw_the_same_digit_as_in_python(chromium, tmp_path):
    site.export(str(weights.BUNDLED), tmp_path / "site")
    loaded = weights.load(str(weights.BUNDLED), dtype=torch.float32).alone()
    with serve_files(tmp_path / "site") as address, visit(chromium, f"{address}/?steps=2") as (page, open):
        open()
        settle(page, "A 7, drawn in 2 steps from the noise of seed 67")
        assert_same(drawn(page), expected(loaded, ["7"], [67], steps=2))


def test_the_noise_shows_before_the_network_is_there(chromium, address, small):
    with visit(chromium, address) as (page, open):
        waiting = []
        page.route("**/model.safetensors", lambda route: waiting.append(route))
        open()
        wait_until(lambda: waiting or page.wait_for_timeout(20), 60, "the weights are asked for")
        expect(page.locator("#progress")).to_be_visible()
        shown = page.evaluate("Array.from(document.getElementById('film').film.noisy.slice(0, 784))")
        wanted = images.to_pixels(flow.noise([67]), 0.5, 0.3081).numpy().astype(int)
        assert np.abs(np.array(shown).reshape(1, 28, 28) - wanted).max() <= 1
        page.click("label:has([value='3'])")  # a choice made while waiting counts
        waiting[0].continue_()
        settle(page, "A 3")
        expect(page.locator("#progress")).to_be_hidden()
        assert_same(drawn(page), expected(small, ["3"], [67]))


@pytest.mark.parametrize(
    ("link", "name", "seed", "how"),
    [
        ("?digit=black&seed=2147483647&steps=1&guidance=1", "black", 2**31 - 1, {"steps": 1, "guidance": 1}),
        ("?digit=8&seed=0&steps=50&guidance=0", "8", 0, {"steps": 50, "guidance": 0}),
        ("?digit=11&seed=-4&steps=7.5&guidance=9", "7", 0, {"guidance": 5}),
        ("?digit=<b>&seed=abc&steps=&guidance=nan", "7", 67, {}),
    ],
)
def test_a_link_opens_its_digit_and_bad_values_do_no_harm(chromium, address, small, link, name, seed, how):
    with visit(chromium, address + link) as (page, open):
        open()
        settle(page, f"seed {seed}")
        assert_same(drawn(page), expected(small, [name], [seed], **how))
        config = small.sampling.updated(**how)
        assert query(page) == f"?digit={name}&seed={seed}&steps={config.steps}&guidance={config.guidance:g}"


def test_controls_by_click_and_keyboard(page, small):
    page.click("label:has([value='2'])")
    settle(page, "A 2")
    page.keyboard.press("ArrowRight")  # radio buttons are one group
    settle(page, "A 3")
    page.focus("#steps-slider")
    page.keyboard.press("ArrowLeft")
    settle(page, "A 3", "5 steps")
    assert_same(drawn(page), expected(small, ["3"], [67], steps=5))
    page.click("summary")
    page.focus("#guidance-slider")
    page.keyboard.press("End")
    wait_until(lambda: query(page).endswith("guidance=5"), 60, "the guidance is drawn")
    page.fill("#seed", "12345")
    settle(page, "seed 12345")
    assert_same(drawn(page), expected(small, ["3"], [12345], steps=5, guidance=5))
    page.click("[value=another]")
    wait_until(lambda: "seed=12345" not in query(page), 60, "another seed")
    seed = values(page)["seed"]
    assert 0 <= seed < 10000
    assert_same(drawn(page), expected(small, ["3"], [seed], steps=5, guidance=5))


def test_a_value_that_is_none_is_explained_and_the_digit_stays(page):
    before = drawn(page)
    for name, value, sentence in (
        ("seed", "", "Seed must be a whole number from 0 to 2147483647."),
        ("seed", "2147483648", "Seed must be a whole number from 0 to 2147483647."),
        ("steps", "0", "Steps must be a whole number from 1 to 50."),
        ("guidance", "-1", "Guidance must be a number from 0 to 5."),
    ):
        kept = page.locator(f"[name={name}]").input_value()
        page.evaluate("document.querySelector('details').open = true")
        page.fill(f"[name={name}]", value)
        words = page.locator(f"[data-field={name}] .problem")
        expect(words).to_have_text(sentence)
        np.testing.assert_array_equal(drawn(page), before)
        page.fill(f"[name={name}]", kept)
        expect(words).to_be_empty()


def test_what_was_typed_out_of_range_becomes_what_can_be_drawn(page):
    page.fill("[name=steps]", "7.5")
    page.press("[name=steps]", "Tab")
    settle(page, "8 steps")
    assert values(page)["steps"] == 8


SEEN = """window.seen = [];
customElements.whenDefined("digit-film").then(Film => {
    const draw = Film.prototype.draw;
    Film.prototype.draw = function(film, index) {
        seen.push(index - film.times.length + 1);
        draw.call(this, film, index);
    };
});"""  # the shown states: 0 is the finished digit, -1 the state before it
COUNT = """const send = Worker.prototype.postMessage;
window.sent = [], window.done = 0;
window.Worker = class extends Worker {
    constructor(...words) {
        super(...words);
        this.addEventListener("message", ({data}) => done += data.kind === "done");
    }
    postMessage(message, ports) {
        if (message.kind === "draw") sent.push(message.steps);
        super.postMessage(message, ports);
    }
};"""
DRAG = """async values => {
    const slider = document.getElementById("steps-slider");
    for (const value of values) {
        slider.value = value;
        slider.dispatchEvent(new Event("input", {bubbles: true}));
        await new Promise(resolve => setTimeout(resolve, 5));
    }
}"""


def test_while_a_slider_moves_the_finished_digit_changes_in_place(chromium, address, small):
    with visit(chromium, address) as (page, open):
        page.add_init_script(SEEN + COUNT)
        open()
        settle(page)
        page.evaluate("seen = []")
        page.evaluate(DRAG, [50, 49, 48, 47, 46, 45, 44, 43, 42, 41, 40, 39])
        settle(page, "39 steps")
        assert set(page.evaluate("seen")) == {0}  # never the noise, always the finished digit
        assert_same(drawn(page), expected(small, ["7"], [67], steps=39))
        sent, done = page.evaluate("[sent, done]")
        assert sent[-1] == 39
        assert done < 13  # not every intermediate value was drawn


def test_an_outdated_drawing_is_dropped(chromium, address, small):
    with visit(chromium, f"{address}?steps=50") as (page, open):
        page.add_init_script(COUNT)
        open()
        settle(page, "A 7")
        page.evaluate("for (const radio of document.querySelectorAll('[name=digit]')) radio.click()")
        settle(page, "A white image")
        assert_same(drawn(page), expected(small, ["white"], [67], steps=50))
        assert page.evaluate("[sent.length, done]") == [12, 2]  # only the first and the last were drawn


def test_a_new_digit_is_shown_state_by_state(chromium, address):
    with visit(chromium, address) as (page, open):
        page.add_init_script(SEEN)
        open()
        settle(page)
        assert page.evaluate("seen") == [-6, -6, -5, -4, -3, -2, -1, 0]  # the noise twice: by the page, by the network
        page.evaluate("seen = []")
        page.click("label:has([value='4'])")
        settle(page, "A 4")
        assert page.evaluate("seen") == [-6, -5, -4, -3, -2, -1, 0]


def test_the_link_is_copied(chromium, address):
    with visit(chromium, address + "?digit=1", permissions=["clipboard-read", "clipboard-write"]) as (page, open):
        open()
        settle(page)
        page.click("[value=copy]")
        expect(page.locator("[value=copy]")).to_have_text("Link copied")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == f"{address}?digit=1&seed=67&steps=6&guidance=1.5"
        page.goto(copied)
        settle(page, "A 1")


# ---- steps, numbers, sheets


def test_why_it_works_takes_its_pictures_from_the_digit(page, small):
    page.click("#tab-why")
    settle(page, "7 from seed 67, in 1, 2, 4, 8, 16, 32 steps")
    arrows = page.evaluate("Array.from(document.getElementById('arrows').data.noisy.slice(-784))")
    np.testing.assert_array_equal(np.array(arrows).reshape(1, 28, 28), drawn(page))
    styles = "() => { const {data} = document.getElementById('styles'); return Array.from(data.noisy.slice(-7840)); }"
    wanted = expected(small, list("0123456789"), [67] * 10)
    assert_same(np.array(page.evaluate(styles)).reshape(10, 28, 28), wanted)
    page.click("text=New noise")
    wait_until(lambda: "seed=67" not in query(page), 60, "another seed")
    seed = values(page)["seed"]
    wanted = expected(small, list("0123456789"), [seed] * 10)
    assert_same(np.array(page.evaluate(styles)).reshape(10, 28, 28), wanted)
    assert_same(drawn(page), wanted[7:8])


def test_steps_compare_the_same_noise_and_open_their_digits(page, small):
    page.click("#tab-why")
    settle(page, "7 from seed 67, in 1, 2, 4, 8, 16, 32 steps")
    columns = page.evaluate("document.getElementById('columns').data.columns.map(c => [c.steps, Array.from(c.pixels)])")
    assert [steps for steps, _ in columns] == list(sampling.STEP_COUNTS)
    for steps, pixels in columns:
        assert_same(np.array(pixels).reshape(1, 28, 28), expected(small, ["7"], [67], steps=steps))
    page.evaluate("document.getElementById('news').textContent = ''")
    page.click("#all")
    settle(page)
    pixels = page.evaluate("Array.from(document.getElementById('columns').data.columns[1].pixels)")
    wanted = expected(small, list("0123456789"), [67] * 10, steps=2)
    assert_same(np.array(pixels).reshape(10, 28, 28), wanted)
    page.locator("#columns tbody tr").nth(3).locator("a").nth(1).click()
    settle(page, "A 3", "2 steps")
    expect(page.locator("#tab-digit")).to_have_attribute("aria-selected", "true")
    assert_same(drawn(page), wanted[3:4])


def test_a_number_is_written_and_has_a_link(chromium, address, small):
    with visit(chromium, f"{address}?seed=5&number=1904") as (page, open):
        open()
        settle(page, "1904, drawn")
        expect(page.locator("#tab-numbers")).to_have_attribute("aria-selected", "true")
        assert_same(drawn(page, "row"), expected(small, list("1904"), range(5, 9)))
        page.fill("[name=number]", "19.04.1987")
        page.press("[name=number]", "Enter")
        settle(page, "19041987, drawn")
        assert_same(drawn(page, "row"), expected(small, list("19041987"), range(5, 13)))
        assert query(page) == "?digit=7&seed=5&steps=6&guidance=1.5&number=19041987"
        for wrong in ("12a", "", "1" * 17):
            page.evaluate("text => document.querySelector('[name=number]').value = text", wrong)
            page.press("[name=number]", "Enter")
            expect(page.locator("#write .problem")).to_have_text("Number must be 1 to 16 digits.")
        assert len(drawn(page, "row")) == 8
        page.locator("#row a").nth(7).click()
        settle(page, "A 7", "seed 12")


def test_a_first_number_that_was_left_is_drawn_when_its_tab_opens_again(page, small):
    page.click("#tab-numbers")
    page.fill("[name=steps]", "50")
    page.fill("[name=number]", "3141592653589793")
    page.evaluate("""async () => {
        document.querySelector("#write button").click();
        while (document.getElementById("row").hidden) await new Promise(requestAnimationFrame);
        document.getElementById("tab-why").click();
    }""")
    settle(page, "7 from seed 67, in")
    page.click("#tab-numbers")
    settle(page, "3141592653589793, drawn")
    expect(page.get_by_role("button", name="Save picture").locator("visible=true")).to_be_enabled()
    assert_same(drawn(page, "row"), expected(small, list("3141592653589793"), range(67, 83), steps=50))


# Hold back what the workers say about a number: all but the first states, until all have drawn it.
HOLD = """window.held = [];
window.Worker = class extends Worker {
    static all = [];
    id = 0; // of the drawing
    isDone = false;
    constructor(...words) {
        super(...words);
        Worker.all.push(this);
    }
    set onmessage(handler) {
        this.addEventListener("message", event => {
            const {kind, i, id} = event.data;
            if (id !== this.id || kind === "state" && i < (this === Worker.all[0] ? 4 : 2)) return handler(event);
            held.push(() => handler(event));
            this.isDone ||= kind === "done";
            if (Worker.all.every(({isDone}) => isDone)) document.dispatchEvent(new Event("held"));
        });
    }
    postMessage(message, ports) {
        if (message.kind === "draw" && message.labels.length === 4) this.id = message.id;
        super.postMessage(message, ports);
    }
};"""


def test_an_older_number_does_not_replace_a_newer_one(chromium, address, small):
    with visit(chromium, address) as (page, open):
        page.add_init_script(HOLD)
        open()
        settle(page)
        page.click("#tab-numbers")
        page.fill("[name=number]", "3141592653589793")
        page.evaluate("""() => new Promise(resolve => {
            document.addEventListener("held", resolve);
            document.querySelector("#write button").click();
        })""")
        page.fill("[name=number]", "7")  # needs only one of the four engines
        page.press("[name=number]", "Enter")
        settle(page, "7, drawn")
        page.evaluate("held.forEach(handle => handle())")
        assert_same(drawn(page, "row"), expected(small, ["7"], [67]))


def saved(page, button: str) -> Path:
    with page.expect_download() as download:
        page.click(button)
    return download.value.path()


def test_a_sheet_is_drawn_by_several_engines_and_saved(page, small):
    page.click("#tab-numbers")
    for name in "012345678":
        page.click(f"#many label:has([value='{name}'])")
    page.click("#many label:has([value='white'])")
    page.fill("[name=count]", "25")
    page.click("text=Draw the sheet")
    settle(page, "25 digits, drawn")
    wanted = expected(small, (["9", "white"] * 13)[:25], range(67, 92))
    assert_same(drawn(page, "sheet"), wanted)
    data = np.load(saved(page, "#sheet >> text=Save data set"))
    np.testing.assert_array_equal(data["images"], drawn(page, "sheet"))
    assert data["labels"].tolist() == ([9, 11] * 13)[:25]
    picture = Image.open(saved(page, "#sheet >> text=Save picture"))
    assert "seed 67, steps 6, guidance 1.5" in picture.text["Comment"]
    page.locator("#sheet a").nth(24).click()
    settle(page, "A 9", "seed 91")
    assert_same(drawn(page), wanted[24:])


def test_a_sheet_stops_and_keeps_what_is_there(page, small):
    page.click("#tab-numbers")
    page.fill("[name=steps]", "20")
    page.fill("[name=count]", "400")
    page.click("text=Draw the sheet")
    expect(page.locator("#sheet a").first).to_be_visible()
    page.click("#stop")
    settle(page, "Stopped.")
    expect(page.locator("#stop")).to_be_disabled()
    there = drawn(page, "sheet")
    assert 0 < len(there) < 400
    page.wait_for_timeout(200)
    assert len(drawn(page, "sheet")) == len(there)
    assert_same(there[:3], expected(small, list("012"), range(67, 70), steps=20)[: len(there)])
    assert len(np.load(saved(page, "#sheet >> text=Save data set"))["labels"]) == len(there)


def test_a_sheet_needs_a_class_and_room_for_its_seeds(page):
    page.click("#tab-numbers")
    for name in "0123456789":
        page.click(f"#many label:has([value='{name}'])")
    page.click("text=Draw the sheet")
    expect(page.locator("[data-field=classes] .problem")).to_have_text("Choose at least one class.")
    page.click("#many label:has([value='5'])")
    page.click("summary")
    page.fill("#seed", str(2**31 - 1))
    page.click("text=Draw the sheet")
    expect(page.locator("[data-field=seed] .problem")).to_have_text("Seed must be a whole number from 0 to 2147483548.")
    expect(page.locator("[data-field=classes] .problem")).to_be_empty()


# ---- a flow map


@pytest.fixture(scope="module")
def flow_map(tmp_path_factory) -> weights.Weights:
    return save(tmp_path_factory.mktemp("map") / "weights", network=FlowMap, steps=3)


@pytest.fixture(scope="module")
def map_address(flow_map, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("map") / "page"
    site.export(flow_map.source, folder)
    with serve_files(folder) as address:
        yield f"{address}/"


def test_a_flow_map_draws_its_films_and_says_what_guidance_it_took(chromium, map_address, flow_map):
    with visit(chromium, f"{map_address}?guidance=0.5") as (page, open):
        open()
        said = settle(page, "A 7, drawn in 3 steps")
        assert said.endswith("Drawn at guidance 1: this network does not support values between 0 and 1.")
        assert query(page) == "?digit=7&seed=67&steps=3&guidance=1"
        assert_same(drawn(page), expected(flow_map, ["7"], [67], guidance=1))
        film = sampling.draw_film(flow_map.network, torch.tensor([7]), [67], flow_map.sampling.updated(guidance=1))
        for name in ("predicted", "velocity"):  # they need extra forward passes
            shown = page.evaluate("name => Array.from(document.getElementById('film').film[name])", name)
            assert_same(np.array(shown).reshape(-1, 28, 28), getattr(film, name)[:, 0].numpy().astype(int))
        page.click("#tab-numbers")
        page.fill("[name=count]", "3")
        page.click("text=Draw the sheet")
        assert settle(page, "3 digits, drawn").endswith("this network does not support values between 0 and 1.")
        assert_same(drawn(page, "sheet"), expected(flow_map, list("012"), range(67, 70), guidance=1))
        page.evaluate("document.querySelector('details').open = true")
        page.fill("[name=guidance]", "2")
        page.click("#tab-digit")
        said = settle(page, "A 7, drawn in 3 steps")
        wait_until(lambda: query(page).endswith("guidance=2"), 60, "the guidance is drawn")
        assert "Drawn at guidance" not in page.locator("#news").inner_text()
        assert_same(drawn(page), expected(flow_map, ["7"], [67], guidance=2))


def between(loaded: weights.Weights, name: str, seed: int, place: tuple[float, float], **how) -> np.ndarray:
    """The digit drawn by Python at a point between the noises of four seeds, [1, 28, 28]."""
    (x, y), noises = torch.tensor(place), flow.noise(range(seed, seed + 4)).split(1)
    start = flow.slerp(flow.slerp(*noises[:2], x), flow.slerp(*noises[2:], x), y)
    network, labels = loaded.network, torch.tensor([loaded.network.class_names.index(name)])
    *_, last = sampling.states_from(network, start, labels, loaded.sampling.updated(**how), nullcontext)
    return images.to_pixels(last.x, network.pixel_mean, network.pixel_std).numpy().astype(int)


def walked(page) -> np.ndarray:
    """The digit at the point, once it has stopped moving."""
    wait_until(
        lambda: page.evaluate("location.search.endsWith(`&walk=${document.getElementById('stroll').place}`)"),
        60,
        "the point rests",
    )
    return np.array(page.evaluate("Array.from(document.getElementById('stroll').pixels)")).reshape(1, 28, 28)


def test_a_walk_draws_between_four_noises(chromium, map_address, flow_map):
    with visit(chromium, f"{map_address}?walk=0.25,0.75&digit=3") as (page, open):
        open()
        before = walked(page)
        expect(page.locator("#tab-walk")).to_have_attribute("aria-selected", "true")
        assert_same(before, between(flow_map, "3", 67, (0.25, 0.75)))
        corners = """() => document.getElementById("stroll").corners.map(corner =>
            Array.from(corner.getContext("2d").getImageData(0, 0, 28, 28).data.filter((_, i) => i % 4 === 0)))"""
        wanted = expected(flow_map, ["3"] * 4, range(67, 71))
        wait_until(
            lambda: np.abs(np.array(page.evaluate(corners)).reshape(4, 28, 28) - wanted).max() <= 1, 60, "corners"
        )

        box = page.locator(".walk-field").bounding_box()
        page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.75 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.1 * box["height"], steps=10)
        page.mouse.up()
        page.mouse.move(box["x"], box["y"])  # the button is up: the point stays
        after = walked(page)
        place = page.evaluate("document.getElementById('stroll').place")
        assert place == pytest.approx([0.8, 0.1], abs=0.01)
        assert np.abs(after - before).mean() > 3
        assert_same(after, between(flow_map, "3", 67, place))

        page.focus(".walk-plane")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+ArrowDown")
        assert_same(walked(page), between(flow_map, "3", 67, (place[0] + 0.02, place[1] + 0.1)))
        expect(page.locator(".walk-plane")).to_have_attribute(
            "aria-valuetext", re.compile("^82% to the right, 20% down$")
        )

        page.fill("[name=steps]", "9")  # more than a walk allows
        settle(page, "A 3, drawn in 4 steps between four noises")
        assert_same(walked(page), between(flow_map, "3", 67, (place[0] + 0.02, place[1] + 0.1), steps=4))


def test_a_tab_that_is_opened_before_the_network_is_there_is_drawn(chromium, map_address, flow_map):
    with visit(chromium, map_address) as (page, open):
        waiting = []
        page.route("**/model.safetensors", lambda route: waiting.append(route))
        open()
        wait_until(lambda: waiting or page.wait_for_timeout(20), 60, "the weights are asked for")
        page.click("#tab-walk")
        waiting[0].continue_()
        assert_same(walked(page), between(flow_map, "7", 67, (0.5, 0.5)))


def test_a_walk_leaves_out_what_it_has_no_time_for(chromium, map_address, flow_map):
    with visit(chromium, f"{map_address}?walk=0,0&steps=4") as (page, open):
        page.add_init_script(COUNT)
        open()
        walked(page)
        drawings = page.evaluate("sent.length")
        moves = "() => { for (let i = 1; i <= 50; i++) document.getElementById('stroll').place = [i / 50, 0.5]; }"
        page.evaluate(moves)
        assert_same(walked(page), between(flow_map, "7", 67, (1, 0.5), steps=4))
        assert page.evaluate("sent.length") - drawings <= 4 + 4  # the corners may still have been pending
        page.evaluate(moves)
        page.click("#tab-why")  # the engines are busy
        settle(page, "7 from seed 67, in 1, 2, 4, 8, 16, 32 steps")
        page.click("#tab-walk")
        assert_same(walked(page), between(flow_map, "7", 67, (1, 0.5), steps=4))


def test_a_walk_needs_room_for_four_seeds_and_a_flow_map(chromium, address, map_address):
    with visit(chromium, f"{map_address}?walk=here&seed={2**31 - 2}") as (page, open):
        open()
        words = page.locator("[data-field=seed] .problem")
        expect(words).to_have_text(f"Seed must be a whole number from 0 to {2**31 - 4}.")
        page.fill("#seed", "5")
        walked(page)
    with visit(chromium, f"{address}?walk=0.5,0.5") as (page, open):
        open()
        settle(page, "A 7, drawn in 6 steps")
        expect(page.locator("#tab-walk")).to_be_hidden()
        assert "walk" not in query(page)


# ---- unusable weights, and weights of others


def damage(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


@pytest.mark.parametrize(
    ("name", "spoil", "sentence"),
    [
        ("model.safetensors", damage, "its sha256 differs from the one in metrics.json"),
        ("model.safetensors", lambda content: content[:-1000], "it is truncated"),
        ("model.safetensors", None, "the server answered 404"),
        ("config.json", lambda content: content.replace(b"32", b"64"), "does not match the network"),
        ("config.json", lambda content: b"<html>", "is not a JSON object"),
    ],
    ids=["damaged", "cut", "missing", "foreign", "no JSON"],
)
def test_weights_that_cannot_be_used_are_one_sentence(chromium, address, folder, name, spoil, sentence):
    (path,) = folder.glob(f"weights-*/{name}")
    with visit(chromium, address, errors=("404",)) as (page, open):
        answer = {"body": spoil(path.read_bytes())} if spoil else {"status": 404}
        page.route(f"**/{name}", lambda route: route.fulfill(**answer))
        open()
        expect(page.locator("#failure")).to_contain_text(sentence)
        expect(page.locator("#progress")).to_be_hidden()


@pytest.fixture
def hub(tmp_path):
    """Weights on a fake Hub as me/letters, and a function that installs the fake with `page.route`."""
    loaded = save(tmp_path / "letters", seed=1, classes=len(LETTERS), class_names=LETTERS, patch=4)

    def answer(route):
        name = route.request.url.removeprefix("https://huggingface.co/me/letters/resolve/abc123/")
        path = tmp_path / "letters" / name
        headers = {"Access-Control-Allow-Origin": "*"}
        known = name in weights.FILES
        route.fulfill(path=path, headers=headers) if known else route.fulfill(status=404, headers=headers)

    return loaded, lambda page: page.route("https://huggingface.co/**", answer)


def test_weights_from_the_hub(chromium, address, hub):
    loaded, route = hub
    link = f"{address}?weights=me/letters@abc123&digit=letter%20c"
    with visit(chromium, link) as (page, open):
        route(page)
        open()
        settle(page, "letter c")
        assert_same(drawn(page), expected(loaded, ["letter c"], [67]))
        assert query(page) == "?digit=letter%20c&seed=67&steps=6&guidance=1.5&weights=me/letters@abc123"
        labels = page.locator("[data-field=digit] label")
        assert labels.all_inner_texts() == LETTERS
        source = page.locator("#about a")
        expect(source).to_have_attribute("href", "https://huggingface.co/me/letters/tree/abc123")
        page.click("#tab-numbers")
        expect(page.locator("#write")).to_be_hidden()  # these classes are not digits
        page.fill("[name=count]", "9")
        page.click("text=Draw the sheet")
        settle(page, "9 digits, drawn")
        assert_same(drawn(page, "sheet"), expected(loaded, [*LETTERS, *LETTERS[:2]], range(67, 76)))


def test_what_is_chosen_before_weights_from_the_hub_are_there_counts(chromium, address, hub):
    loaded, route = hub
    with visit(chromium, f"{address}?weights=me/letters@abc123&steps=4") as (page, open):
        route(page)
        waiting = []
        page.route("**/model.safetensors", lambda route: waiting.append(route))
        open()
        wait_until(lambda: waiting or page.wait_for_timeout(20), 60, "the weights are asked for")
        page.click("label:has([value='3'])")  # not among the classes of these weights
        page.fill("[name=steps]", "5")
        page.click("[value=another]")
        seed = values(page)["seed"]
        waiting[0].fallback()
        settle(page, f"seed {seed}")
        assert values(page) == {"digit": LETTERS[0], "seed": seed, "steps": 5, "guidance": 1.5}
        assert_same(drawn(page), expected(loaded, LETTERS[:1], [seed], steps=5))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("me/letters@nowhere", "me/letters@nowhere cannot be used: "),
        ("../../a", "the name must be USER/NAME or USER/NAME@commit"),
        ("https://example.org/a", "the name must be USER/NAME or USER/NAME@commit"),
        ("me/letters@a/../../../b/resolve/c", "the name must be USER/NAME or USER/NAME@commit"),
    ],
)
def test_without_weights_from_the_hub_the_page_draws_with_its_own(chromium, address, small, hub, name, sentence):
    with visit(chromium, f"{address}?weights={name}", errors=("404",)) as (page, open):
        hub[1](page)
        open()
        settle(page, "A 7")
        expect(page.locator("#notice")).to_contain_text("Drawn with the weights of this page, because")
        expect(page.locator("#notice")).to_contain_text(sentence)
        assert_same(drawn(page), expected(small, ["7"], [67]))
        assert "weights" not in query(page)


# One core; a second worker that does not start.
ONE_CORE = "Object.defineProperty(navigator, 'hardwareConcurrency', {value: 1})"
NO_PARTNER = """window.Worker = class extends Worker {
    static made = 0;
    constructor(address, options) {
        super(Worker.made++ === 1 ? "missing.js" : address, options);
    }
};"""


@pytest.mark.parametrize("script", [ONE_CORE, NO_PARTNER], ids=["one core", "no second worker"])
def test_without_a_partner_the_first_engine_draws_alone(chromium, address, small, script):
    with visit(chromium, address, errors=("404",)) as (page, open):
        page.add_init_script(script)
        open()
        settle(page, "A 7")
        assert_same(drawn(page), expected(small, ["7"], [67]))
        assert len(page.workers) == 1
        page.click("#tab-numbers")
        page.fill("[name=count]", "6")
        page.click("text=Draw the sheet")
        settle(page, "6 digits, drawn")
        assert_same(drawn(page, "sheet"), expected(small, list("012345"), range(67, 73)))


# ---- other ways of serving


def test_it_works_under_a_path(chromium, folder, small):
    with serve_files(folder.parent.parent) as server, visit(chromium, f"{server}/a/page/?digit=2") as (page, open):
        open()
        settle(page, "A 2")
        assert_same(drawn(page), expected(small, ["2"], [67]))


def test_it_works_in_the_frame_of_another_origin(chromium, address, tmp_path):
    frame = f'<iframe src="{address}" width="900" height="900" sandbox="allow-scripts allow-same-origin"></iframe>'
    (tmp_path / "index.html").write_text(f"<!doctype html><title>Other</title>{frame}", encoding="utf-8")
    with serve_files(tmp_path) as server:
        other = server.replace("127.0.0.1", "localhost")
        with visit(chromium, f"{other}/index.html", errors=("favicon", "404", "Clipboard")) as (page, open):
            open()
            inside = page.frame_locator("iframe")
            expect(inside.locator("#news")).to_contain_text("A 7")
            inside.locator("[value=copy]").click()
            expect(inside.locator("#link")).to_have_value(f"{address}?digit=7&seed=67&steps=6&guidance=1.5")


def test_it_opens_without_a_network_and_is_never_out_of_date(chromium, small, tmp_path):
    site.export(small.source, tmp_path / "site")
    with visit(chromium, "", errors=("net::ERR",)) as (page, _):
        with serve_files(tmp_path / "site") as address:
            page.goto(address)
            settle(page, "A 7")
            page.evaluate("navigator.serviceWorker.ready.then(() => true)")
        page.goto(f"{address}/?digit=3&seed=1")
        settle(page, "A 3")
        assert_same(drawn(page), expected(small, ["3"], [1]))
        other = save(tmp_path / "other", seed=2)
        site.export(str(tmp_path / "other"), tmp_path / "site")
        with serve_files(tmp_path / "site", port=int(address.rpartition(":")[2])):
            page.goto(f"{address}/?digit=3&seed=1")
            settle(page, "A 3")
            assert_same(drawn(page), expected(other, ["3"], [1]))


# ---- accessibility


def test_tabs_by_keyboard(page):
    page.focus("#tab-digit")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-why")).to_be_focused()
    expect(page.locator("#why")).to_be_visible()
    page.keyboard.press("End")
    expect(page.locator("#numbers")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-digit")).to_be_focused()
    assert page.locator("[role=tab][tabindex='0']").count() == 1


def test_the_first_tab_keys_reach_class_steps_and_buttons(page):
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(({name, id, value}) => name || id || value)(document.activeElement)"))
    assert reached == ["digit", "steps", "steps-slider", "another", "copy", None]  # None: the summary


def test_with_reduced_motion_only_the_finished_digit_appears(chromium, address):
    with visit(chromium, address, reduced_motion="reduce") as (page, open):
        page.add_init_script(SEEN)
        open()
        settle(page)
        page.click("label:has([value='4'])")
        settle(page, "A 4")
        assert page.evaluate("seen") == [-6, 0, 0]  # the noise while the network is loading, then two finished digits


@pytest.mark.parametrize("width", [320, 375, 768])
def test_nothing_sticks_out_on_a_narrow_screen(chromium, map_address, width):
    with visit(chromium, f"{map_address}?number=1904198", viewport={"width": width, "height": 667}) as (page, open):
        open()
        settle(page, "1904198")
        page.fill("[name=count]", "12")
        page.click("text=Draw the sheet")
        settle(page, "12 digits")
        for name in ("numbers", "why", "walk", "digit"):
            page.click(f"#tab-{name}")
            page.wait_for_timeout(100)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            tab = page.locator(f"#tab-{name}").bounding_box()
            assert tab["x"] + tab["width"] <= width - 12, name
        settle(page, "A 7")
        if width == 375:  # the digit is visible together with the classes
            box = page.locator("#film canvas").first.bounding_box()
            assert box["y"] + box["height"] < 667
            assert page.evaluate("scrollY") == 0


def test_an_old_browser_and_one_without_scripts_are_told_so(chromium, address):
    with visit(chromium, address) as (page, open):
        page.add_init_script("WebAssembly.validate = () => false")
        open()
        expect(page.locator("#failure")).to_contain_text("needs WebAssembly with SIMD")
    with visit(chromium, address, java_script_enabled=False) as (page, open):
        open()
        expect(page.locator("noscript p")).to_be_visible()
