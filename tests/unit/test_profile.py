"""The benchmark of the training step and its profile."""

import pytest
import torch

from tests.conftest import TINY, flags
from training import benchmark


def test_the_profile_lists_the_operators_of_a_step(root, capsys):
    assert benchmark.main(["--profile", "--seconds=0.1", *flags({**TINY, "data_root": root})]) == 0
    shown = capsys.readouterr().out
    assert "Self CPU time total" in shown
    assert "aten::mm" in shown
    assert "under the profiler" in shown


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_row_is_compared_with_the_peak_of_its_precision(root, monkeypatch, bfloat16):
    """The peak is measured last, because its matrices would count as memory of the trainer."""
    calls = []
    monkeypatch.setattr(benchmark, "has_bfloat16", lambda device: bfloat16)
    monkeypatch.setattr(benchmark, "peak_memory", lambda device: calls.append("memory") or 1.0)
    monkeypatch.setattr(benchmark, "peak", lambda dtype, device: calls.append(dtype) or 1e12)
    assert benchmark.main(["--seconds=0.1", *flags({**TINY, "data_root": root})]) == 0
    fast = torch.bfloat16 if bfloat16 else torch.float32
    assert calls == ["memory", fast, "memory", torch.float32]


def test_initial_weights_are_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--init", "weights/teacher"])
    assert capsys.readouterr().err.endswith("leave out --init\n")
