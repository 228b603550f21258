"""The page as visitors use it, with a real server and a real browser."""

import io
import re

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.page.conftest import FILM, SEED, STEPS, TABS, Visit, digit
from tests.server import close

FEW = "/?steps=4"  # a fast link


def test_it_opens_with_a_digit_that_is_there_already(visit, bundled):
    one = visit()
    assert close(one.shows(7), digit(bundled, 7, SEED, STEPS))
    assert one.alt() == f"A 7, drawn in {STEPS} steps from the noise of seed {SEED}"
    assert one.page.locator("#film .digits-frame").count() == 9
    assert one.page.get_by_label("Show the velocity").is_visible()
    assert "its teacher of 5.86 million with the bundled weights" in one.page.locator("#about").inner_text()
    assert one.asked == []  # drawn when the server started
    assert one.page.locator("#announcement").inner_text() == ""


def test_a_class_by_mouse_and_the_steps_by_keyboard(visit, bundled):
    one = visit()
    one.choose("3")
    assert close(one.shows(3), digit(bundled, 3, SEED, STEPS))
    one.until("$('#announcement').textContent === $('#film .digits-large').getAttribute('aria-label')")
    slider = one.page.get_by_role("slider", name="Steps")
    slider.focus()
    for _ in range(3):
        slider.press("ArrowLeft")
    assert close(one.shows(3, steps=STEPS - 3), digit(bundled, 3, SEED, STEPS - 3))
    assert one.field("steps").input_value() == str(STEPS - 3)
    assert slider.evaluate("slider => getComputedStyle(slider).outlineStyle") == "solid"


def test_the_classes_are_one_stop_of_the_tab_key(visit, bundled):
    one = visit()
    one.page.get_by_role("radio", name="7").focus()
    one.page.keyboard.press("ArrowRight")
    assert close(one.shows(8), digit(bundled, 8, SEED, STEPS))
    for key in ("ArrowUp", "ArrowLeft"):
        one.page.keyboard.press(key)
    one.shows(6)
    assert one.page.evaluate("document.activeElement.value") == "6"
    one.page.keyboard.press("Tab")
    assert one.page.evaluate("document.activeElement.name") == "steps"
    one.page.keyboard.press("Shift+Tab")
    assert one.page.evaluate("document.activeElement.value") == "6"


def test_another_seed_is_drawn(visit, bundled):
    one = visit()
    one.page.get_by_role("button", name="Another seed").click()
    one.until(f"{FILM}.film.seeds[0] !== {SEED}")
    seed = int(one.field("seed").input_value())
    assert close(one.shows(7, seed), digit(bundled, 7, seed, STEPS))
    one.settle()
    assert len(one.asked) == 1


def test_a_bad_value_is_a_sentence_beside_its_field_and_picture_and_address_stay(visit):
    one = visit()
    one.page.get_by_role("button", name="Another seed").click()
    one.page.wait_for_url("**/?digit=7&seed=*")
    before, address = one.shows(7, int(one.field("seed").input_value())), one.page.url
    one.more()
    for name, value, words in (
        ("seed", "", "Seed is empty; it must be a whole number from 0 to 2147483647."),
        ("seed", "7.5", "Seed must be a whole number from 0 to 2147483647, not 7.5."),
        ("steps", "", "Steps is empty; it must be a whole number from 1 to 50."),
        ("guidance", "9", "Guidance must be a number from 0 to 5, not 9."),
    ):
        good = one.field(name).input_value()
        one.field(name).fill(value)
        one.page.locator(f"#panel [data-field={name}] .problem").get_by_text(words).wait_for()
        assert one.field(name).get_attribute("aria-invalid") == "true"
        one.settle()
        assert np.array_equal(one.pixels(), before)
        assert one.page.url == address
        one.field(name).fill(good)
        one.until(f"$('#panel [data-field={name}] .problem').textContent === ''")
        assert one.field(name).get_attribute("aria-invalid") is None


def test_a_typed_number_that_cannot_be_drawn_becomes_one_that_can(visit, bundled):
    one = visit()
    box = one.field("steps")
    for typed, drawn in (("900", 50), ("7.5", 8), ("0", 1)):
        box.fill(typed)
        one.page.get_by_text(f"Steps must be a whole number from 1 to 50, not {typed}.").wait_for()
        box.blur()
        assert close(one.shows(7, steps=drawn), digit(bundled, 7, SEED, drawn))
        assert box.input_value() == str(drawn)
        assert one.page.locator("#panel [data-field=steps] .problem").inner_text() == ""


def test_a_guidance_that_the_network_does_not_support_is_noted(visit, bundled):
    one = visit("/?seed=5&steps=2&guidance=0.5")
    assert close(one.shows(7, 5, 2), digit(bundled, 7, 5, 2, 1.0))
    note = one.page.locator("#panel [data-field=guidance] .problem")
    assert note.inner_text() == "Drawn at guidance 1: this network does not support values between 0 and 1."
    assert note.is_visible()
    assert (one.field("guidance").input_value(), one.field("guidance").get_attribute("aria-invalid")) == ("1", None)
    assert one.page.url.endswith("seed=5&steps=2&guidance=1")
    one.field("guidance").fill("2")
    one.until(f"{FILM}.film.guidance === 2")
    assert note.inner_text() == ""


def test_a_guidance_of_0_says_that_any_class_may_come(visit):
    one = visit("/?digit=7&seed=3&guidance=0")
    assert one.alt() == f"An image of any class, drawn in {STEPS} steps from the noise of seed 3"
    assert one.page.locator("#digit-title").inner_text() == "Any class from seed 3"
    one.more()
    assert "0 ignores it: any class may appear" in one.page.locator("#guidance-hint").inner_text()


def test_a_link_is_a_picture_that_is_drawn_once(visit, bundled):
    one = visit("/?digit=5&seed=11&steps=6&guidance=2.5")
    assert close(one.shows(5, 11, 6), digit(bundled, 5, 11, 6, 2.5))
    one.settle()
    assert len(one.asked) == 1
    values = [one.field(name).input_value() for name in ("steps", "guidance", "seed")]
    assert values == ["6", "2.5", "11"]
    assert one.page.get_by_role("radio", name="5").is_checked()


def test_a_link_to_what_the_page_opens_with_anyway(visit):
    visit(f"/?digit=7&seed={SEED}&steps=x").shows(7)


def test_the_copied_link_opens_the_same_digit(visit, page_url):
    one = visit("/?digit=4&seed=3&steps=5&guidance=1.5", permissions=["clipboard-read", "clipboard-write"])
    first = one.shows(4, 3, 5)
    one.page.get_by_role("button", name="Copy link").click()
    one.page.get_by_role("button", name="Link copied").wait_for()
    link = one.page.evaluate("navigator.clipboard.readText()")
    assert link == f"{page_url}/?digit=4&seed=3&steps=5&guidance=1.5" == one.page.url
    assert np.array_equal(visit(link.removeprefix(page_url)).shows(4, 3, 5), first)


# ---- the other tabs


def test_every_tab_is_about_the_same_digit(visit, bundled):
    """A click on a picture also opens it: one drawing, focus on its heading, and an announcement."""
    one = visit("/?digit=3&seed=5&steps=4&guidance=2")
    one.page.set_viewport_size({"width": 1100, "height": 2400})
    assert len(one.asked) == 1  # closed tabs draw nothing
    one.open("Why it works")
    one.until("$$('digit-steps canvas').length === 12")
    for row, column, steps in ((1, 5, 16), (2, 4, 8)):  # of the flow and of the map
        cell = f"digit-steps tbody tr:nth-child({row}) td:nth-of-type({column})"
        assert close(one.pixels(f"{cell} canvas"), digit(bundled, 3, 5, steps, 2, film=False))
        assert f"steps={steps}" in one.page.locator(f"{cell} a").get_attribute("href")
    one.page.wait_for_selector("digit-styles a")
    one.page.locator(f"{cell} a").scroll_into_view_if_needed()
    one.settle()
    before = len(one.asked)
    one.page.locator(f"{cell} a").click()
    assert close(one.shows(3, 5, 8), digit(bundled, 3, 5, 8, 2))
    assert one.page.locator("#film").is_visible()
    one.settle()
    assert len(one.asked) == before + 1
    one.until("document.activeElement.id === 'digit-title'")
    assert one.page.locator("#announcement").inner_text() == "A 3, drawn in 8 steps from the noise of seed 5"
    assert one.page.url.endswith("/?digit=3&seed=5&steps=8&guidance=2")
    assert one.field("steps").input_value() == "8"


def test_one_step_of_the_scene_is_a_step_of_the_digit(visit):
    one = visit()
    one.open("Why it works")
    one.page.get_by_role("button", name="One step").click()
    one.until("$('digit-arrows').textContent.includes('After 1 of')")
    film = one.page.evaluate(f"[...{FILM}.film.noisy.slice(784, 2 * 784)]")
    assert np.array_equal(one.pixels("digit-arrows canvas"), np.array(film).reshape(28, 28))


def test_many_paths_and_ten_digits_follow_the_controls(visit, bundled):
    one = visit(FEW)
    one.page.set_viewport_size({"width": 1100, "height": 2200})
    one.open("Why it works")
    one.until("$$('digit-paths .why-path').length === 8")
    one.choose("2")
    one.until("$('digit-paths').textContent.includes('real handwritten 2')")
    one.page.wait_for_selector("digit-styles a")
    one.page.get_by_role("button", name="New noise").click()
    one.until("$$('digit-styles .why-style').length === 2")
    seed = int(one.field("seed").input_value())
    assert seed != SEED
    one.shows(2, seed, 4)  # one seed for the whole page


def test_a_number_is_written_and_its_link_writes_it_again(visit, bundled, page_url):
    one = visit(FEW)
    one.open("Numbers")
    one.page.get_by_label("A number").fill("19.04.1987")
    one.page.keyboard.press("Enter")
    one.until("$('#row')?.film?.digits.join('') === '19041987'")
    one.page.wait_for_url("**&number=19041987")
    one.until("$('#row').index === $('#row').film.times.length - 1")
    assert close(one.pixels("#row a:nth-of-type(7) canvas"), digit(bundled, 8, SEED + 6, 4, film=False))
    other = visit(one.page.url.removeprefix(page_url))
    other.until("$('#row')?.film?.digits.join('') === '19041987'")
    assert other.page.get_by_label("A number").input_value() == "19041987"
    other.page.locator("#row").wait_for()  # its tab is open
    assert len(other.asked) == 1
    other.page.locator("#row a").nth(6).click()
    assert close(other.shows(8, SEED + 6, 4), digit(bundled, 8, SEED + 6, 4))
    other.page.wait_for_url(f"**/?digit=8&seed={SEED + 6}&steps=4&guidance=1.15")
    other.open("Numbers")  # now with the seed of the page
    other.until(f"$('#row').film.seeds[0] === {SEED + 6}")


def test_a_link_with_a_bad_number_opens_its_tab_and_says_so(visit):
    one = visit("/?steps=4&number=seven")
    one.page.locator("#write .problem").get_by_text("Number must be 1 to 16 digits, not 'seven'.").wait_for()
    assert one.page.get_by_label("A number").input_value() == "seven"


def test_what_is_no_number_is_a_sentence_beside_it(visit):
    one = visit()
    one.open("Numbers")
    for number, read in (("12345678901234567", "12345678901234567"), ("seven", "seven"), ("-", "")):
        one.page.get_by_label("A number").fill(number)
        one.page.get_by_role("button", name="Write it").click()
        sentence = f"Number must be 1 to 16 digits, not '{read}'."
        one.page.locator("#write .problem").get_by_text(sentence).wait_for()
        assert one.page.locator("#row canvas").count() == 0


def test_a_link_can_be_copied_before_its_digit_is_there(chromium, page_url):
    context = chromium.new_context(permissions=["clipboard-read", "clipboard-write"])
    page, link = context.new_page(), page_url + "/?digit=3&seed=9"
    page.route("**/queue/join*", lambda route: None)  # the request never reaches the server
    page.goto(link)
    page.get_by_role("button", name="Copy link").click()
    page.get_by_role("button", name="Link copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == link
    context.close()


def test_a_sheet_of_chosen_classes_and_its_stop(visit, bundled):
    one = visit("/?steps=8")
    one.open("Numbers")
    sheet = one.page.locator("#sheet")
    for name in "01245678":
        sheet.locator("label").filter(has_text=re.compile(f"^{name}$")).click()
    sheet.locator("input[name=count]").fill("15")
    one.page.get_by_role("button", name="Draw the sheet").click()
    one.until("$$('digit-sheet canvas').length === 15")
    one.settle()
    data = np.load(one.save(one.page.get_by_role("button", name="Save data set")).path())
    assert data["labels"].tolist() == [3, 9] * 7 + [3]
    assert close(data["images"][13], digit(bundled, 9, SEED + 13, 8, film=False))
    sheet.locator("input[name=count]").fill("400")
    one.page.get_by_role("button", name="Draw the sheet").click()
    one.until("(count => count >= 20 && count < 400)($$('digit-sheet canvas').length)")
    one.page.get_by_role("button", name="Stop").click()
    one.page.wait_for_timeout(2000)
    drawn = one.page.locator("digit-sheet canvas").count()
    one.page.wait_for_timeout(2000)
    assert 20 <= one.page.locator("digit-sheet canvas").count() == drawn < 400
    data = np.load(one.save(one.page.get_by_role("button", name="Save data set")).path())
    assert len(data["images"]) == len(data["labels"]) == drawn  # the drawn digits are kept
    one.page.locator("digit-sheet a").nth(1).click()
    one.shows(9, SEED + 1, 8)
    one.open("Numbers")
    assert one.page.locator("digit-sheet canvas").count() == drawn


def test_a_sheet_asked_for_in_the_middle_of_another_or_right_after_its_stop_takes_its_place(visit):
    one = visit("/?steps=8")
    one.open("Numbers")
    draw, stop = (one.page.get_by_role("button", name=name) for name in ("Draw the sheet", "Stop"))
    for count, before in ((400, None), (3, None), (400, None), (5, stop)):
        one.page.locator("#sheet input[name=count]").fill(str(count))
        if before:
            before.click()
        draw.click()
        if count == 400:
            one.until("$$('digit-sheet canvas').length >= 20")
        else:
            one.until(f"$$('digit-sheet canvas').length === {count}")


def test_a_sheet_of_one_digit_is_no_poster_and_an_empty_one_a_sentence(visit):
    one = visit()
    one.open("Numbers")
    one.page.locator("#sheet input[name=count]").fill("1")
    one.page.get_by_role("button", name="Draw the sheet").click()
    one.page.wait_for_selector("digit-sheet canvas")
    assert one.page.locator("digit-sheet canvas").bounding_box()["width"] <= 112
    for box in one.page.locator("#sheet .classes label").all()[:10]:
        box.click()
    one.page.get_by_role("button", name="Draw the sheet").click()
    one.page.locator("#sheet .classes .problem").get_by_text("lass").wait_for()


def test_a_digit_changes_its_mind_and_its_handwriting(visit, bundled):
    one = visit("/?digit=3&seed=2&steps=8")
    one.page.set_viewport_size({"width": 1100, "height": 1400})
    one.open("Experiments")
    one.until("$('#changes').film && $('#morphs').film && $('#morphs').index === 8 && $('#changes').index === 8")
    assert close(one.pixels("#changes canvas >> nth=0"), digit(bundled, 8, 2, 8, film=False))  # changed from the start
    assert close(one.pixels("#changes canvas >> nth=7"), digit(bundled, 3, 2, 8, film=False))  # never changed
    assert close(one.pixels("#morphs canvas >> nth=0"), digit(bundled, 3, 2, 8, film=False))
    last = int(one.page.locator("#morph input").input_value())
    assert close(one.pixels("#morphs canvas >> nth=7"), digit(bundled, 3, last, 8, film=False))
    one.page.get_by_label("Change to").select_option("5")
    one.until("$('#changes').film.about.includes('becomes a 5')")


def test_a_sketch_is_finished(visit):
    one = visit("/?steps=8")
    one.open("Experiments")
    paper = one.page.locator("#paper .lab-paper")
    paper.scroll_into_view_if_needed()
    box = paper.bounding_box()
    one.page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.2 * box["height"])
    one.page.mouse.down()
    for x, y in ((0.7, 0.2), (0.5, 0.5), (0.4, 0.8)):
        one.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5)
    one.page.mouse.up()
    one.until("$('#finished').film?.about.startsWith('A 7, finished from a sketch under noise up to t = 0.85')")
    one.until("$('#finished').index === $('#finished').film.times.length - 1")
    kept = one.pixels("#finished .digits-large")
    slider = one.page.get_by_role("slider", name="Noise added to the sketch")
    middles = [
        part["x"] + part["width"] / 2 for part in (slider.bounding_box(), one.page.locator("#paper").bounding_box())
    ]
    assert abs(middles[0] - middles[1]) < 1
    one.page.get_by_label("Noise, typed").fill("0.1")  # the sketch hardly changes
    one.until("$('#finished').film.times[0] === 0.1 && $('#finished').index === $('#finished').film.times.length - 1")
    one.settle()
    drawn = np.array(one.page.evaluate("document.querySelector('#paper').pixels")).reshape(28, 28)
    last = one.pixels("#finished .digits-large")
    assert np.abs(last - drawn).mean() < np.abs(kept - drawn).mean() / 2
    one.page.get_by_role("button", name="Clear").click()
    one.page.locator("#finished").wait_for(state="hidden")
    one.page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    one.page.locator("#finished").wait_for()


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


def everything(one: Visit, tab: str) -> None:
    """Open a tab and draw everything in it."""
    one.open(tab)
    if tab == "Numbers":
        one.page.get_by_label("A number").fill("1234567890123456")
        one.page.keyboard.press("Enter")
        one.page.locator("#sheet input[name=count]").fill("20")
        one.page.get_by_role("button", name="Draw the sheet").click()
        one.page.get_by_role("button", name="Save data set").wait_for()
        one.page.wait_for_selector("#row canvas >> nth=15")
    one.settle()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(visit, scheme):
    one = visit(FEW, color_scheme=scheme)
    one.page.set_viewport_size({"width": 1100, "height": 2400})
    one.more()
    one.field("seed").fill("")
    one.page.get_by_text("Seed is empty").wait_for()
    texts = one.page.evaluate(CONTRAST)
    one.field("seed").fill("1")
    one.settle()
    for tab in TABS:
        everything(one, tab)
        texts += one.page.evaluate(CONTRAST)
    assert len(texts) > 100
    assert [text for text in texts if text[1] < 4.5] == []


@pytest.mark.parametrize("width", [320, 375])
def test_a_phone_has_no_horizontal_scrolling(visit, width):
    one = visit(FEW, viewport={"width": width, "height": 667}, color_scheme="dark")
    for tab in TABS:
        everything(one, tab)
        assert one.page.evaluate("document.documentElement.scrollWidth") <= width, tab


def test_on_a_phone_the_digit_is_in_sight_of_its_controls(visit):
    one = visit(viewport={"width": 375, "height": 667}, has_touch=True)
    one.page.locator("#panel .classes label").filter(has_text=re.compile("^3$")).tap()
    one.shows(3)
    assert one.page.evaluate("scrollY") == 0
    for part in ("#panel .classes", "#film .digits-large", "#film .digits-guess canvas", "#film .digits-time"):
        box = one.page.locator(part).bounding_box()
        assert box["y"] >= 0, part
        assert box["y"] + box["height"] <= 667, part


@pytest.mark.parametrize("width", [375, 1100])
def test_the_classes_are_an_even_grid(visit, width):
    one = visit(viewport={"width": width, "height": 667})
    boxes = [label.bounding_box() for label in one.page.locator("#panel .classes label").all()]
    assert len({(round(box["width"]), round(box["height"])) for box in boxes}) == 1
    assert [len({round(box[edge]) for box in boxes}) for edge in "xy"] == [6, 2]


def test_nothing_moves_between_tabs(visit):
    one = visit()
    places = set()
    for tab in TABS:
        one.open(tab)
        one.settle()
        boxes = [one.page.locator(part).bounding_box() for part in ("#panel", "#stage")]
        places.add(tuple((box["x"], box["y"], box["width"]) for box in boxes))
    assert len(places) == 1


def test_a_link_looks_like_the_page_elsewhere(page_url):
    """Title, description, address and picture, without Gradio's own tags."""
    with httpx.Client() as http:
        tags = dict(re.findall(r'<meta property="og:(\w+)" content="([^"]*)"', text := http.get(page_url).text))
        assert tags["title"] == "Digits from noise"
        assert "handwritten digit" in tags["description"]
        assert (tags["url"], tags["image"]) == (f"{page_url}/", f"{page_url}/preview.png")
        assert text.count("og:title") == text.count("og:url") == text.count("og:image") == 1
        assert "twitter:creator" not in text
        picture = Image.open(io.BytesIO(http.get(tags["image"]).content))
    assert picture.size == (1200, 630)
