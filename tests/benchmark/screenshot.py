"""Screenshots of the page, for the README, for link previews and of other views.
`python -m tests.benchmark.screenshot`"""

import base64
import io
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from model import images, weights
from model.page import html as pictures
from model.sampling import draw_film
from tests.server import ROOT, browser, serve

VIEWS = {  # file: width, height, colour scheme, tab
    ROOT / "tests/page/page.png": (1100, 940, "light", "Digit"),
    ROOT / "out/dark.png": (1100, 900, "dark", "Digit"),
    ROOT / "out/why.png": (1100, 1800, "light", "Why it works"),
    ROOT / "out/numbers.png": (1100, 1100, "dark", "Numbers"),
    ROOT / "out/experiments.png": (1100, 900, "light", "Experiments"),
    ROOT / "out/phone.png": (375, 667, "light", "Digit"),
    ROOT / "out/phone-why.png": (375, 1800, "dark", "Why it works"),
    ROOT / "out/phone-numbers.png": (375, 1100, "light", "Numbers"),
    ROOT / "out/phone-experiments.png": (375, 1100, "dark", "Experiments"),
}
STEPS = ROOT / "tests/page/steps.png"
CARD = """<body style="margin: 0; width: 1200px; height: 630px; display: grid; place-content: center; gap: 56px;
    background: #111318; color: white; font: 500 64px system-ui, sans-serif">
    <div style="display: flex; gap: 20px">{pictures}</div><div style="text-align: center">{title}</div></body>"""


def card(page) -> None:
    """The link preview: a digit emerging from noise."""
    loaded = weights.load()
    network, sampling = loaded.choose(loaded.sampling)
    film = draw_film(network, torch.tensor([7]), [67], sampling)
    shown = ""
    for i in (0, 9, 13, 16, 20):
        Image.fromarray(images.enlarge(film.noisy[i, 0], 7)).save(file := io.BytesIO(), "png")
        source = base64.b64encode(file.getvalue()).decode()
        shown += f'<img style="border-radius: 8px" src="data:image/png;base64,{source}">'
    page.set_viewport_size({"width": 1200, "height": 630})
    page.set_content(CARD.format(pictures=shown, title=pictures.TITLE))
    page.screenshot(path=pictures.HERE / "preview.png")


def look(page, tab: str) -> None:
    """Open a tab and wait until everything visible is drawn."""
    page.wait_for_selector("digit-film canvas")
    page.get_by_role("tab", name=tab).click()
    if tab == "Numbers":
        page.get_by_label("A number").fill("19.04.1987")
        page.keyboard.press("Enter")
        page.wait_for_selector("digit-row canvas")
        page.locator("input[name=count]").fill("40")
        page.get_by_role("button", name="Draw the sheet").click()
        page.wait_for_function("document.querySelectorAll('digit-sheet canvas').length === 40")
    if tab == "Why it works":
        page.wait_for_selector("digit-steps canvas >> nth=11")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(3000)  # all animations have ended


def main() -> int:
    (ROOT / "out").mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, serve(Path(folder) / "log") as (url, _), browser() as chromium:
        card(chromium.new_page())
        for path, (width, height, scheme, tab) in VIEWS.items():
            page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(url)
            look(page, tab)
            page.screenshot(path=path)
            if path.stem == "why":
                page.locator("digit-steps").screenshot(path=STEPS)
            page.close()
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
