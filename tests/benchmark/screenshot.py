"""The screenshot in the README, and how the page looks elsewhere. `python -m tests.benchmark.screenshot`"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.server import ROOT, browser, serve

VIEWS = {  # file: width, colour scheme, tab
    ROOT / "tests/page/page.png": (1000, "light", "Draw"),
    ROOT / "out/dark.png": (1000, "dark", "Draw"),
    ROOT / "out/phone.png": (375, "light", "Draw"),
    ROOT / "out/steps.png": (1000, "light", "Steps"),
    ROOT / "out/sheet.png": (1000, "dark", "Sheet"),
    ROOT / "out/phone-sheet.png": (375, "dark", "Sheet"),
}


def main() -> int:
    (ROOT / "out").mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, serve(Path(folder) / "log") as (url, _), browser() as chromium:
        for path, (width, scheme, tab) in VIEWS.items():
            page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page.goto(url)
            page.wait_for_selector(".digit img")
            page.get_by_role("tab", name=tab).click()
            if tab == "Sheet":
                page.get_by_role("button", name="Draw the sheet").click()
                page.wait_for_function("document.querySelectorAll('.cells img').length === 100")
            if tab == "Steps":
                page.wait_for_function("document.querySelectorAll('.steps img').length === 60")
            page.wait_for_timeout(2000)  # the digit has drawn itself
            page.screenshot(path=path, full_page=True)
            page.close()
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
