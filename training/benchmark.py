"""Command: benchmark the trainer against plain eager float32. `python -m training.benchmark`

With `--profile`, it prints a time breakdown of the training step instead.
"""

import argparse
import gc
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import profile

from model import check
from model.common import sentence_on_error
from model.device import peak_memory, pick
from model.speed import flops, machine, peak
from training.config import PRESETS, Config, add_options
from training.objective import make_loss
from training.run_folder import RunFolder
from training.trainer import Trainer

HEAD = "| step | images/s | ms | TFLOP/s | of the peak | peak memory, GB |\n|---|---:|---:|---:|---:|---:|"

PARTS = (  # of a step, matched to the profiler's names of operators, kernels and driver calls; the first match wins
    ("waiting for the device", r"Synchronize"),
    ("autograd, torch.compile, launches", r"^cu\w*Launch|autograd::|Backward\d*$|^(Torch|Compiled|AOTDispatcher)"),
    ("norms, elementwise", r"^triton_(?!tem)|CompiledFxGraph"),  # the latter holds the compiled code on a CPU
    ("attention", r"attention|flash|fmha|sdpa"),
    ("matrix products", r"gemm|nvjet|cutlass|splitK|triton_tem|::(mm|bmm|addmm)$|linear_pointwise"),
    ("EMA", r"lerp|Lerp"),
    ("gradient norm, AdamW", r"[aA]dam|[lL]p[nN]orm|BinaryOpScalarTensor|_foreach_"),
    ("random numbers, indexing", r"distribution|::rand|normal_|uniform_|index|gather|embedding|[sS]ort"),
    ("copies", r"[cC]opy|Memcpy|Memset|[fF]ill|zero_|Cat|::(cat|to)$"),
    ("norms, elementwise", r"elementwise|reduce|norm|gelu|::(add|sub|rsub|mul|div|sum|mean|silu|sin|cos|exp|where)"),
)
REST = "Python and the rest"


def part_of(name: str) -> str:
    """The part of a step that a profiler event belongs to."""
    return next((part for part, pattern in PARTS if re.search(pattern, name)), REST)


def parts(events: Iterable, steps: int, seconds: float) -> dict[str, list[float]]:
    """For each part of a step, the calls and ms on the host, then the kernels and ms on the device.

    `events` are the averages of a profile of `steps` steps in `seconds`; the host times add up to this total.
    """
    table = {part: [0.0] * 4 for part, _ in (*PARTS, (REST, ""))}
    for event in events:
        row = table[part_of(event.key)]
        if event.device_type == DeviceType.CPU:
            row[0] += event.count / steps
            row[1] += event.self_cpu_time_total / 1e3 / steps
        elif not event.is_user_annotation:  # annotations span kernels that have their own events
            row[2] += event.count / steps
            row[3] += event.self_device_time_total / 1e3 / steps
    table[REST][1] += 1e3 * seconds / steps - sum(host for _, host, *_ in table.values())
    return table


def lines(table: dict[str, list[float]]) -> list[str]:
    """The table of `parts` in Markdown, without empty rows, and without device columns if no kernels ran."""
    columns = 5 if any(kernels for _, _, kernels, _ in table.values()) else 3
    rows = [("part of a step", "calls", "host, ms", "kernels", "device, ms"), ("---", *["---:"] * 4)]
    for part, (calls, host, kernels, device) in table.items():
        if calls or kernels:
            rows.append((part, f"{calls:.0f}", f"{host:.2f}", f"{kernels:.0f}", f"{device:.2f}"))
    return [f"| {' | '.join(row[:columns])} |" for row in rows]


def step_seconds(run: Trainer, budget: float) -> float:
    """The mean time of a step over about `budget` seconds, after a warm-up of three steps."""

    def mean_of(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            run.advance()
        run.loss_sum.item()  # waits for the device
        return (time.perf_counter() - started) / count

    mean_of(3)
    return mean_of(max(3, round(budget / mean_of(2))))


def start(config: Config) -> Trainer:
    """A new run, after clearing the compiled code, memory and memory statistics of earlier ones."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return Trainer(config, RunFolder(Path("unwritten")))


def measure(name: str, config: Config, budget: float, plain: bool) -> float:
    """Print a table row and return images per second; forward and backward count as three forward passes."""
    run = start(config)
    if plain:
        run.loss_of = make_loss(run.network, config, run.device, bfloat16=False)
    step, highest = step_seconds(run, budget), peak(torch.float32 if plain else torch.bfloat16, run.device)
    speed, rate = config.batch / step, 3 * flops(run.ema) * config.batch / step
    memory = peak_memory(run.device)
    print(f"| {name} | {speed:,.0f} | {1e3 * step:.2f} | {rate / 1e12:.2f} | {rate / highest:.0%} | {memory:.1f} |")
    return speed


def print_profile(config: Config, budget: float) -> None:
    """Print the time breakdown of a step on the host and, if there is one, on the GPU."""
    run = start(config)
    step = step_seconds(run, budget)
    steps = max(3, min(20, round(budget / step)))
    with profile() as profiled:
        started = time.perf_counter()
        for _ in range(steps):
            run.advance()
        run.loss_sum.item()  # waits for the device
        seconds = time.perf_counter() - started
    table = parts(profiled.key_averages(), steps, seconds)
    busy = sum(device for *_, device in table.values())
    print(*lines(table), sep="\n")
    print(
        f"\nA step takes {1e3 * step:.2f} ms, or {1e3 * seconds / steps:.2f} ms under the profiler."
        + (f" The device was busy for {busy:.2f} ms of that." if busy else "")
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, help="preset to measure (default: full on a GPU, else cpu)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time to measure each row (default 20)")
    parser.add_argument("--profile", action="store_true", help="print a time breakdown of the training step instead")
    add_options(parser)
    options = vars(parser.parse_args(argv))
    preset, budget, profiled = options.pop("preset"), options.pop("seconds"), options.pop("profile")
    with sentence_on_error(parser):
        check.number("seconds", budget, 0.1, 3600)
        config = Config(**{**PRESETS[preset or ("full" if torch.cuda.is_available() else "cpu")], **options})
        print(f"{machine(pick(config.device))}; batch {config.batch}\n")
        if profiled:
            print_profile(config, budget)
            return 0
        print(HEAD)
        fast = measure("the trainer", config, budget, plain=False)
        slow = measure("plain eager float32", replace(config, compile=False), budget, plain=True)
        minutes = 72_600 * 256 / fast / 60
        print(f"\nThe trainer is {fast / slow:.1f} × as fast; 72,600 steps of 256 would take {minutes:,.1f} minutes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
