import json

import pytest
import torch
from safetensors.torch import load_file

from model import weights
from training import card
from training.blend import main
from training.defaults import set_defaults

FIRST, SECOND, BLENDED = "runs/first/weights", "runs/second/weights", "runs/blended/weights"


@pytest.fixture(autouse=True)
def runs(go):
    """A run, and another that started from its weights."""
    assert go("--name", "first", epochs=0.5) == 0
    assert go("--name", "second", init=FIRST, epochs=1) == 0


def test_the_weights_lie_on_the_line_from_start_to_end():
    assert main([FIRST, SECOND, "0.25"]) == 0
    start, end, between = (load_file(f"{folder}/{weights.TENSORS}") for folder in (FIRST, SECOND, BLENDED))
    moved = 0
    for name in end:
        expected = 0.75 * start[name].float() + 0.25 * end[name].float()
        assert torch.allclose(between[name].float(), expected, rtol=1e-3, atol=1e-7), name
        moved += not torch.equal(start[name], end[name])
    assert moved > 10


def test_nothing_measured_is_carried_over_and_the_end_says_how_to_draw(tmp_path):
    set_defaults(tmp_path / SECOND, default_guidance=1.5, time_shift=2.0)
    path = tmp_path / SECOND / weights.METRICS
    path.write_text(json.dumps({**json.loads(path.read_text()), "evaluation": {}, "sweeps": []}))
    assert main([FIRST, SECOND, "1"]) == 0
    blended = weights.load(BLENDED)
    assert set(blended.metrics) == {"training", "sha256"}
    assert (blended.network.default_guidance, blended.network.time_shift) == (1.5, 2.0)


def test_what_two_runs_learned_is_added_up(go, tmp_path):
    other = "runs/other/weights"
    assert go("--name", "other", init=FIRST, epochs=0.5, seed=7) == 0
    arguments = [FIRST, SECOND, "0.25", "--base", other]
    assert main(arguments) == 0
    start, end, base, blended = (load_file(f"{folder}/{weights.TENSORS}") for folder in (FIRST, SECOND, other, BLENDED))
    moved = 0
    for name in end:
        expected = base[name].float() + 0.25 * (end[name].float() - start[name].float())
        assert torch.allclose(blended[name].float(), expected, rtol=1e-3, atol=1e-7), name
        moved += not torch.equal(start[name], base[name])
    assert moved > 10
    text = str(card.card(tmp_path / BLENDED))
    assert "25% of it, added to the weights of another run from the same start" in text
    assert text.count("--seed 7") == 1
    assert text.index("added to the weights") < text.index("--seed 7") < text.index(" ".join(arguments))


def test_the_card_tells_the_run_and_the_share(tmp_path):
    assert main([FIRST, SECOND, "0.625", "--out", "mixed"]) == 0
    text = str(card.card(tmp_path / "mixed"))
    assert "the weights lie 62.5% of the way" in text
    assert f"\npython -m training.blend {FIRST} {SECOND} 0.625 --out mixed\n" in text
    assert text.index(f"--init {FIRST}") < text.index("lie 62.5%")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((SECOND, FIRST, "0.5"), "were not trained from"),
        ((FIRST, FIRST, "0.5"), "were not trained from"),
        ((FIRST, SECOND, "1.5"), "must lie in 0..1"),
        ((FIRST, SECOND, "nan"), "must lie in 0..1"),
        ((FIRST, "nowhere/at/all", "0.5"), "nowhere/at/all"),
        ((FIRST, SECOND, "0.5", "--out", FIRST), "is there already"),
        ((FIRST, "part", "0.5"), "a blend already"),
        ((FIRST, SECOND, "0.5", "--base", FIRST), "were not trained from"),
        ((FIRST, SECOND, "0.5", "--base", "part"), "a blend already"),
        ((FIRST, SECOND, "0.5", "--base", SECOND), "of the same run"),
    ],
)
def test_what_cannot_be_blended_is_a_sentence(tmp_path, capsys, arguments, words):
    assert main([FIRST, SECOND, "0.5", "--out", "part"]) == 0
    before = (tmp_path / FIRST / weights.METRICS).read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / FIRST / weights.METRICS).read_bytes() == before
    assert not (tmp_path / BLENDED).exists()


def test_weights_without_a_record_of_their_training_are_not_taken_for_a_start(go, tmp_path, capsys):
    (tmp_path / FIRST / weights.METRICS).unlink()
    assert go("--name", "other", width=64, epochs=0.25) == 0
    for end in (SECOND, "runs/other/weights"):
        with pytest.raises(SystemExit):
            main([FIRST, end, "0.5"])
        assert "were not trained from" in capsys.readouterr().err.splitlines()[-1]
