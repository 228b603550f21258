"""The model cards and the README show the figures of metrics.json."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from model import weights
from model.dit import DiT
from model.sampling import SamplingConfig
from training.card import main
from training.release.card import FIGURES, card, results_table

ROOT = Path(__file__).parent.parent.parent
TRAINING = {
    "data": "mnist",
    "epochs": 10.0,
    "steps": 4840,
    "images": 619520,
    "batch": 128,
    "lr": 1e-3,
    "seed": 0,
    "hours": 1.5,
    "device": "cpu, 2 threads",
    "torch": "2.11.0",
    "commit": "0123456789ab",
    "command": "python -m training.train --epochs 10.0 --batch 128",
}
DRAWN = {
    "fd_ratio": 1.234,
    "fd_train": 0.1234,
    "fd_test": 0.2345,
    "precision": 0.951,
    "recall": 0.942,
    "density": 0.973,
    "coverage": 0.964,
    "accuracy": 0.9921,
    "copies": 0.0113,
    "copies_limit": 2.5,
}
REAL = {**DRAWN, "fd_ratio": 1.0, "fd_train": 0.1, "fd_train_subset": 0.01, "accuracy": 0.9957}
SETTINGS = {
    "count": 10000,
    "steps": 20,
    "guidance": 1.0,
    "time_shift": 1.5,
    "seed": 0,
    "sampler": "some method",
    "sha256": "a" * 64,
    "extractor": "e" * 64,
}


def row(**changed) -> dict:
    return {
        "settings": {**SETTINGS, **changed},
        "drawn": DRAWN,
        "real": REAL,
        "extractor_accuracy": 0.9957,
        "device": "cpu, 2 threads",
        "torch": "2.11.0",
        "command": "python -m training.evaluate --full",
        "commit": "ba9876543210",
        "blank": {"black": {"count": 50, "mean": 0.01, "spread": 0.1, "worst": 3.0}},
        "seconds": {"drawing": 300, "figures": 60},
    }


@pytest.fixture
def folder(tmp_path):
    weights.save(DiT(width=16, depth=1, heads=1), tmp_path / "w", SamplingConfig(), {"training": TRAINING})
    return tmp_path / "w"


def add(folder: Path, **parts) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, **parts}))


def joined(written: ModelCard) -> str:
    """The text with all line breaks replaced by spaces."""
    return " ".join(written.text.split())


def test_the_table_shows_drawn_beside_real():
    cas = [
        {**row(count=60000), "drawn": {"cas": 0.981}, "real": {"cas": 0.994}},
        {**row(guidance=2.0), "drawn": {"cas": 0.5}, "real": {"cas": 0.5}},
    ]
    lines = results_table({"evaluation": row(), "cas": cas}).splitlines()
    assert "| FD ÷ floor | 1.23 | 1.00 |" in lines
    assert "| class accuracy | 99.21% | 99.57% |" in lines
    assert "| CAS | 98.10% | 99.40% |" in lines  # the row with the same sampling settings
    assert len(lines) == 2 + len(FIGURES)
    assert "CAS" not in results_table({"evaluation": row(), "cas": cas[1:]})
    assert results_table({}) == ""


def test_the_card_of_a_fresh_run_has_no_results(folder):
    assert main(["--weights", str(folder)]) == 0
    written = ModelCard.load(folder / "README.md")
    assert written.data.eval_results is None
    assert "## Results" not in written.text
    assert f"```sh\n{TRAINING['command']}\n```" in written.text
    assert re.search(r"```sh\ngit clone ", written.text)
    assert written.data.license == "mit"


def test_the_card_of_measured_weights_shows_their_figures(folder):
    add(folder, evaluation=row())
    (folder / "samples.png").touch()
    assert main(["--weights", str(folder), "--repo", "me/digits"]) == 0
    written = ModelCard.load(folder / "README.md")
    results = {result.metric_name.split(",")[0]: result for result in written.data.eval_results}
    assert results["FD ÷ floor"].metric_value == 1.234
    assert results["FD ÷ floor"].metric_type == "fid"
    assert all("extractor.safetensors " + "e" * 12 in result.metric_name for result in results.values())
    assert {result.dataset_type for result in results.values()} == {"ylecun/mnist"}
    for part in (
        results_table({"evaluation": row()}),
        "(samples.png)",
        "10,000 digits, 20 steps (some method), time shift 1.5, guidance 1, seed 0",
        "black: mean 0.01, standard deviation 0.10",
        "python -m training.evaluate --full",
        "ba9876543210",
        "git clone https://huggingface.co/spaces/me/digits",
        "--weights me/digits",
        "## Limitations",
    ):
        assert part in written.text, part
    assert "1.5 hours on cpu, 2 threads" in joined(written)
    assert "neighbours.png" not in written.text


def test_the_card_says_how_many_digits_cas_was_measured_on(folder):
    add(folder, evaluation=row(), cas=[{**row(count=60000), "drawn": {"cas": 0.981}, "real": {"cas": 0.994}}])
    assert "drawn digits, or only on real ones (60,000 each)" in joined(card(folder))


def test_the_card_of_initialized_weights_shows_both_trainings(folder):
    command = "python -m training.train --init weights --epochs 3.0"
    second = {**TRAINING, "epochs": 3.0, "hours": 0.13, "command": command, "initialized_from": TRAINING}
    add(folder, training=second)
    written = card(folder)
    assert written.text.index(f"\n{TRAINING['command']}\n") < written.text.index(f"\n{command}\n")
    assert "10 passes over mnist" in joined(written)
    assert written.text.count("This is the command at that commit") == 2
    assert "Initialized from those weights: another 3 passes over mnist" in joined(written)
    assert "8 minutes on cpu, 2 threads" in joined(written)


def test_errors_are_sentences(tmp_path, capsys):
    for options in (["--weights", str(tmp_path / "nowhere")], ["--repo", "no repository"]):
        with pytest.raises(SystemExit) as stop:
            main(options)
        assert stop.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_readme_and_the_cards_show_the_bundled_figures():
    """The README shows those of the velocity network, which the page uses at first."""
    teacher = weights.BUNDLED / weights.TEACHER
    table, of_map = (
        results_table(json.loads((folder / weights.METRICS).read_text(encoding="utf-8")))
        for folder in (teacher, weights.BUNDLED)
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- results -->\n(.*)<!-- /results -->", readme, re.DOTALL)
    assert block, "README.md has no <!-- results --> block"
    assert table
    lines = block[1].strip().splitlines()
    assert len(lines) >= 8
    assert set(lines) <= set(table.splitlines())  # the README shows the main ones
    assert table in (teacher / "README.md").read_text(encoding="utf-8")
    assert of_map in (weights.BUNDLED / "README.md").read_text(encoding="utf-8")
