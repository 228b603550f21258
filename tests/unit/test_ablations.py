"""The ablation table: which runs it trains, the figures it shows, and what it does when a run fails or is repeated."""

import json
import re
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
from training.measure import plots

EXTRACTOR = "e" * 64


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder, without MNIST; returns its status, table lines and messages."""
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
    """Write the files of a finished row: its log, and weights at two steps with metrics on 2,000 digits."""

    def measured(name: str, figures: list[tuple[float, float, float]]):
        run = tmp_path / f"runs/ablation-{name}"
        for part, images, drawn in zip(("kept/0000100", "weights"), (1000, 2000), figures, strict=True):
            folder = run / part
            weights.save(small, folder, SamplingConfig(guidance=1.15), {"training": {"images": images}})
            metrics = json.loads((folder / "metrics.json").read_text())
            digest = metrics["sha256"]["model.safetensors"]
            settings = {"count": 2000, "seed": 0, "steps": 8, "guidance": 1.0, "time_shift": 1.63206}
            sources = {"sampler": flow.SAMPLER, "sha256": digest, "extractor": EXTRACTOR}
            row = {"settings": {**settings, **sources}, "drawn": dict(zip(DRAWN, drawn, strict=True))}
            (folder / "metrics.json").write_text(json.dumps({**metrics, "sweeps": [row]}))
        lines = [{"step": i, "images": 100 * i, "loss": 3 - 0.1 * i, "seconds": 4.4 * i} for i in range(1, 21)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return measured


DRAWN = ("fd_ratio", "coverage", "accuracy")
FIGURES = [(4.5, 0.9, 0.95), (2.346, 0.951, 0.9712)]


@pytest.fixture
def pictures(monkeypatch) -> list:
    """Record the arguments of each plot instead of drawing it."""
    drawn = []
    monkeypatch.setattr(ablations.plots, "loss_and_quality", lambda path, *rest: drawn.append((str(path), *rest)))
    return drawn


def test_lines_and_picture_show_the_saved_figures(command, measured, monkeypatch, pictures):
    """The loss is the mean of the last tenth of the log lines, here of ten or twenty."""
    monkeypatch.setattr(ablations, "train", lambda name, config: 0)
    measured("3e-3", FIGURES)
    measured("uniform", [(4.5, 0.9, 0.95), (1.2, 0.962, 0.9823)])
    assert command("3e-3", "uniform") == (
        0,
        [
            *ablations.HEAD,
            "| 3e-3 | `--lr 0.003` | 2.35 | 95.1% | 97.1% | 1.0500 | 88 |",
            "| uniform | `--time-shift 1.0 --uniform-times` | 1.20 | 96.2% | 98.2% | 1.0500 | 88 |",
        ],
        "",
    )
    ((path, points, own_loss, note),) = pictures
    assert path == "runs/ablations.png"
    assert {name: [x for point in run for x in point] for name, run in points.items()} == {
        "3e-3": pytest.approx([2.0, 4.5, 1.05, 2.346]),
        "uniform": pytest.approx([2.0, 4.5, 1.05, 1.2]),
    }
    assert (own_loss, note) == ({"uniform"}, "")


def test_failed_row_says_so_and_the_next_one_follows(command, measured, monkeypatch, pictures):
    monkeypatch.setattr(ablations, "train", lambda name, config: 2 if name == "1e-2" else 0)
    measured("3e-3", FIGURES)
    status, table, _ = command("1e-2", "3e-3")
    assert status == 0
    assert len(table) == 4
    assert table[2] == "| 1e-2 | `--lr 0.01` | did not finish | | | | |"
    assert table[3].endswith("| 2.35 | 95.1% | 97.1% | 1.0500 | 88 |")
    assert {line.count("|") for line in table} == {8}
    assert list(pictures[0][1]) == ["3e-3"]


def test_rank_correlation_knows_order_only():
    pytest.importorskip("torchmetrics", reason="torchmetrics is a development package")
    assert ablations.rank_correlation([(1, 10), (2, 11), (30, 5000)]) == pytest.approx(1, abs=1e-5)
    assert ablations.rank_correlation([(1, 9), (2, 8), (30, -5000)]) == pytest.approx(-1, abs=1e-5)
    assert ablations.rank_correlation([(1, 1), (2, 3), (3, 2)]) == pytest.approx(0.5, abs=1e-5)


def test_labels_of_the_picture_keep_their_order_and_distance():
    apart = plots.spread([0.5, 0.1, 0.52, 0.9, 0.5], 0.1)  # three of them are spread around their mean
    assert apart == pytest.approx([0.40667, 0.1, 0.60667, 0.9, 0.50667], abs=1e-4)


@pytest.mark.parametrize("status", [128 + 15, -9])
def test_signal_stops_the_whole_table(command, monkeypatch, status):
    trained = []
    monkeypatch.setattr(ablations, "train", lambda name, config: trained.append(name) or status)
    assert command("release", "3e-3")[0] == status
    assert trained == ["release"]


def test_unknown_row_is_one_sentence(command):
    status, _, error = command("release", "faster")
    assert status == 2
    assert error.startswith("python -m training.ablations: unknown row faster; the rows are release, ")
    assert error.count("\n") == 1


def test_every_row_is_another_valid_change_of_the_release():
    changes = {name: Config(**row).recipe() for name, row in ablations.ROWS.items()}
    assert changes["release"] == Config().recipe()
    assert len({str(changed) for changed in changes.values()}) == len(changes)
    assert {name: changes[name]["lr"] for name in changes if re.match(r"\de-\d", name)} == {
        name: float(name[:4]) for name in changes if re.match(r"\de-\d", name)
    }
    assert changes["reference"]["lr"] == 2e-4


def test_flags_hold_for_every_row_except_for_its_own_change(command, monkeypatch):
    """The warm-up is a tenth of the steps: 10 epochs of 60,000 digits and 2,000 blank images in batches of 128."""
    seen = {}
    monkeypatch.setattr(ablations, "train", lambda name, config: seen.update({name: config}) or 2)
    command("release", "3e-3", "--lr=0.0003", "--width=32", "--epochs=10", "--points=4")
    assert [seen[name].lr for name in ("release", "3e-3")] == [3e-4, 3e-3]
    assert {(config.width, config.epochs, config.preview_every, config.warmup_steps) for config in seen.values()} == {
        (32, 10, 2.5, 484)
    }
    assert all(config.keep_weights for config in seen.values())


@pytest.mark.parametrize("wrong", ["--count=100", "--steps=0", "--points=0"])
def test_a_measurement_out_of_range_is_refused(command, monkeypatch, wrong):
    monkeypatch.setattr(ablations, "train", lambda *_: pytest.fail("it trains"))
    status, _, error = command("release", wrong)
    assert (status, error.count("\n")) == (2, 1)
    assert f"{wrong[2:].split('=')[0]} must be a whole number" in error


def test_row_started_with_other_flags_is_refused(command, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations.subprocess, "run", lambda *_: pytest.fail("it trains"))
    folder = tmp_path / "runs/ablation-offset-noise"
    folder.mkdir(parents=True)
    options = {**ablations.shared({"epochs": 1.0, "batch": 128}, points=2), "offset_noise": 0.2}
    Config(**options).save(folder / "config.json")
    status, _, error = command("offset-noise")
    assert status == 2
    assert "runs/ablation-offset-noise contains a run with different flags" in error


def test_row_with_initial_weights_is_trained_once(command, go, small_weights, root, tmp_path, monkeypatch):
    """The network comes from --init, regardless of the size flags; a finished row starts no trainer."""
    started, first = [], {"stop_after": 2, "depth": 2}

    def run(command):
        started.append(command[3:])
        return SimpleNamespace(returncode=go(*started[-1], **(first if len(started) == 1 else {})))

    options = [word for word in flags({**TINY, "data_root": root}) if not re.match("--(width|depth|heads)", word)]
    arguments = ["release", "--epochs=1", f"--init={small_weights}", *options]
    monkeypatch.setattr(ablations, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(ablations, "rows", lambda name, *_: ([f"the line of {name}"], {}))
    assert command(*arguments)[0] == 128 + 15
    assert Config.load(tmp_path / "runs/ablation-release/config.json").width == 32
    for _ in range(2):
        status, table, error = command(*arguments)
        assert (status, table[2:]) == (0, ["the line of release"]), error
    assert [words[0] for words in started] == ["--name", "--resume"]


@pytest.mark.slow
def test_table_of_real_runs_resumes_and_repeats_nothing(command, go, reference, mnist_root, tmp_path, monkeypatch):
    """One row resumes from step 5, the release is new; then the first row is repeated."""
    pytest.importorskip("torchmetrics", reason="torchmetrics is a development package")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(ablations, "Reference", lambda device, root: reference)
    options = {**TINY, "patch": 7, "data_root": mnist_root, "epochs": 0.01, "keep_weights": True}
    row = {**options, **ablations.ROWS["3e-3-bare"], "preview_every": 0.005}
    assert go("--name", "ablation-3e-3-bare", stop_after=5, **row) == 128 + 15

    arguments = ["--count=256", "--steps=2", *flags(options)]
    status, table, _ = command("3e-3-bare", "release", *arguments)
    assert status == 0
    assert table[:2] == list(ablations.HEAD)
    assert [line.split(" | ")[0] for line in table[2:]] == ["| 3e-3-bare", "| release", "| no-average"]
    for line, folder in zip(table[2:], ("3e-3-bare/weights", "release/weights", "release/no-average"), strict=True):
        metrics = json.loads((tmp_path / f"runs/ablation-{folder}/metrics.json").read_text())
        (measured,) = metrics["sweeps"]
        settings, drawn = measured["settings"], measured["drawn"]
        assert (metrics["training"]["steps"], settings["steps"], settings["guidance"]) == (19, 2, 1)
        assert settings["count"] == 256
        assert f" | {drawn['fd_ratio']:.2f} | {drawn['coverage']:.1%} | {drawn['accuracy']:.1%} | " in line
    assert "`--lr 0.003 --clip 1000000.0 --no-qk-norm`" in table[2]
    assert (tmp_path / "runs/ablations.png").read_bytes()[:4] == b"\x89PNG"
    raw = weights.load(str(tmp_path / "runs/ablation-release/no-average"), dtype=torch.float32).network.state_dict()
    trained = checkpoint.load(tmp_path / "runs/ablation-release")[0]["network"]
    assert all(torch.equal(raw[name], trained[name].half().float()) for name in trained)

    run = tmp_path / "runs/ablation-3e-3-bare"
    assert [path.name for path in (run / "kept").iterdir()] == ["0000010"]
    measured = [run / part / "metrics.json" for part in ("weights", "kept/0000010")]
    before = [path.stat().st_mtime_ns for path in measured], (run / "metrics.jsonl").read_bytes()
    state = flat(checkpoint.load(run)[0])
    assert command("3e-3-bare", *arguments) == (0, table[:3], "")
    assert ([path.stat().st_mtime_ns for path in measured], (run / "metrics.jsonl").read_bytes()) == before
    again = flat(checkpoint.load(run)[0])
    assert [name for name in state if not equal(state[name], again[name])] == []  # including the time spent
    assert [json.loads(line)["step"] for line in (run / "history.jsonl").open()] == [0, 5]
