"""Nothing is lost: checkpoints, kills, full disks, and two runs on one folder."""

import json
import random
import shutil
from contextlib import ExitStack, contextmanager

import pytest
import torch

from training import benchmark, checkpoint, train
from training.train import Run, main, start


def test_checkpoint_falls_back_to_the_one_before(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, {"step": step, "tensor": torch.zeros(1000)})
    assert checkpoint.load(tmp_path)[0]["step"] == 2
    newest = tmp_path / "checkpoint.pt"
    broken = bytearray(newest.read_bytes())
    broken[len(broken) // 2] ^= 1
    for damage in (broken, broken[: len(broken) // 2], b""):
        newest.write_bytes(damage)
        state, words = checkpoint.load(tmp_path)
        assert state["step"] == 1
        assert "damaged" in words
    checkpoint.save(tmp_path, {"step": 3})  # the damaged one does not push out the one before it
    (tmp_path / "checkpoint.pt").write_bytes(broken)
    assert checkpoint.load(tmp_path)[0]["step"] == 1
    (tmp_path / "checkpoint.previous.pt").rename(tmp_path / "checkpoint.pt.new")  # a kill just before the renaming
    assert checkpoint.load(tmp_path)[0]["step"] == 1
    (tmp_path / "checkpoint.pt.new").unlink()
    with pytest.raises(OSError, match="no whole checkpoint"):
        checkpoint.load(tmp_path)


def test_a_flipped_bit_of_the_table_of_contents_never_ends_in_another_error(tmp_path):
    """zipfile answers it with half a dozen kinds of exceptions."""
    checkpoint.save(tmp_path, {"step": 1})
    checkpoint.save(tmp_path, {"step": 2})
    whole, newest = (tmp_path / "checkpoint.pt").read_bytes(), tmp_path / "checkpoint.pt"
    chance = random.Random(0)
    for _ in range(200):
        broken = bytearray(whole)
        broken[-chance.randrange(1, 800)] ^= 1 << chance.randrange(8)
        newest.write_bytes(broken)
        assert checkpoint.load(tmp_path)[0]["step"] in (1, 2)  # some bits do not matter


@contextmanager
def files_of_at_most(size: int):
    """The nearest thing to a full disk that every machine has."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_sentence_and_leaves_the_last_checkpoint(go, tmp_path, capsys):
    assert go("--name", "a", epochs=1) == 0
    run = tmp_path / "runs/a"
    before = (run / "checkpoint.pt").read_bytes()
    with files_of_at_most(60_000), pytest.raises(SystemExit) as stop:
        main(["--resume", "runs/a", "--epochs", "3", "--preview-every", "9"])
    assert stop.value.code == 2
    assert (
        "no checkpoint can be written to runs/a: File too large; mend that and go on with --resume runs/a"
        in capsys.readouterr().err
    )
    assert (run / "checkpoint.pt").read_bytes() == before
    assert not (run / "checkpoint.pt.new").exists()
    assert main(["--resume", "runs/a", "--epochs", "3"]) == 0
    assert checkpoint.load(run)[0]["step"] == 12


def test_a_full_disk_after_the_checkpoint_is_one_sentence_too(go, tmp_path, capsys):
    assert go("--name", "a", epochs=1) == 0
    size = (tmp_path / "runs/a/weights/model.safetensors").stat().st_size

    def narrow(self, summary=Run.summary):
        stack.enter_context(files_of_at_most(size // 2))
        return summary(self)

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "summary", narrow)
        assert go("--resume", "runs/a", epochs=2) == 2
    assert "no weights can be written to runs/a/weights" in capsys.readouterr().err
    assert main(["--resume", "runs/a", "--epochs", "3"]) == 0


@pytest.mark.parametrize("preview_every", [9, 0.75])
def test_a_run_folder_that_vanishes_is_one_sentence(go, tmp_path, monkeypatch, capsys, preview_every):
    def vanish(self, advance=Run.advance):
        if self.step == 2:
            shutil.rmtree(self.folder)
        return advance(self)

    monkeypatch.setattr(Run, "advance", vanish)
    assert go("--name", "a", epochs=2, preview_every=preview_every) == 2
    assert "stopped at step 3, because runs/a is gone" in capsys.readouterr().err


def test_a_run_whose_folder_was_given_to_another_leaves_that_alone(go, tmp_path, monkeypatch, capsys):
    def replaced(self, advance=Run.advance):
        if self.step == 2:
            shutil.rmtree(self.folder)
            (self.folder / "weights").mkdir(parents=True)
            for name in (".lock", "checkpoint.pt", "metrics.jsonl", "weights/config.json"):
                (self.folder / name).write_text("another's")
        return advance(self)

    monkeypatch.setattr(Run, "advance", replaced)
    assert go("--name", "a", epochs=2, log_every=3) == 2
    assert "stopped at step 3, because runs/a is gone, or another run's by now" in capsys.readouterr().err
    for name in (".lock", "checkpoint.pt", "metrics.jsonl", "weights/config.json"):
        assert (tmp_path / "runs/a" / name).read_text() == "another's"


def test_a_second_run_on_a_folder_is_refused_and_the_first_goes_on(go, root, tmp_path, capsys):
    assert go("--name", "a", epochs=1) == 0
    first = start({"epochs": 2.0}, tmp_path / "runs/a", "reference", resume=True)
    with pytest.raises(SystemExit) as stop:
        main(["--resume", "runs/a", "--epochs", "3"])
    assert stop.value.code == 2
    assert "another process is training in runs/a" in capsys.readouterr().err
    assert train.go(first) == 0
    assert checkpoint.load(tmp_path / "runs/a")[0]["step"] == 8
    assert main(["--resume", "runs/a", "--epochs", "3"]) == 0  # the folder is free again
    assert [json.loads(line)["step"] for line in (tmp_path / "runs/a/history.jsonl").open()] == [0, 4, 8]


@pytest.mark.parametrize(
    ("count", "options"),
    [(3, ["--no-compile"]), (1, ["--width=32", "--depth=1", "--heads=2"])],
    ids=["eager", "compiled"],
)
def test_a_killed_run_ends_bit_for_bit_like_one_left_alone(root, tmp_path, count, options):
    options = [f"--data-root={root}", "--device=cpu", "--epochs=1", "--blank-images=1000", *options]
    wrong, steps = benchmark.kills(count, options, tmp_path)
    assert wrong == []
    assert any(0 < step < 33 for step in steps), steps
    whole = [json.loads(line) for line in (tmp_path / "runs/whole/metrics.jsonl").open()]
    parts = [json.loads(line) for line in (tmp_path / "runs/killed/metrics.jsonl").open()]
    assert [row["loss"] for row in whole] == [row["loss"] for row in parts]
    assert len(whole) > 3


def test_a_run_that_differs_is_seen(tmp_path):
    """The comparison itself must be able to fail."""
    state = {
        "step": 1,
        "loss_sum": torch.ones(()),
        "missed": torch.zeros(()),
        "skipped": torch.zeros(()),
        "network": {"a": torch.ones(2)},
        "ema": {"a": torch.ones(2)},
    }
    for name, moment in (("whole", 1.0), ("killed", 1.0 + 2**-23)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        checkpoint.save(
            tmp_path / "runs" / name, {**state, "optimizer": {"state": {0: {"exp_avg": torch.tensor([moment])}}}}
        )
    assert benchmark.different(tmp_path) == ["optimizer.0.exp_avg"]
