"""The rows of the table: trained, measured, gone on with, and what happens to one that fails."""

from pathlib import Path

import pytest

from model import weights
from tests.conftest import TINY
from training import rows
from training.config import Config

pytest.importorskip("torchmetrics", reason="torchmetrics is a development package")

FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items() if name != "compile"] + [
    "--no-compile",
    "--epochs=0.01",
    "--ema-also=20000",
]


@pytest.fixture
def command(ruler, mnist_root, tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder on a tiny network: its status, and the lines of its table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rows, "Ruler", lambda device, root: ruler)
    monkeypatch.setattr(rows, "SCALES", (1.0, 1.25))

    def command(*names):
        status = rows.main([*names, *FLAGS, f"--data-root={mnist_root}", "--count=256"])
        *_, table = capsys.readouterr().out.split("\n\n")
        return status, table.splitlines()

    return command


def test_rows_are_trained_measured_and_not_done_twice(command, tmp_path, monkeypatch):
    status, table = command("decay", "centred")
    assert status == 0
    assert table[:2] == list(rows.HEAD)
    assert [line.split(" | ")[0] for line in table[2:]] == ["| decay", "| centred"]
    assert len({line.count("|") for line in table}) == 1
    assert "--pixel-mean 0.1307" in table[3]
    assert "--pixel-mean" not in table[2]
    assert weights.read(tmp_path / "runs/rows/centred/weights")[0].pixel_mean == 0.1307
    averages = [tmp_path / "runs/rows/decay" / folder for folder in ("weights", "weights-20000")]
    measured = [row for folder in averages for row in weights.read(folder)[1]["sweeps"]]
    assert [row["settings"]["guidance"] for row in measured] == [1.0, 1.25] * 2
    nearest = min(row["drawn"]["fd_ratio"] for row in measured)
    assert float(table[2].split(" | ")[5]) == pytest.approx(nearest, abs=0.006)
    monkeypatch.setattr(rows.FromWeights, "digits", None)  # drawing again would fail
    monkeypatch.setattr(rows.train.Run, "advance", None)  # and so would a step
    assert command("decay", "centred") == (0, table)


def test_a_row_that_fails_says_so_and_the_next_one_comes(command, monkeypatch):
    trained = rows.trained
    monkeypatch.setattr(rows, "trained", lambda name, config: 2 if name == "rate-1e-3" else trained(name, config))
    status, table = command("rate-1e-3", "decay")
    assert status == 0
    assert "did not finish" in table[2]
    assert "did not finish" not in table[3]
    assert len({line.count("|") for line in table}) == 1


def test_a_signal_ends_them_all(command, monkeypatch):
    begun = []
    monkeypatch.setattr(rows, "trained", lambda name, config: begun.append(name) or 128 + 15)
    assert command("decay", "centred")[0] == 128 + 15
    assert begun == ["decay"]


def test_an_unknown_row_is_a_sentence(capsys):
    with pytest.raises(SystemExit) as stop:
        rows.main(["faster"])
    assert stop.value.code == 2
    assert "there is no row faster; there are reference, " in capsys.readouterr().err


def test_every_row_changes_what_its_name_says():
    decay = Config(**{**rows.ALWAYS, **rows.ROWS["decay"]})
    for name, changed in rows.ROWS.items():
        config = Config(**{**rows.ALWAYS, **changed})
        assert config.epochs == 60
        differing = {key for key, value in vars(config).items() if value != getattr(decay, key)}
        assert len(differing - {"decay_share"}) <= 1, name


def test_a_flag_holds_for_every_row_but_for_what_the_row_changes(command, monkeypatch):
    seen = {}
    monkeypatch.setattr(rows, "trained", lambda name, config: seen.update({name: config}) or 2)
    command("reference", "rate-4e-4")  # with --lr=0.001 among the flags
    assert (seen["reference"].lr, seen["rate-4e-4"].lr) == (1e-3, 4e-4)
    assert seen["reference"].width == seen["rate-4e-4"].width == TINY["width"]


def test_a_row_begun_with_other_flags_is_not_taken_for_this_one(command, capsys):
    folder = Path("runs/rows/decay")
    folder.mkdir(parents=True)
    Config(**rows.ALWAYS, decay_share=0.4, width=64).save(folder / "config.json")
    with pytest.raises(SystemExit) as stop:
        command("decay")
    assert stop.value.code == 2
    assert "runs/rows/decay holds a run with other flags than these" in capsys.readouterr().err
