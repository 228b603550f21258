"""The ablation table: which runs it trains, the figures it shows, and what it does when a run fails or is repeated."""

import json
import re
import shlex
from types import SimpleNamespace

import pytest
import torch

from model import flow, weights
from model.sampling import SamplingConfig
from tests.conftest import TINY, flags
from tests.recovery.kills import equal, flat
from tests.server import ROOT
from training import ablations, checkpoint
from training.config import Config

EXTRACTOR = "e" * 64


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder, without MNIST: its status, the lines of its table, and its messages."""
    monkeypatch.chdir(tmp_path)
    stub = SimpleNamespace(device=torch.device("cpu"), notes={"sha256": EXTRACTOR, "accuracy": 0.99})
    monkeypatch.setattr(ablations, "Reference", lambda device, root: stub)

    def command(*arguments):
        capsys.readouterr()
        try:
            status = ablations.main(["--device=cpu", *arguments])
        except SystemExit as stop:
            status = stop.code
        shown = capsys.readouterr()
        return status, shown.out.rpartition("\n\n")[2].splitlines(), shown.err

    return command


@pytest.fixture
def measured(small, tmp_path):
    """Leave the weights of a finished row, measured with 2,000 digits, as the only thing in its folder."""

    def measured(name: str, hours: float, figures: dict[float, tuple[float, float, float]]):
        folder = tmp_path / f"runs/ablation-{name}/weights"
        weights.save(small, folder, SamplingConfig(guidance=1.15), {"training": {"hours": hours}})
        metrics = json.loads((folder / "metrics.json").read_text())
        settings = {"count": 2000, "seed": 0, "steps": 20, "guidance": None, "time_shift": 1.63206}
        sources = {"sampler": flow.SAMPLER, "sha256": metrics["sha256"]["model.safetensors"], "extractor": EXTRACTOR}
        metrics["sweeps"] = [
            {
                "settings": {**settings, **sources, "guidance": guidance},
                "drawn": dict(zip(("fd_ratio", "coverage", "accuracy"), drawn, strict=True)),
            }
            for guidance, drawn in figures.items()
        ]
        (folder / "metrics.json").write_text(json.dumps(metrics))

    return measured


FIGURES = {1.0: (2.346, 0.951, 0.9712), 1.15: (1.234, 0.962, 0.9823), 1.3: (1.567, 0.973, 0.9934)}


def test_line_shows_the_saved_figures_of_the_best_guidance_scale(command, measured, monkeypatch):
    monkeypatch.setattr(ablations, "train", lambda name, config: 0)
    measured("drop-0.2", 0.13, FIGURES)
    measured("rate-2e-3", 1.5, dict(zip(FIGURES, reversed(FIGURES.values()), strict=True)))
    assert command("drop-0.2", "rate-2e-3") == (
        0,
        [
            *ablations.HEAD,
            "| drop-0.2 | `--label-drop 0.2 --epochs 60.0 --device cpu --preview-every 20.0` "
            "| 0.13 | 1.15 | 1.23 | 96.2% | 98.2% | 2.35 |",
            "| rate-2e-3 | `--epochs 60.0 --lr 0.002 --device cpu --preview-every 20.0` "
            "| 1.5 | 1.15 | 1.23 | 96.2% | 98.2% | 1.57 |",
        ],
        "",
    )


def test_failed_row_says_so_and_the_next_one_follows(command, measured, monkeypatch):
    monkeypatch.setattr(ablations, "train", lambda name, config: 2 if name == "rate-5e-4" else 0)
    measured("baseline", 0.5, FIGURES)
    status, table, _ = command("rate-5e-4", "baseline")
    assert status == 0
    assert len(table) == 4
    assert table[2].startswith("| rate-5e-4 | `--epochs 60.0 --lr 0.0005")
    assert "| did not finish |" in table[2]
    assert table[3].endswith("| 0.5 | 1.15 | 1.23 | 96.2% | 98.2% | 2.35 |")
    assert {line.count("|") for line in table} == {9}


@pytest.mark.parametrize("status", [128 + 15, -9])
def test_signal_stops_the_whole_table(command, monkeypatch, status):
    trained = []
    monkeypatch.setattr(ablations, "train", lambda name, config: trained.append(name) or status)
    assert command("baseline", "centred")[0] == status
    assert trained == ["baseline"]


def test_unknown_row_is_one_sentence(command):
    status, _, error = command("baseline", "faster")
    assert status == 2
    assert error.startswith("python -m training.ablations: there is no row faster; there are baseline, ")
    assert error.count("\n") == 1


def test_rows_differ_from_the_baseline_in_one_setting():
    baseline, changes = Config(epochs=60, preview_every=20), {}
    for name, row in ablations.ROWS.items():
        config = Config(**{**ablations.ALWAYS, **row})
        changes[name] = {key: value for key, value in vars(config).items() if value != getattr(baseline, key)}
    assert changes.pop("baseline") == {}
    assert len(changes) == 15
    assert {len(changed) for changed in changes.values()} == {1}
    assert len({str(changed) for changed in changes.values()}) == len(changes)
    for name, changed in changes.items():
        if number := re.search(r"-(-?\d[\d.e-]*)$", name):
            assert list(changed.values()) == [float(number[1])], name


def test_flags_hold_for_every_row_except_for_its_own_change(command, monkeypatch):
    seen = {}
    monkeypatch.setattr(ablations, "train", lambda name, config: seen.update({name: config}) or 2)
    command("baseline", "rate-2e-4", "--lr=0.0003", "--width=32", "--epochs=5")
    assert [seen[name].lr for name in ("baseline", "rate-2e-4")] == [3e-4, 2e-4]
    assert {(config.width, config.epochs, config.preview_every) for config in seen.values()} == {(32, 5, 20)}


def test_row_started_with_other_flags_is_refused(command, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations.subprocess, "run", lambda *_: pytest.fail("it trains"))
    folder = tmp_path / "runs/ablation-centred"
    folder.mkdir(parents=True)
    Config(**{**ablations.ALWAYS, **ablations.ROWS["centred"], "device": "cpu", "width": 64}).save(
        folder / "config.json"
    )
    status, _, error = command("centred")
    assert status == 2
    assert "runs/ablation-centred holds a run with other flags than these" in error


def test_row_with_initial_weights_is_trained_once(command, go, small_weights, root, tmp_path, monkeypatch):
    """The network is that of --init, whatever size the flags would give; a finished row starts no trainer."""
    started, first = [], {"stop_after": 2, "depth": 2}

    def run(command):
        started.append(command[3:])
        return SimpleNamespace(returncode=go(*started[-1], **(first if len(started) == 1 else {})))

    options = [word for word in flags({**TINY, "data_root": root}) if not re.match("--(width|depth|heads)", word)]
    arguments = ["baseline", "--epochs=1", f"--init={small_weights}", *options]
    monkeypatch.setattr(ablations, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(ablations, "line", lambda name, *_: f"the line of {name}")
    assert command(*arguments)[0] == 128 + 15
    assert Config.load(tmp_path / "runs/ablation-baseline/config.json").width == 32
    for _ in range(2):
        status, table, error = command(*arguments)
        assert (status, table[2:]) == (0, ["the line of baseline"]), error
    assert [words[0] for words in started] == ["--name", "--resume"]


@pytest.mark.slow
def test_table_of_real_runs_resumes_and_repeats_nothing(command, go, reference, mnist_root, tmp_path, monkeypatch):
    """One row is interrupted at step 5, the other one new; then the first row once more."""
    pytest.importorskip("torchmetrics", reason="torchmetrics is a development package")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(ablations, "Reference", lambda device, root: reference)
    monkeypatch.setattr(ablations, "SCALES", (1.0, 1.3))
    options = {**TINY, "patch": 7, "data_root": mnist_root, "epochs": 0.01}
    row = {**options, **ablations.ROWS["centred"], "preview_every": 20}
    assert go("--name", "ablation-centred", stop_after=5, **row) == 128 + 15

    status, table, _ = command("centred", "baseline", "--count=256", *flags(options))
    assert status == 0
    assert table[:2] == list(ablations.HEAD)
    assert len(table) == 4
    for line, name in zip(table[2:], ("centred", "baseline"), strict=True):
        folder = tmp_path / f"runs/ablation-{name}"
        config = Config.load(folder / "config.json")
        metrics = json.loads((folder / "weights/metrics.json").read_text())
        assert metrics["training"]["steps"] == 19
        plain, guided = metrics["sweeps"]
        assert [plain["settings"]["guidance"], guided["settings"]["guidance"]] == [1, 1.3]
        assert plain["settings"]["count"] == guided["settings"]["count"] == 256
        best = min(plain, guided, key=lambda row: row["drawn"]["fd_ratio"])
        drawn = best["drawn"]
        figures = (
            f"{metrics['training']['hours']} | {best['settings']['guidance']:g} | {drawn['fd_ratio']:.2f} "
            f"| {drawn['coverage']:.1%} | {drawn['accuracy']:.1%} | {plain['drawn']['fd_ratio']:.2f} |"
        )
        assert line == f"| {name} | `{shlex.join(config.flags())}` | {figures}"
        assert ("--pixel-mean 0.1307" in line) == (name == "centred")

    run = tmp_path / "runs/ablation-centred"
    measured = [run / "weights" / name for name in ("metrics.json", "model.safetensors")]
    before = [path.stat().st_mtime_ns for path in measured], (run / "metrics.jsonl").read_bytes()
    state = flat(checkpoint.load(run)[0])
    assert command("centred", "--count=256", *flags(options)) == (0, table[:3], "")
    assert ([path.stat().st_mtime_ns for path in measured], (run / "metrics.jsonl").read_bytes()) == before
    again = flat(checkpoint.load(run)[0])
    changed = [name for name in state if not equal(state[name], again[name])]  # the time spent included
    assert changed in ([], ["optimizer.param_groups.0.lr"])  # which every step sets anew
    starts = [json.loads(line)["step"] for line in (run / "history.jsonl").open()]
    assert starts == [0, 5]
