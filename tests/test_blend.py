import json

import pytest
import torch
from safetensors.torch import load_file

from model import weights
from training import card
from training.blend import main


@pytest.fixture
def run(go, tmp_path):
    """A run and another from its weights: the two folders."""
    assert go("--name", "first", epochs=0.5) == 0
    assert go("--name", "second", init="runs/first/weights", epochs=1) == 0
    return "runs/first/weights", "runs/second/weights"


def test_the_weights_lie_on_the_line_from_start_to_end(run, tmp_path):
    assert main([*run, "0.25"]) == 0
    start, end, between = (load_file(tmp_path / folder / weights.TENSORS) for folder in (*run, "runs/blended/weights"))
    moved = 0
    for name in end:
        expected = 0.75 * start[name].float() + 0.25 * end[name].float()
        assert torch.allclose(between[name].float(), expected, rtol=1e-3, atol=1e-7), name
        moved += not torch.equal(start[name], end[name])
    assert moved > 10


def test_the_card_tells_the_run_and_the_share(run, tmp_path):
    assert main([*run, "0.25", "--out", "mixed"]) == 0
    text = str(card.card(tmp_path / "mixed"))
    assert "they lie 25% of the way" in text
    assert "\npython -m training.blend runs/first/weights runs/second/weights 0.25 --out mixed\n" in text
    assert text.index("--init runs/first/weights") < text.index("they lie 25%")


def test_other_pairs_shares_and_folders_that_are_there_are_refused(run, tmp_path, capsys):
    first, second = run
    for arguments, words in (
        ((second, first, "0.5"), "were not trained from"),
        ((first, second, "1.5"), "must lie in 0..1"),
        ((first, "nowhere/at/all", "0.5"), "nowhere/at/all"),
        ((first, second, "0.5", "--out", first), "is there already"),
    ):
        before = json.loads((tmp_path / first / weights.METRICS).read_text())
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        assert stop.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert words in error, error
        assert json.loads((tmp_path / first / weights.METRICS).read_text()) == before
        assert not (tmp_path / "runs/blended").exists()
