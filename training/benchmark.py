"""Command: benchmark the trainer against plain eager float32. `python -m training.benchmark`

With `--profile`, it prints a profile of the training step instead.
"""

import argparse
import gc
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import profile

from model import check
from model.common import sentence_on_error
from model.device import has_bfloat16, peak_memory, pick
from model.speed import flops, machine, peak
from training.config import PRESETS, Config, add_options
from training.objective import make_loss
from training.run_folder import RunFolder
from training.trainer import Trainer

HEAD = "| step | images/s | ms | TFLOP/s | of the peak | peak memory, GB |\n|---|---:|---:|---:|---:|---:|"


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
    step, memory = step_seconds(run, budget), peak_memory(run.device)
    bfloat16 = not plain and has_bfloat16(run.device)
    highest = peak(torch.bfloat16 if bfloat16 else torch.float32, run.device)
    speed, rate = config.batch / step, 3 * flops(run.ema) * config.batch / step
    print(f"| {name} | {speed:,.0f} | {1e3 * step:.2f} | {rate / 1e12:.2f} | {rate / highest:.0%} | {memory:.1f} |")
    return speed


def print_profile(config: Config, budget: float) -> None:
    """Print the operators and kernels of the training step that take the most time."""
    run = start(config)
    step = step_seconds(run, budget)
    steps = max(3, min(20, round(budget / step)))
    with profile() as profiled:
        for _ in range(steps):
            run.advance()
        run.loss_sum.item()  # waits for the device
    by = "self_device_time_total" if run.device.type == "cuda" else "self_cpu_time_total"
    print(profiled.key_averages().table(sort_by=by, row_limit=20))
    print(f"These are {steps} steps under the profiler; without it, a step takes {1e3 * step:.2f} ms.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, help="preset to measure (default: full on a GPU, else cpu)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time to measure each row (default 20)")
    parser.add_argument("--profile", action="store_true", help="print a profile of the training step instead")
    add_options(parser)
    options = vars(parser.parse_args(argv))
    preset, budget, profiled = options.pop("preset"), options.pop("seconds"), options.pop("profile")
    with sentence_on_error(parser):
        check.number("seconds", budget, 0.1, 3600)
        if "init" in options:
            raise ValueError("the benchmark measures a new network; leave out --init")
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
