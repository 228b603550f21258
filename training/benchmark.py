"""Command: how fast this machine trains, and whether a killed run loses anything. `python -m training.benchmark [--kills 20]`"""

import argparse
import gc
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from model.benchmark import machine, peak, products
from model.command import sentence_on_error
from model.device import pick
from training import checkpoint
from training.config import PRESETS, Config, add_options
from training.train import Run, make_loss, memory

SMALL_RUN = ("--width=64", "--depth=2", "--batch=64", "--warmup-steps=10", "--log-every=5", "--epochs=0.25", "--checkpoint-every=0")


def milliseconds(run: Run, budget: float) -> float:
    """The mean time of a step over about `budget` seconds, after three to warm up."""

    def steps(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            run.advance()
        run.loss_sum.item()  # waits for the device
        return (time.perf_counter() - started) / count

    steps(3)
    return 1e3 * steps(max(3, round(budget / steps(2))))


def row(name: str, run: Run, highest: float, budget: float) -> tuple[str, float]:
    """A line of the table, and images a second; the work of a step is three times that of the forward."""
    step = milliseconds(run, budget)
    batch = run.config.batch
    work = 3 * sum(2 * b * m * k * n for b, m, k, n in products(run.network, 1)) * batch
    speed, rate = 1e3 * batch / step, work / step * 1e3
    return f"| {name} | {speed:,.0f} | {step:.2f} | {rate / 1e12:.2f} | {rate / highest:.0%} | {memory(run.device):.1f} |", speed


def table(config: Config, budget: float) -> list[str]:
    """The lines of the table: the trainer, then the same step in plain eager float32, last, so that its memory hides nobody's."""
    run = Run(config, Path("unwritten"))
    fast_peak, slow_peak = (peak(dtype, run.device) for dtype in (torch.bfloat16, torch.float32))
    lines = [
        f"Large matrix products, TFLOP/s: bfloat16 {fast_peak / 1e12:.2f}, float32 {slow_peak / 1e12:.2f}. Batch {config.batch}.\n",
        f"| step | images/s | ms | TFLOP/s | of the peak | {'GPU' if run.device.type == 'cuda' else 'process'} memory, GB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    line, fast = row("the trainer", run, fast_peak, budget)
    del run
    forget()
    plain = Run(replace(config, compile=False), Path("unwritten"))
    plain.loss_of = make_loss(plain.network, config, plain.device, bfloat16=False)
    second, slow = row("plain eager float32", plain, slow_peak, budget)
    return [
        *lines,
        line,
        second,
        f"\nThe trainer is {fast / slow:.1f} times as fast; 72,600 steps of 256 would take {72_600 * 256 / fast / 60:,.1f} minutes.",
    ]


def forget() -> None:
    """Let go of what a run that is no longer needed has left in memory."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def killed(folder: Path, count: int, options: list[str], seed: int = 0) -> list[int]:
    """Train a small run that is killed `count` times at random moments and resumed each time; the steps it went on from.

    It writes a checkpoint after every step, so that many of the kills fall into the writing of one.
    Raises OSError where it ends before it was killed as often.
    """
    chance, resumed = random.Random(seed), []
    for kill in range(count + 1):
        begun = (folder / "runs/killed/config.json").exists()
        process = launch(folder, ["--resume", "runs/killed"] if begun else ["--name", "killed", *SMALL_RUN, *options])
        first = next((line for line in process.stdout if " from step " in line), "")  # the loop begins
        if not first:
            raise OSError(f"the run {'did not go on' if begun else 'did not start'} after {kill} kills: {process.stderr.read()}")
        resumed.append(int(first.split()[-1]))
        if kill < count:
            total = int(first.split(": ")[1].split()[0].replace(",", ""))
            for _ in range(chance.randrange(max(2, total // (2 * count)))):  # of none, the kill comes before the first step
                until_it_saves(folder, process)
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
        process.communicate()
        if kill < count and process.returncode != -signal.SIGKILL:
            raise OSError(f"the run came to its end after {kill} kills already")
    return resumed


def until_it_saves(folder: Path, process: subprocess.Popen) -> None:
    """Wait for the next checkpoint, or the end of the process."""
    newest = folder / "runs/killed" / checkpoint.NEWEST

    def written():
        return newest.stat().st_mtime_ns if newest.exists() else None

    before = written()
    while process.poll() is None and written() in (before, None):
        time.sleep(0.01)


def launch(folder: Path, arguments: list[str]) -> subprocess.Popen:
    """The training command in that folder, its output line by line."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "training.train", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def different(folder: Path) -> list[str]:
    """What the run killed and the run left alone do not agree on to the bit."""
    left, right = (checkpoint.load(folder / "runs" / name)[0] for name in ("whole", "killed"))
    names = [name for name in ("step", "loss_sum", "missed", "skipped") if left[name] != right[name]]
    for part in ("network", "ema"):
        names += [f"{part}.{name}" for name, tensor in left[part].items() if not torch.equal(tensor, right[part][name])]
    for index, moments in left["optimizer"]["state"].items():
        names += [
            f"optimizer.{index}.{name}"
            for name, tensor in moments.items()
            if not torch.equal(tensor, right["optimizer"]["state"][index][name])
        ]
    return names


def kills(count: int, options: list[str], folder: Path) -> tuple[list[str], list[int]]:
    """Train a small run twice, once left alone and once killed `count` times: what differs, and the steps it went on from."""
    whole = launch(folder, ["--name", "whole", *SMALL_RUN, *options])
    errors = whole.communicate()[1]
    if whole.returncode:
        raise OSError(f"the run left alone failed: {errors}")
    steps = killed(folder, count, options)
    return different(folder), steps[1:]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, help="whose step is measured (default: reference on a GPU, else cpu)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each of the two rows (default 20)")
    parser.add_argument(
        "--kills", type=int, metavar="N", help="instead: kill a small run N times, resume it, compare it with one left alone"
    )
    add_options(parser)
    options = vars(parser.parse_args(argv))
    preset, budget, count = (options.pop(name) for name in ("preset", "seconds", "kills"))
    with sentence_on_error(parser):
        config = Config(**{**PRESETS[preset or ("reference" if torch.cuda.is_available() else "cpu")], **options})
        if count is None:
            lines = table(config, budget)
            print(machine(pick(config.device)), *lines, sep="\n")
            return 0
        foreign = sorted(set(options) - {"data_root", "compile", "device"})
        if foreign or preset:
            raise ValueError(f"--kills trains a small run of its own; leave out {', '.join(foreign or ['preset'])}")
        with tempfile.TemporaryDirectory() as folder:
            flags = [f"--data-root={Path(config.data_root).resolve()}", *([] if config.compile else ["--no-compile"])]
            wrong, steps = kills(count, [*flags, f"--device={config.device}"], Path(folder))
        print(f"Went on from steps {', '.join(map(str, steps))}.")
        print("Differs: " + ", ".join(wrong) if wrong else f"Killed {count} times, it ended bit for bit like the run left alone.")
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
