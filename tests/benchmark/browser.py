"""Benchmark the network in the browser against Python on the same machine. `python -m tests.benchmark.browser`"""

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import torch

from model import weights
from model.device import pick
from model.sampling import SamplingConfig, states
from model.speed import flops, machine
from model.web import site
from tests.server import ROOT, browser, serve_files

ROUNDS = 3
STEPS = {1: 20, 10: 5}  # digits drawn at once: steps per round
SUMS = 12  # independent sums in the loop below: enough to hide latency, few enough to fit into registers
REPEATS = 1_000_000
VISITS = 5
WALKS = (1, 2, 4)  # steps

# Digits per second while the point circles the middle of the plane for three seconds, moving 60 times a second.
WALK = """() => new Promise(resolve => {
    const walk = document.getElementById("stroll"), began = performance.now();
    walk.addEventListener("digit-walk", ({detail}) => resolve(detail.rate), {once: true});
    const move = now => {
        const angle = (now - began) / 500;
        walk.place = [0.5 + 0.4 * Math.cos(angle), 0.5 + 0.4 * Math.sin(angle)];
        if (now - began < 3000) requestAnimationFrame(move);
    };
    requestAnimationFrame(move);
})"""

# Milliseconds from the start of the visit until the page announces its first digit.
FIRST_DIGIT = """new Promise(resolve => {
    const news = document.getElementById("news"), check = () => news.textContent && resolve(performance.now());
    new MutationObserver(check).observe(news, {childList: true});
    check();
})"""

# Milliseconds of each step except the first, which also computes the modulations.
DRAW = """async ([engine, digits, steps]) => {
    window.workers ??= {};
    const answer = (message, last) => new Promise((resolve, reject) => {
        const times = [];
        workers[engine].onmessage = ({data}) => {
            if (data.kind === "error") reject(new Error(data.message));
            if (data.kind === "state" && data.velocity) times.push(data.ms);
            if (data.kind === last) resolve(times);
        };
        workers[engine].postMessage(message);
    });
    if (!workers[engine]) {
        workers[engine] = new Worker("/model/web/worker.js", {type: "module"});
        const relaxed = engine.includes("relaxed");
        await answer({kind: "load", weights: new URL("/weights/teacher", location).href, relaxed}, "ready");
    }
    const labels = Array.from({length: digits}, (_, i) => i % 10);
    const times = await answer(
        {kind: "draw", id: 1, labels, seeds: labels, steps: steps + 1, guidance: 1, time_shift: 1}, "done");
    return times.slice(1).map((time, i) => time - times[i]);
}"""

# The shortest of 100 runs of `run(repeats)`, in milliseconds.
LOOP = """async ([bytes, repeats]) => {
    const {run} = (await WebAssembly.instantiate(Uint8Array.from(bytes))).instance.exports;
    return Math.min(...Array.from({length: 100}, () => {
        const started = performance.now();
        run(repeats);
        return performance.now() - started;
    }));
}"""


def loop(relaxed: bool) -> list[int]:
    """A WebAssembly module whose `run(repeats)` adds a product to each of `SUMS` vectors of 4 floats, `repeats` times.

    All values stay in registers, so that only the multiply and add units limit it.
    """
    get, store, factor = 0x20, 0x21, SUMS + 1  # instructions for local variables; index of the last one
    multiply, add, multiply_add = [0xFD, 0xE6, 0x01], [0xFD, 0xE4, 0x01], [0xFD, 0x85, 0x02]
    body = [1, SUMS + 1, 0x7B]  # the variables 1 to SUMS + 1 are vectors
    body += [get, 0, 0xB2, 0xFD, 0x13, store, factor]  # repeats, four times as a float
    body += [0x03, 0x40]  # loop
    for i in range(1, SUMS + 1):
        factors = [get, factor, get, factor]
        body += [*factors, get, i, *multiply_add] if relaxed else [get, i, *factors, *multiply, *add]
        body += [store, i]
    body += [get, 0, 0x41, 1, 0x6B, 0x22, 0, 0x0D, 0, 0x0B]  # decrement repeats, loop unless 0; end
    body += [get, 1]
    for i in range(2, SUMS + 1):
        body += [get, i, *add]
    body += [0xFD, 0x1F, 0, 0x0B]  # the first of the four floats; end
    return [
        *b"\0asm\1\0\0\0",
        *section(1, [1, 0x60, 1, 0x7F, 1, 0x7D]),  # a type: i32 → f32
        *section(3, [1, 0]),  # a function of this type
        *section(7, [1, 3, *b"run", 0, 0]),  # its name
        *section(10, [1, *length(body), *body]),
    ]


def section(kind: int, content: list[int]) -> list[int]:
    return [kind, *length(content), *content]


def length(content: list[int]) -> list[int]:
    """LEB128 of a length below 16384."""
    return [len(content) & 0x7F | 0x80, len(content) >> 7]


@torch.inference_mode()
def in_python(network, digits: int, steps: int) -> list[float]:
    """The same as `DRAW`."""
    labels = torch.arange(digits) % 10
    times = []
    for _ in states(network, labels, labels.tolist(), SamplingConfig(steps + 1, 1, 1)):
        times.append(1000 * time.perf_counter())
    return [after - before for before, after in pairwise(times[:-1])]  # the last state needs no call


def first_digit(chromium, address: str) -> float:
    """Seconds from opening the static page, with an empty cache, to its first finished digit."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(address, wait_until="commit")
    page.wait_for_selector("#news", state="attached")
    milliseconds = page.evaluate(FIRST_DIGIT)
    context.close()
    return milliseconds / 1000


def walk(chromium, address: str) -> dict[int, float]:
    """Digits per second on the walk of the static page at `address`, by steps per digit."""
    rates = {}
    for steps in WALKS:
        page = chromium.new_page()
        page.goto(f"{address}/?steps={steps}&walk=0.5,0.5")
        page.wait_for_selector("#news:not(:empty)")
        page.evaluate(WALK)  # warm-up: the second engine may start late
        rates[steps] = page.evaluate(WALK)
        page.close()
    return rates


def main() -> int:
    device = pick("cpu")
    print(machine(device))
    velocity = str(weights.BUNDLED / weights.TEACHER)
    exact, fast = (weights.load(velocity, dtype=dtype).network for dtype in (torch.float32, None))
    work, taken = flops(exact), defaultdict(list)
    engines = ("kernels-relaxed.wasm", "kernels.wasm")
    with browser() as chromium, serve_files(ROOT) as address:
        page = chromium.new_page()
        page.goto(f"{address}/model/web/flow.js")  # any file: a script may then load the others
        for _ in range(ROUNDS):  # interleaved, so that slow phases of the machine affect all variants
            for digits, steps in STEPS.items():
                for engine in engines:
                    taken[engine, digits] += page.evaluate(DRAW, [engine, digits, steps])
                for network in (exact, fast):
                    name = f"Python, {str(network.modulation.weight.dtype).removeprefix('torch.')}"
                    taken[name, digits] += in_python(network, digits, steps)
        limits = {
            engine: 8 * SUMS * REPEATS / page.evaluate(LOOP, [loop("relaxed" in engine), REPEATS]) / 1e6
            for engine in engines
        }
        with tempfile.TemporaryDirectory() as folder:
            how = site.export(None, Path(folder) / "site").sampling
            with serve_files(Path(folder) / "site") as address:
                visits = [first_digit(chromium, address) for _ in range(VISITS)]
                walks = walk(chromium, address)
        print(
            f"The first digit of the static page, {how.steps} steps with guidance {how.guidance:g}, stands after "
            f"{statistics.median(visits):.2f} s (median of {VISITS}, {min(visits):.2f} to {max(visits):.2f} s)."
        )
        told = ", ".join(f"{rate:.0f} in {steps} step{'s' * (steps > 1)}" for steps, rate in walks.items())
        print(f"Digits a second on the walk of a flow map: {told}.")
        print(f"Chromium {chromium.version}, one thread. A step is {work / 1e9:.2f} GFLOP for one digit.")
    for engine, limit in limits.items():
        print(f"128-bit SIMD reaches {limit:.0f} GFLOP/s with the instructions of {engine}.")
    print("\n| | digits | ms a step, min | median | GFLOP/s at best | of the limit |\n|---|---:|---:|---:|---:|---:|")
    for (name, digits), times in sorted(taken.items(), key=lambda item: item[0][1]):
        speed = digits * work / min(times) / 1e6
        share = f"{speed / limits[name]:.0%}" if name in limits else ""
        print(f"| {name} | {digits} | {min(times):.1f} | {statistics.median(times):.1f} | {speed:.0f} | {share} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
