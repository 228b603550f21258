"""The card says what metrics.json says, and so does the README."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from model import weights
from model.dit import DiT
from training import card

ROOT = Path(__file__).parent.parent.parent
TRAINING = {
    "data": "mnist", "epochs": 10.0, "steps": 4840, "images": 619520, "batch": 128, "lr": 1e-3, "seed": 0, "hours": 1.25,
    "device": "cpu, 2 threads", "torch": "2.11.0", "commit": "0123456789ab", "command": "python -m training.train --preset cpu",
}  # fmt: skip
DRAWN = {
    "fd_ratio": 1.234, "fd_train": 0.1234, "fd_test": 0.2345, "kid": 1.2e-4, "precision": 0.951, "recall": 0.942, "density": 0.973,
    "coverage": 0.964, "accuracy": 0.9921, "copies": 0.0113, "copies_z": -3.2, "copies_limit": 2.5,
}  # fmt: skip
REAL = {**DRAWN, "fd_ratio": 1.0, "fd_train": 0.1, "fd_train_subset": 0.01, "accuracy": 0.9957}


def row(**changed) -> dict:
    settings = {"count": 10000, "steps": 20, "guidance": 1.0, "seed": 0, "sha256": "a" * 64, "extractor": "e" * 64}
    return {
        "settings": {**settings, **changed}, "drawn": DRAWN, "real": REAL, "extractor_accuracy": 0.9957, "device": "cpu, 2 threads",
        "torch": "2.11.0", "command": "python -m training.evaluate --full", "commit": "ba9876543210",
        "blank": {"black": {"count": 50, "mean": 0.01, "spread": 0.1, "worst": 3.0}}, "seconds": {"drawing": 300, "figures": 60},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    weights.save(DiT(width=16, depth=1, heads=1), tmp_path / "w", {"training": TRAINING})
    return tmp_path / "w"


def add(folder: Path, **parts) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, **parts}))


def test_the_table_shows_drawn_beside_real():
    cas = [
        {**row(), "drawn": {"cas": 0.981}, "real": {"cas": 0.994}},
        {**row(guidance=2.0), "drawn": {"cas": 0.5}, "real": {"cas": 0.5}},
    ]
    lines = card.results_table({"evaluation": row(), "cas": cas}).splitlines()
    assert "| FD ÷ floor | 1.23 | 1.00 |" in lines
    assert "| class accuracy | 99.21% | 99.57% |" in lines
    assert "| CAS | 98.10% | 99.40% |" in lines  # the one of the same steps and guidance
    assert len(lines) == 2 + len(card.FIGURES)
    assert card.results_table({}) == ""


def test_the_card_of_a_fresh_run_has_no_results(folder):
    assert card.main(["--weights", str(folder)]) == 0
    written = ModelCard.load(folder / "README.md")
    assert written.data.eval_results is None
    assert "## Results" not in written.text
    assert TRAINING["command"] in written.text
    assert re.search(r"```sh\ngit clone ", written.text)
    assert written.data.license == "mit"


def test_the_card_of_measured_weights_says_it_all(folder):
    add(folder, evaluation=row())
    (folder / "samples.png").touch()
    assert card.main(["--weights", str(folder), "--repo", "me/digits"]) == 0
    written = ModelCard.load(folder / "README.md")
    results = {result.metric_name.split(",")[0]: result for result in written.data.eval_results}
    assert results["FD ÷ floor"].metric_value == 1.234
    assert results["FD ÷ floor"].metric_type == "fid"
    assert all("extractor.safetensors " + "e" * 12 in result.metric_name for result in results.values())
    assert {result.dataset_type for result in results.values()} == {"ylecun/mnist"}
    for part in (
        card.results_table({"evaluation": row()}),
        "(samples.png)",
        "10,000 digits, 20 steps by Euler's method, guidance 1, seed 0",
        "python -m training.evaluate --full",
        "ba9876543210",
        "1.25 hours on cpu, 2 threads",
        "git clone https://huggingface.co/spaces/me/digits",
        "--weights me/digits",
        "## Limits",
    ):
        assert part in written.text, part
    assert "neighbours.png" not in written.text


def test_the_card_of_a_warm_start_tells_both_trainings(folder):
    second = {**TRAINING, "epochs": 3.0, "command": "python -m training.train --init weights", "before": TRAINING}
    add(folder, training=second)
    assert card.main(["--weights", str(folder)]) == 0
    text = ModelCard.load(folder / "README.md").text
    assert text.index(f"\n{TRAINING['command']}\n") < text.index(second["command"])
    assert "10 passes over mnist" in text
    assert "as a warm start, another 3 passes" in text


def test_the_card_says_which_sampler_drew_a_sweep(folder):
    rows = [row(), row(steps=8), row(guidance=2.0, sampler="one"), row(steps=4, sampler="another")]
    for name in ("steps.png", "guidance.png"):
        (folder / name).touch()
    add(folder, evaluation=row(), sweeps=rows)
    text = str(card.card(folder))
    assert "over the steps of the sampler. Drawn by another." in text
    assert "over the guidance scale. Drawn by one." in text
    add(folder, sweeps=rows[:2])
    assert "over the steps of the sampler. Drawn by Euler's method." in str(card.card(folder))


def test_the_card_of_a_distillation_tells_its_target(folder):
    taught = {"scale": 2.5, "null": 0.12, "training": {**TRAINING, "before": TRAINING}}
    add(folder, training={**TRAINING, "guide": taught, "before": TRAINING})
    text = str(card.card(folder))
    assert "2.5 times the way from a network of 1,239,040 images' training" in text
    assert "with the null class as 12% of that network's labels" in " ".join(text.split())
    add(folder, training={**TRAINING, "guide": {**taught, "training": None}})
    assert "from a network of unknown training" in str(card.card(folder))


def test_errors_are_sentences(tmp_path, capsys):
    for options in (["--weights", str(tmp_path / "nowhere")], ["--repo", "no repository"]):
        with pytest.raises(SystemExit) as stop:
            card.main(options)
        assert stop.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_readme_and_the_card_show_the_bundled_figures():
    readme = ROOT / "README.md"
    block = re.search(
        r"<!-- results -->\n(.*)\n<!-- /results -->", readme.read_text() if readme.exists() else "", re.DOTALL
    )
    if not block:
        pytest.skip("README.md has no <!-- results --> block")
    table = card.results_table(json.loads((weights.BUNDLED / weights.METRICS).read_text()))
    assert block[1].strip() == table
    assert table in (weights.BUNDLED / "README.md").read_text()
