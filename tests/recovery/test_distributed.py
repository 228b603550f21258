"""Several processes do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY
from training import checkpoint, data

HERE = Path(__file__).parent


def test_the_slices_of_all_ranks_are_the_global_draw():
    pixels = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1).expand(-1, 28, 28)
    whole, *parts = (
        data.Draws(pixels, torch.zeros(40).long(), 12, 0.25, 12, 5, torch.device("cpu"), rank, world)
        for rank, world in ((0, 1), (0, 3), (1, 3), (2, 3))
    )
    for field, *slices in zip(whole.at(4), *(part.at(4) for part in parts), strict=True):
        assert torch.equal(field, torch.cat(slices))
    with pytest.raises(ValueError, match="batch 12 is not divisible by the 5 processes"):
        data.Draws(pixels, torch.zeros(40).long(), 12, 0.25, 12, 5, torch.device("cpu"), 0, 5)


@pytest.mark.parametrize("compile", ["--no-compile", "--compile"])
def test_two_processes_and_one_have_the_same_losses_and_weights(root, tmp_path, compile):
    """In float64: from layers that start as zero, AdamW makes steps of the learning rate's size out of float32's rounding."""
    flags = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in {**TINY, "data_root": root, "epochs": 2.5}.items()
        if name != "compile"
    ]
    states, losses = [], []
    for count in (1, 2):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={count}",
            str(HERE / "double_worker.py"),
        ]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
        name = f"of{count}"
        run = subprocess.run(
            [*command, "--name", name, compile, *flags], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("Done.") == 1
        states.append(checkpoint.load(tmp_path / "runs" / name)[0])
        losses.append([json.loads(line)["loss"] for line in (tmp_path / "runs" / name / "metrics.jsonl").open()])
    assert len(losses[0]) == 5
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    for part in ("network", "ema"):
        for name, tensor in states[0][part].items():
            assert tensor.dtype == torch.float64
            torch.testing.assert_close(tensor, states[1][part][name], rtol=0, atol=1e-9)
