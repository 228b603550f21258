"""Several processes train like a single one."""

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
SECONDS = 900  # timeout, in case the processes deadlock


def test_slices_of_all_processes_are_the_global_batch():
    pixels = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1).expand(-1, 28, 28)

    def batches(rank, world):
        return data.Batches(pixels, torch.zeros(40).long(), 12, 0.25, 12, 5, torch.device("cpu"), rank, world)

    whole, *parts = (batches(rank, world).at(4) for rank, world in ((0, 1), (0, 3), (1, 3), (2, 3)))
    for field, *slices in zip(whole, *parts, strict=True):
        assert torch.equal(field, torch.cat(slices))
    with pytest.raises(ValueError, match="batch 12 is not divisible by the 5 processes"):
        batches(0, 5)


@pytest.fixture
def float64():
    """Use float64: in float32, AdamW turns rounding errors into full-size steps where layers start at zero."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_two_compiled_processes_reach_the_losses_and_weights_of_an_eager_one(go, float64, root, tmp_path):
    options = {"data_root": root, "epochs": 2.5}
    assert go("--name", "of1", **options) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(WORKER)]
    done = subprocess.run(
        [*command, "--name=of2", *flags({**TINY, **options, "compile": True})],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Done.") == 1
    runs = [tmp_path / "runs" / name for name in ("of1", "of2")]
    one, two = ([json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()] for run in runs)
    assert len(one) == 5
    assert one == pytest.approx(two, rel=1e-10)
    one, two = (checkpoint.load(run)[0] for run in runs)
    for part in ("network", "ema"):
        for name, tensor in one[part].items():
            assert tensor.dtype == torch.float64
            torch.testing.assert_close(tensor, two[part][name], rtol=0, atol=1e-9)
    (start,) = (json.loads(line) for line in (runs[1] / "history.jsonl").open())
    assert start["device"].startswith("2 × ")
