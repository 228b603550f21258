"""Measure a visitor's latency in the browser and its causes. `python -m tests.benchmark.latency`"""

import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from model import sampling, weights
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
studio = app.Studio(loaded); lap("draw the first digit")
app.build(studio); lap("build the page")
"""

# Milliseconds from a click on a class to the next film.
CHANGE = """label => new Promise(done => {
    const element = document.querySelector("#film"), before = element.film, started = performance.now();
    const look = () => {
        if (element.film === before) requestAnimationFrame(look);
        else done(performance.now() - started);
    };
    document.querySelectorAll("#panel .classes label")[label].click();
    look();
})"""


def changes(page, count: int) -> list[float]:
    """The sorted times of `count` class changes, in milliseconds."""
    waits = []
    for change in range(count):
        waits.append(page.evaluate(CHANGE, (change + 1) % 10))
        page.wait_for_timeout(300)
    return sorted(waits)


def drawing() -> float:
    """The median time of sampling alone in Python, in milliseconds."""
    loaded, times = weights.load(device=pick()), []
    network, config = loaded.choose(replace(loaded.sampling, steps=8))
    for label in range(10):
        started = time.perf_counter()
        sampling.draw_film(network, torch.tensor([label]), [67], config)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def told(waits: list[float]) -> str:
    return f"median {statistics.median(waits):.0f} ms, nine in ten within {waits[int(0.9 * len(waits))]:.0f} ms"


def main() -> int:
    print(machine(pick("cpu")))
    with TemporaryDirectory() as folder, browser() as chromium:
        started = time.perf_counter()
        with serve(Path(folder) / "log") as (url, _):
            served = time.perf_counter() - started
            page = chromium.new_page()
            page.goto(url)
            page.wait_for_selector("#film canvas")
            opened = time.perf_counter() - started
            print(f"From `python app.py` to the page: {served:.1f} s; to the digit in the browser: {opened:.1f} s.")
            page.goto(f"{url}/?digit=0&steps=8")
            page.wait_for_selector("#film canvas")
            page.wait_for_timeout(2000)
            waits = changes(page, 40)
            print(
                f"Change → new digit at 8 steps: {told(waits)}; {drawing():.0f} ms of it is the "
                "drawing, the rest Gradio, HTTP and the browser."
            )
            other = chromium.new_page()
            other.goto(f"{url}/?digit=0&steps=50&number=0")
            other.locator("input[name=count]").fill("400")
            other.get_by_role("button", name="Draw the sheet").click()
            other.wait_for_selector("digit-sheet canvas")
            busy = changes(page, 20)
            drawn = other.locator("digit-sheet canvas").count()
            print(f"The same while somebody draws 400 digits in 50 steps ({drawn} are there by now): {told(busy)}.")
    print("Where the start goes:")
    command = [sys.executable, "-c", STAGES]
    print(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
