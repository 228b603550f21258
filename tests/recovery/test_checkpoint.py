"""Robustness of runs: damaged checkpoints, kills, full disks, and two runs in one folder."""

import json
import random
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from tests.conftest import flags
from tests.recovery import kills
from training import checkpoint, command
from training.run_folder import RunFolder
from training.trainer import Trainer


def test_damaged_checkpoint_falls_back_to_the_previous_one(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, {"step": step, "tensor": torch.zeros(1000)})
    assert checkpoint.load(tmp_path)[0]["step"] == 2
    newest = tmp_path / "checkpoint.pt"
    flipped = bytearray(newest.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    for damaged in (flipped, flipped[: len(flipped) // 2], b""):
        newest.write_bytes(damaged)
        state, notice = checkpoint.load(tmp_path)
        assert state["step"] == 1
        assert "damaged" in notice
    checkpoint.save(tmp_path, {"step": 3})  # must not replace the intact one by the damaged one
    newest.write_bytes(flipped)
    assert checkpoint.load(tmp_path)[0]["step"] == 1
    (tmp_path / "checkpoint.previous.pt").rename(tmp_path / "checkpoint.pt.new")  # a kill just before the rename
    assert checkpoint.load(tmp_path)[0]["step"] == 1
    (tmp_path / "checkpoint.pt.new").unlink()
    with pytest.raises(OSError, match="no intact checkpoint"):
        checkpoint.load(tmp_path)


def test_flipped_bit_in_the_table_of_contents_is_damage_too(tmp_path):
    """zipfile raises many different exceptions for it."""
    checkpoint.save(tmp_path, {"step": 1})
    checkpoint.save(tmp_path, {"step": 2})
    whole, newest = (tmp_path / "checkpoint.pt").read_bytes(), tmp_path / "checkpoint.pt"
    chance, steps = random.Random(0), []
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[-chance.randrange(1, 800)] ^= 1 << chance.randrange(8)
        newest.write_bytes(flipped)
        steps.append(checkpoint.load(tmp_path)[0]["step"])
    assert set(steps) == {1, 2}  # some bits do not matter


def test_resuming_from_a_damaged_checkpoint_repeats_the_steps_since_the_previous_one(go, tmp_path, capsys):
    assert go("--name", "a", epochs=2) == 0
    whole = checkpoint.load(tmp_path / "runs/a")[0]
    (tmp_path / "runs/a/checkpoint.pt").write_bytes(b"")
    assert go("--resume", "runs/a") == 0
    shown = capsys.readouterr().out
    assert "checkpoint.pt is damaged; continuing from the previous checkpoint." in shown
    assert "from step 0" in shown.splitlines()[-2]
    again = checkpoint.load(tmp_path / "runs/a")[0]
    assert all(kills.equal(tensor, again["network"][name]) for name, tensor in whole["network"].items())
    assert [json.loads(line)["step"] for line in (tmp_path / "runs/a/metrics.jsonl").open()] == [2, 4, 6, 8]


# ---- disks and folders


@contextmanager
def files_of_at_most(size: int):
    """Limit the file size: a portable substitute for a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_one_sentence_and_leaves_the_last_checkpoint(go, tmp_path, capsys):
    assert go("--name", "a", epochs=2, stop_after=4) == 143
    run = tmp_path / "runs/a"
    before = (run / "checkpoint.pt").read_bytes()
    capsys.readouterr()
    with files_of_at_most(60_000):
        assert go("--resume", "runs/a") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("python -m training.train: stopped at step 8: ")
    assert "cannot write a checkpoint to runs/a: File too large" in error
    assert "--resume runs/a" in error
    assert (run / "checkpoint.pt").read_bytes() == before
    assert not (run / "checkpoint.pt.new").exists()
    assert go("--resume", "runs/a") == 0
    assert checkpoint.load(run)[0]["step"] == 8


def test_disk_full_after_the_checkpoint_is_one_sentence_too(go, tmp_path, monkeypatch, capsys):
    assert go("--name", "a", epochs=2, stop_after=4) == 143
    size = (tmp_path / "runs/a/weights/model.safetensors").stat().st_size
    before = (tmp_path / "runs/a/weights/metrics.json").read_bytes()

    def limited(self, summary=Trainer.summary):
        limits.enter_context(files_of_at_most(size // 2))
        return summary(self)

    with ExitStack() as limits, monkeypatch.context() as patch:
        patch.setattr(Trainer, "summary", limited)
        assert go("--resume", "runs/a") == 2
    assert "cannot write weights to runs/a/weights" in capsys.readouterr().err
    assert (tmp_path / "runs/a/weights/metrics.json").read_bytes() == before
    assert go("--resume", "runs/a") == 0
    assert json.loads((tmp_path / "runs/a/weights/metrics.json").read_text())["training"]["steps"] == 8


@pytest.mark.parametrize("preview_every", [9, 0.75])
def test_vanished_run_folder_is_one_sentence(go, tmp_path, monkeypatch, capsys, preview_every):
    def vanish(self, advance=Trainer.advance):
        if self.step == 2:
            shutil.rmtree(self.folder.path)
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", vanish)
    assert go("--name", "a", epochs=2, preview_every=preview_every) == 2
    assert "stopped at step 3: runs/a is gone" in capsys.readouterr().err
    assert not (tmp_path / "runs/a").exists()


def test_run_does_not_write_into_a_folder_that_belongs_to_another_by_now(go, tmp_path, monkeypatch, capsys):
    files = (".lock", "checkpoint.pt", "metrics.jsonl", "weights/config.json")

    def replace(self, advance=Trainer.advance):
        if self.step == 2:
            shutil.rmtree(self.folder.path)
            (self.folder.path / "weights").mkdir(parents=True)
            for name in files:
                (self.folder.path / name).write_text("another's")
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", replace)
    assert go("--name", "a", epochs=2, log_every=3) == 2
    assert "stopped at step 3: runs/a is gone or now belongs to another run" in capsys.readouterr().err
    assert {name: (tmp_path / "runs/a" / name).read_text() for name in files} == dict.fromkeys(files, "another's")


# ---- two runs, one folder


def test_second_process_in_a_folder_is_refused_and_the_first_continues(go, tmp_path, capsys):
    assert go("--name", "a", epochs=2, stop_after=3) == 143
    first = command.resume(Trainer, {}, Path("runs/a"))
    assert go("--resume", "runs/a") == 2
    assert "another process is training in runs/a" in capsys.readouterr().err
    assert command.train(first) == 0
    assert checkpoint.load(tmp_path / "runs/a")[0]["step"] == 8
    assert go("--resume", "runs/a") == 0  # the folder is unlocked again
    assert [json.loads(line)["step"] for line in (tmp_path / "runs/a/history.jsonl").open()] == [0, 3, 8]


def test_start_is_refused_where_another_process_is_about_to_start(go, tmp_path, capsys):
    """The other process holds the lock, but has not written its configuration yet."""
    (tmp_path / "runs/a").mkdir(parents=True)
    other = RunFolder(Path("runs/a"))
    other.claim()
    assert go("--name", "a", epochs=1) == 2
    assert "another process is training in runs/a" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "runs/a").iterdir()] == [".lock"]
    other.release()
    assert go("--name", "a", epochs=1) == 0


# ---- kills


def test_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(root, tmp_path):
    tiny = {"device": "cpu", "width": 32, "depth": 1, "heads": 2, "blank_images": 1000, "epochs": 1}
    options = flags({**tiny, "data_root": root, "compile": False})
    wrong, steps = kills.compare(2, options, tmp_path)
    assert wrong == []
    assert any(0 < step < 33 for step in steps), steps
    whole, parts = (
        [json.loads(line)["loss"] for line in (tmp_path / "runs" / name / "metrics.jsonl").open()]
        for name in ("whole", "killed")
    )
    assert whole == parts
    assert len(whole) == 6
