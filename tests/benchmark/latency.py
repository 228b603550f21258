"""How long a visitor waits, measured in the browser, and why. `python -m tests.benchmark.latency`"""

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from model.device import pick
from model.speed import machine
from tests.server import ROOT, browser, serve

STAGES = """
import time
begin = time.perf_counter()
def lap(name):
    global begin
    print(f"  {name}: {time.perf_counter() - begin:.2f} s")
    begin = time.perf_counter()
import torch; lap("import torch")
import gradio; lap("import gradio")
import app; lap("import the rest")
from model import weights
loaded = weights.load(); lap("load and check the weights")
studio = app.Studio(loaded); studio.draw_tab(*studio.start.values(), False); lap("draw the first digit")
app.build(studio); lap("build the page")
"""

# Click a class and wait for another picture: milliseconds between the two.
CHANGE = """label => new Promise(done => {
    const before = document.querySelector(".digit img").src, started = performance.now();
    const look = () => {
        const image = document.querySelector(".digit img");
        if (image && image.src !== before && image.complete) { watch.disconnect(); done(performance.now() - started); }
    };
    const watch = new MutationObserver(look);
    watch.observe(document.body, {subtree: true, childList: true, attributes: true});
    document.querySelectorAll(".classes")[0].querySelectorAll("label")[label].click();
})"""


def main() -> int:
    print(machine(pick("cpu")))
    with TemporaryDirectory() as folder, browser() as chromium:
        started = time.perf_counter()
        with serve(Path(folder) / "log") as (url, _):
            served = time.perf_counter() - started
            page = chromium.new_page()
            page.goto(url)
            page.wait_for_selector(".digit img")
            opened = time.perf_counter() - started
            print(f"From `python app.py` to the page: {served:.1f} s; to the digit in the browser: {opened:.1f} s.")
            page.goto(f"{url}/?digit=0&steps=8")
            page.wait_for_selector(".digit img")
            page.wait_for_timeout(2000)
            waits, drawing = [], []
            for change in range(40):
                waits.append(page.evaluate(CHANGE, (change + 1) % 10))
                page.wait_for_timeout(300)
                drawing.append(float(re.search(r"in (\d+) ms", page.locator("#status").inner_text())[1]))
            middle, late = statistics.median(waits), sorted(waits)[int(0.9 * len(waits))]
            network = statistics.median(drawing)
            print(
                f"Change → new digit at 8 steps: median {middle:.0f} ms, nine in ten within {late:.0f} ms; "
                f"{network:.0f} ms of it is the drawing, the rest Gradio, HTTP and the browser."
            )
    print("Where the start goes:")
    print(
        subprocess.run([sys.executable, "-c", STAGES], cwd=ROOT, capture_output=True, text=True, check=True).stdout,
        end="",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
