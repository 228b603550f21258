"""Command: how fast this machine draws, against its own matrix products and against a plain loop. `python -m model.benchmark`"""

import argparse
import io
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model import flow, images, weights
from model.command import sentence_on_error
from model.device import described, pick
from model.dit import DiT
from model.generate import draw

DIGITS, STEPS = (1, 10, 100), (1, 8, 20)


def seconds(function: Callable, device: torch.device, budget: float = 1.0) -> float:
    """The shortest of repeated runs within about `budget` seconds: on a shared machine the one that was disturbed least."""
    function()
    times, begin = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < budget:
        started = time.perf_counter()
        function()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def peak(dtype: torch.dtype, device: torch.device, size: int = 4096) -> float:
    """FLOP/s of one large square matrix product, written into memory that is there already."""
    a, b, c = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(3))
    return 2 * size**3 / seconds(lambda: torch.mm(a, b, out=c), device)


class Products(TorchDispatchMode):
    """Collects the shapes `(batch, M, K, N)` of all matrix products that run inside it."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm"):
            a, b = args[-2:]
            self.shapes.append((1, a.shape[0], a.shape[1], b.shape[1]))
        elif name == "bmm":
            a, b = args
            self.shapes.append((*a.shape, b.shape[2]))
        elif "scaled_dot_product" in name:
            q, k = args[:2]
            batch, queries, width, keys = q.shape[0] * q.shape[1], q.shape[2], q.shape[3], k.shape[2]
            self.shapes += [(batch, queries, width, keys), (batch, queries, keys, width)]
        return function(*args, **(kwargs or {}))


def products(network: DiT, digits: int) -> list[tuple[int, int, int, int]]:
    """The matrix products of one step for that many digits."""
    device = network.rotary.device
    with torch.no_grad(), Products() as seen:
        x, t = torch.zeros(digits, 1, images.SIZE, images.SIZE, device=device), torch.ones(1, device=device)
        network(x, t, torch.zeros(digits, dtype=torch.long, device=device))
    return seen.shapes


def limit(shapes: list[tuple[int, int, int, int]], dtype: torch.dtype, device: torch.device) -> float:
    """Seconds that these products take alone, one after the other, each into memory that it was given before."""

    def alone(batch: int, m: int, k: int, n: int) -> float:
        many = (batch,) if batch > 1 else ()
        a, b, c = (torch.randn(*many, *side, device=device, dtype=dtype) for side in ((m, k), (k, n), (m, n)))
        product = torch.bmm if many else torch.mm
        if device.type != "cuda":
            return seconds(lambda: product(a, b, out=c), device, 0.05)
        product(a, b, out=c)
        hundred = torch.cuda.CUDAGraph()  # launched one by one, they would measure the launches
        with torch.cuda.graph(hundred):
            for _ in range(100):
                product(a, b, out=c)
        return seconds(hundred.replay, device, 0.05) / 100

    taken = {shape: alone(*shape) for shape in set(shapes)}
    return sum(taken[shape] for shape in shapes)


@torch.no_grad()
def plain(network: DiT, labels: torch.Tensor, seed: int, steps: int) -> torch.Tensor:
    """The loop that anybody would write first: everything at once, the network called with a time for each digit."""
    device = network.rotary.device
    x, labels = flow.noise(range(seed, seed + len(labels))).to(device), labels.to(device)
    times = flow.time_grid(steps, network.time_shift)
    v_before = t_before = None
    for t, t_next in pairwise(times):
        v = middle = network(x, x.new_full((len(x),), t), labels)
        if t_before is not None and t_next > 0:
            middle = v + (v - v_before) * (t_next - t) / (2 * (t - t_before))
        x = x + (t_next - t) * middle
        v_before, t_before = v, t
    return images.to_pixels(x, network.pixel_mean, network.pixel_std).cpu()


def memory(where: str | None) -> list[float]:
    """MB that a fresh process held at most, by Linux: once everything is imported, and after 100 digits in 8 steps on the CPU."""
    code = (
        "from model import generate, weights; import torch; "
        "held = lambda: print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]); held(); "
        f"list(generate.draw(weights.load({where!r}).network, torch.arange(100) % 10, 0, 8, 1.0)); held()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(line) * 1024 / 1e6 for line in run.stdout.split()]


def machine(device: torch.device) -> str:
    """What a reader of the figures has to know."""
    return f"{described(device)}; Python {platform.python_version()}, torch {torch.__version__}"


def table(fast: DiT, exact: DiT) -> list[str]:
    """The lines of the table: each row is measured against its limit and, in turn, against the plain loop."""
    device, dtype = fast.rotary.device, fast.modulation.weight.dtype
    lines = [
        "| digits | steps | ms | ms a step | digits/s | GFLOP/s | × limit | plain float32, ms | speed-up |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for digits in DIGITS:
        shapes = products(fast, digits)
        bound, work = limit(shapes, dtype, device), sum(2 * b * m * k * n for b, m, k, n in shapes)
        labels = torch.arange(digits) % 10
        for steps in STEPS:
            taken = seconds(lambda labels=labels, steps=steps: list(draw(fast, labels, 0, steps, 1.0)), device)
            slow = seconds(lambda labels=labels, steps=steps: plain(exact, labels, 0, steps), device)
            step = taken / steps
            cells = f"{1e3 * taken:.1f} | {1e3 * step:.2f} | {digits / taken:.1f} | {work / step / 1e9:.0f} | {step / bound:.1f}"
            lines.append(f"| {digits} | {steps} | {cells} | {1e3 * slow:.1f} | {slow / taken:.1f} |")
    return lines


def plot(network: DiT, path: Path) -> None:
    """A picture of the cost: milliseconds over the digits at 8 steps, and over the steps for ten digits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    device = network.rotary.device

    def milliseconds(digits, steps):
        return 1e3 * seconds(lambda: list(draw(network, torch.arange(digits) % 10, 0, steps, 1.0)), device, 0.2)

    sides = (
        ("digits, 8 steps", (1, 5, 10, 20, 50, 100, 200, 300, 400), lambda n: milliseconds(n, 8)),
        ("steps, ten digits", (1, 2, 5, 10, 20, 30, 40, 50), lambda n: milliseconds(10, n)),
    )
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, (name, counts, cost) in zip(axes, sides, strict=True):
        axis.plot(counts, [cost(count) for count in counts], "o-", color="#4f46e5", markersize=4)
        axis.set(xlabel=name, ylabel="milliseconds", xlim=0, ylim=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=130)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="a folder or USER/NAME[@revision] (default: the variable WEIGHTS, else the bundled ones)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw the cost of 1 to 400 digits and 1 to 50 steps (needs matplotlib)"
    )
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        device = pick(options.device)
        fast, exact = weights.load(options.weights, device).network, weights.load(options.weights, device, torch.float32).network
        print(machine(device))
        peaks = ", ".join(
            f"{name} {peak(dtype, device) / 1e9:,.0f}" for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        )
        print(f"Large matrix products, GFLOP/s: {peaks}. Drawing in {str(fast.modulation.weight.dtype).removeprefix('torch.')}.\n")
        print(*table(fast, exact), sep="\n")
        labels = torch.arange(100) % 10
        once, twice = (1e3 * seconds(lambda scale=scale: list(draw(fast, labels[:10], 0, 20, scale)), device) for scale in (1.0, 1.5))
        print(f"\nWith guidance a step asks the network twice: ten digits in 20 steps take {twice:.0f} ms, and {once:.0f} without.")
        drawn, exactly = torch.cat(list(draw(fast, labels, 0, 20, 1.0))), plain(exact, labels, 0, 20)
        difference = (drawn.float() - exactly.float()).abs().mean()
        print(f"From float32 the pictures differ by {difference:.2f} of 255 on average (100 digits, 20 steps).")
        noise = 1e3 * seconds(lambda: flow.noise(range(100)), torch.device("cpu"), 0.2)
        picture = 1e3 * seconds(lambda: images.sheet(drawn, 10).save(io.BytesIO(), "png"), torch.device("cpu"), 0.2)
        print(f"Outside the network, for 100 digits: noise {noise:.1f} ms, sheet as PNG {picture:.1f} ms.")
        if device.type == "cpu":
            lone = seconds(lambda: list(draw(exact, labels[:10], 0, 8, 1.0)), device) / 8
            bound = limit(products(exact, 10), torch.float32, device)
            print(f"In float32, as without bfloat16 units: ten digits {1e3 * lone:.1f} ms a step, {lone / bound:.2f} × limit.")
        if device.type == "cuda":
            print(f"GPU memory held at most, both networks: {torch.cuda.max_memory_allocated(device) / 1e6:.0f} MB.")
        elif sys.platform == "linux":
            imported, held = memory(options.weights)
            print(f"Memory of a process that draws 100 digits: {held:.0f} MB, of which {imported:.0f} are the imports.")
        if options.plot:
            plot(fast, options.plot)
            print(f"{options.plot}: the cost of digits and steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
