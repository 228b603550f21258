"""Several processes do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY, flags
from tests.server import ROOT
from training import checkpoint, data

WORKER = Path(__file__).with_name("float64_worker.py")
SECONDS = 600  # for a process that hangs


def test_slices_of_all_processes_are_the_global_batch():
    pixels = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1).expand(-1, 28, 28)

    def batches(rank, world):
        return data.Batches(pixels, torch.zeros(40).long(), 12, 0.25, 12, 5, torch.device("cpu"), rank, world)

    whole, *parts = (batches(rank, world).at(4) for rank, world in ((0, 1), (0, 3), (1, 3), (2, 3)))
    for field, *slices in zip(whole, *parts, strict=True):
        assert torch.equal(field, torch.cat(slices))
    with pytest.raises(ValueError, match="batch 12 is not divisible by the 5 processes"):
        batches(0, 5)


def run(folder: Path, arguments: list[str], processes: int) -> str:
    """Train in float64 in that many processes; returns what they print."""
    command = [sys.executable, str(WORKER)]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *torchrun, str(WORKER)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_two_processes_reach_the_losses_and_weights_of_one(root, tmp_path, compile):
    """In float64: where layers start at zero, AdamW turns rounding errors of float32 into steps of its full rate."""
    options = {**TINY, "data_root": root, "epochs": 2.5}
    states, losses = [], []
    for processes in (1, 2):
        name = f"of{processes}"
        shown = run(tmp_path, ["--name", name, *flags({**options, "compile": compile and processes > 1})], processes)
        assert shown.count("Done.") == 1
        states.append(checkpoint.load(tmp_path / "runs" / name)[0])
        losses.append([json.loads(line)["loss"] for line in (tmp_path / "runs" / name / "metrics.jsonl").open()])
    assert len(losses[0]) == 5
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    for part in ("network", "ema"):
        for name, tensor in states[0][part].items():
            assert tensor.dtype == torch.float64
            torch.testing.assert_close(tensor, states[1][part][name], rtol=0, atol=1e-9)
    (start,) = (json.loads(line) for line in (tmp_path / "runs/of2/history.jsonl").open())
    assert start["device"].startswith("2 × ")
