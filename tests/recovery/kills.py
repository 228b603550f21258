"""Kill a training run at random moments, resume it each time, and compare it with an uninterrupted run.

`python -m tests.recovery.kills 20`, with --compile for a compiled one
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

from tests.server import ROOT
from training import checkpoint

SMALL = (
    "--width=64",
    "--depth=2",
    "--batch=64",
    "--warmup-steps=10",
    "--log-every=5",
    "--epochs=0.25",
    "--checkpoint-every=0",
)


def killed(folder: Path, count: int, options: list[str], seed: int = 0) -> list[int]:
    """Train a small run, kill and resume it `count` times at random moments; returns the first step of each start.

    The run saves a checkpoint after every step, so that many kills happen during a save.
    """
    chance, resumed = random.Random(seed), []
    for kill in range(count + 1):
        begun = (folder / "runs/killed/config.json").exists()
        process = launch(folder, ["--resume", "runs/killed"] if begun else ["--name", "killed", *SMALL, *options])
        first = next((line for line in process.stdout if " from step " in line), "")  # the loop begins
        assert first, f"after {kill} kills the run did not start: {process.stderr.read()}"
        resumed.append(int(first.split()[-1]))
        if kill < count:
            total = int(first.split(": ")[1].split()[0].replace(",", ""))
            for _ in range(chance.randrange(max(2, total // (2 * count)))):  # 0: a kill before the first step
                until_it_saves(folder, process)
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
        errors = process.communicate()[1]
        if kill < count:
            assert process.returncode == -signal.SIGKILL, f"the run had ended before kill {kill + 1}: {errors}"
        else:
            assert process.returncode == 0, errors
    return resumed


def until_it_saves(folder: Path, process: subprocess.Popen) -> None:
    """Wait for the next checkpoint or the end of the process."""
    newest = folder / "runs/killed" / checkpoint.NEWEST

    def written():
        with suppress(FileNotFoundError):  # none yet, or between two renames
            return newest.stat().st_mtime_ns
        return None

    before = written()
    while process.poll() is None and written() in (before, None):
        time.sleep(0.01)


def launch(folder: Path, arguments: list[str]) -> subprocess.Popen:
    """Start the training command in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    environment["TQDM_MININTERVAL"] = "60"  # the pipe is not read; a full one would block the run
    command = [sys.executable, "-m", "training.train", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def different(folder: Path) -> list[str]:
    """The entries that are not bit-identical in the checkpoints of runs/whole and runs/killed."""
    left, right = (flat(checkpoint.load(folder / "runs" / name)[0]) for name in ("whole", "killed"))
    assert left.keys() == right.keys()
    return [name for name in left if name != "seconds" and not equal(left[name], right[name])]


def flat(state, prefix: str = "") -> dict:
    """The leaves of nested dictionaries and lists, by path."""
    if not isinstance(state, dict | list):
        return {prefix: state}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {name: leaf for key, value in items for name, leaf in flat(value, f"{prefix}.{key}".lstrip(".")).items()}


def equal(a, b) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def compare(count: int, options: list[str], folder: Path) -> tuple[list[str], list[int]]:
    """Train a small run with and without `count` kills; returns the differences and the steps it resumed from."""
    whole = launch(folder, ["--name", "whole", *SMALL, *options])
    try:
        steps = killed(folder, count, options)
        errors = whole.communicate()[1]
    finally:
        whole.kill()
    assert whole.returncode == 0, errors
    return different(folder), steps[1:]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        wrong, steps = compare(
            int(sys.argv[1]), [f"--data-root={ROOT / 'data'}", "--no-compile", *sys.argv[2:]], Path(folder)
        )
    print(f"Resumed from steps {', '.join(map(str, steps))}.")
    print(
        "Differs: " + ", ".join(wrong)
        if wrong
        else f"Killed {len(steps)} times, it ended bit for bit like the uninterrupted run."
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
