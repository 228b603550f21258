"""Command: how fast this machine trains, compared with plain eager float32. `python -m training.benchmark`"""

import argparse
import gc
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from model import check
from model.common import sentence_on_error
from model.device import peak_memory, pick
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


def measure(name: str, config: Config, budget: float, plain: bool) -> float:
    """Print a line of the table and return images per second; forward and backward count as three forward passes."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    run = Trainer(config, RunFolder(Path("unwritten")))
    if plain:
        run.loss_of = make_loss(run.network, config, run.device, bfloat16=False)
    step, highest = step_seconds(run, budget), peak(torch.float32 if plain else torch.bfloat16, run.device)
    speed, rate = config.batch / step, 3 * flops(run.ema) * config.batch / step
    memory = peak_memory(run.device)
    print(f"| {name} | {speed:,.0f} | {1e3 * step:.2f} | {rate / 1e12:.2f} | {rate / highest:.0%} | {memory:.1f} |")
    return speed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, help="whose step is measured (default: full on a GPU, else cpu)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each of the two rows (default 20)")
    add_options(parser)
    options = vars(parser.parse_args(argv))
    preset, budget = options.pop("preset"), options.pop("seconds")
    with sentence_on_error(parser):
        check.number("seconds", budget, 0.1, 3600)
        config = Config(**{**PRESETS[preset or ("full" if torch.cuda.is_available() else "cpu")], **options})
        print(f"{machine(pick(config.device))}; batch {config.batch}\n\n{HEAD}")
        fast = measure("the trainer", config, budget, plain=False)
        slow = measure("plain eager float32", replace(config, compile=False), budget, plain=True)
        minutes = 72_600 * 256 / fast / 60
        print(f"\nThe trainer is {fast / slow:.1f} × as fast; 72,600 steps of 256 would take {minutes:,.1f} minutes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
