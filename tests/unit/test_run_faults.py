"""Faults of a run: damaged or foreign logs, checkpoints, values, files and environments."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch

from model import generate
from model.common import python
from model.device import pick
from tests.conftest import write_idx
from training import checkpoint, distributed
from training.config import Config
from training.run_folder import RunFolder
from training.trainer import Trainer

TORN = {
    "garbage": b"\x00\x01 garbage\n",
    "empty": b"\n\n",
    "no UTF-8": b'{"step": "\xff"}\n',
    "list": b"[1, 2]\n",
    "text": b'"step"\n',
    "null": b"null\n",
    "no step": b'{"loss": 1.0}\n',
    "text as step": b'{"step": "2", "images": 64, "loss": 1.0}\n',
    "text as device": b'{"step": 0, "device": 1, "torch": "2", "commit": ""}\n',
    "nested": b"[" * 100_000 + b"\n",
    "long number": b'{"step": ' + b"9" * 5000 + b"}\n",
    "torn": b'{"step": 2, "lo',
}


def steps(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def stopped(go, tmp_path, capsys):
    """The folder of a run that was stopped at step 3 of 4."""
    assert go("--name", "a", epochs=1, stop_after=3, checkpoint_every=0) == 143
    capsys.readouterr()
    return tmp_path / "runs/a"


# ---- logs and pictures


def test_unreadable_lines_never_stop_a_run(stopped, go, capsys):
    for name in ("metrics.jsonl", "history.jsonl"):
        whole = (stopped / name).read_bytes()
        (stopped / name).write_bytes(b"".join(TORN[key] for key in TORN if key != "torn") + whole + TORN["torn"])
    (stopped / "previews/0000001.png").write_bytes(b"no picture")
    (stopped / "previews/0000002.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    assert go("--resume", "runs/a") == 0
    shown = capsys.readouterr().out
    assert "metrics.jsonl: unreadable lines dropped (13)." in shown
    assert "history.jsonl: unreadable lines dropped (13)." in shown
    assert steps(stopped / "metrics.jsonl") == [2, 4]
    assert steps(stopped / "history.jsonl") == [0, 3]
    assert (stopped / "previews.gif").is_file()
    RunFolder(stopped).clean_logs(4)
    assert capsys.readouterr().out == ""  # no message about intact logs


def test_the_mean_loss_is_right_after_a_change_of_the_log_interval(stopped, go):
    """Step 3 was summed with an interval of two; the next line, with one of four, is the mean of steps 3 and 4."""
    assert go("--resume", "runs/a", log_every=4) == 0
    assert go("--name", "whole", epochs=1) == 0
    resumed, whole = (RunFolder(stopped.with_name(name)).rows("metrics.jsonl")[-1] for name in ("a", "whole"))
    assert (resumed["step"], resumed["loss"]) == (4, whole["loss"])


# ---- checkpoints


def altered(change):
    """Change a checkpoint's content in place."""

    def alter(state):
        change(state)
        return state

    return alter


FOREIGN = {
    "list": lambda state: [1, 2],
    "empty": lambda state: {},
    "text as step": altered(lambda state: state.update(step="3")),
    "later than the end": altered(lambda state: state.update(step=10**6)),
    "missing": altered(lambda state: state.pop("ema")),
    "no configuration": altered(lambda state: state.update(config=[])),
    "another network": altered(lambda state: state.update(network={"weight": torch.zeros(3)})),
    "another shape": altered(lambda state: state["ema"].update({"unembed.bias": torch.zeros(3)})),
    "optimizer": altered(lambda state: state["optimizer"]["state"].pop(0)),
    "moments": altered(lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(1))),
    "loss": altered(lambda state: state.update(loss_sum=1.0)),
    "text as steps of the loss": altered(lambda state: state.update(summed_steps="1")),
}


def test_checkpoint_of_another_content_gives_way_to_the_one_before(stopped, capsys):
    sentence = "the checkpoint in runs/a is from another network or incomplete"
    run = Trainer(Config.load(stopped / "config.json"), RunFolder(Path("runs/a")))
    newest, previous, damaged = (stopped / f"checkpoint{end}" for end in (".pt", ".previous.pt", ".pt.damaged"))
    whole = newest.read_bytes()
    for change in FOREIGN.values():
        newest.write_bytes(whole)
        torch.save(change(checkpoint.load(stopped)[0]), newest)
        foreign = newest.read_bytes()
        previous.write_bytes(foreign)
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            run.restore()
        assert newest.read_bytes() == foreign  # nothing is renamed if no checkpoint is intact
        previous.write_bytes(whole)
        run.restore()
        assert capsys.readouterr().out == f"{sentence}; continuing from the previous checkpoint.\n"
        assert damaged.read_bytes() == foreign
    assert run.step == 3


# ---- values


@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "a\nb", "a" * 5000, "a/b", "/tmp/a", "a\\b", "-a", " a", "a.", "~"]
)
def test_name_of_a_run_is_one_folder(go, tmp_path, capsys, name):
    assert go(f"--name={name}") == 2
    assert "--name must be a plain name" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_values_of_a_file_and_of_the_command_line_are_checked_alike(stopped, go, capsys):
    assert go("--name", "b", epochs=1e308) == 2
    sentence = "epochs must be a number from 1e-06 to 1000000.0, not 1e+308"
    assert capsys.readouterr().err == f"python -m training.train: {sentence}\n"
    original = json.loads((stopped / "config.json").read_text())
    (stopped / "config.json").write_text(json.dumps({**original, "epochs": 1e308}))
    assert go("--resume", "runs/a") == 2
    assert capsys.readouterr().err == f"python -m training.train: runs/a/config.json: {sentence}\n"


def test_whole_numbers_may_be_written_with_a_point():
    assert Config(width=32.0).width == 32
    assert isinstance(Config(width=32.0).width, int)


def test_foreign_configuration_is_one_sentence(tmp_path):
    for content in (b"[]", b"{", b'{"\xff": 1}', b'{"colour": 1}', b"null", b"[" * 100_000):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json is not a configuration of this trainer$"):
            Config.load(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["hpu", "meta", "xpu", "cuda:99999999999999999999", "", "cpu\n", "x" * 5000])
def test_foreign_device_is_one_sentence(name):
    with pytest.raises(ValueError, match=r"^device .{2,50} is not available here; --device auto picks one that is$"):
        pick(name)


@pytest.mark.parametrize("labels", ["0-9", "mnist"])
def test_seed_is_checked_before_anything_is_drawn_by_it(capsys, labels):
    with pytest.raises(SystemExit) as stop:
        generate.main(["--labels", labels, "--seed", "99999999999999999999"])
    assert stop.value.code == 2
    assert "seed must be a whole number" in capsys.readouterr().err


# ---- commands to copy, and the environment


def test_printed_lines_are_quoted_and_name_the_interpreter(go, tmp_path, capsys, monkeypatch):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("python", "python3"):
        (tmp_path / ".venv/bin" / name).symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python3"))
    assert go("--name", "my run", epochs=1, stop_after=1) == 143
    line = capsys.readouterr().out.split("Continue with: ")[1].strip()
    assert shlex.split(line) == [".venv/bin/python3", "-m", "training.train", "--resume", "runs/my run"]
    assert go("--name", "my run") == 2
    assert "--resume 'runs/my run'," in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path / ".venv/bin"))  # an activated environment
    assert go("--resume", "runs/my run") == 0
    assert "Draw with it: python app.py --weights 'runs/my run/weights'" in capsys.readouterr().out
    monkeypatch.setattr(sys, "executable", "/opt/other/python")
    assert python("app.py") == "/opt/other/python app.py"


def test_resume_names_the_run_that_was_meant(stopped, go, capsys):
    assert go("--resume", "a") == 2
    assert "a contains no run to resume; did you mean --resume runs/a?" in capsys.readouterr().err
    assert go("--resume", "b") == 2
    assert capsys.readouterr().err == "python -m training.train: b contains no run to resume\n"


@pytest.mark.parametrize(
    "left",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "2", "RANK": "x", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "1"},
    ],
)
def test_variables_that_are_not_torchruns_are_one_sentence(monkeypatch, left):
    for name, value in {"MASTER_ADDR": "127.0.0.1", **left}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="unset WORLD_SIZE"):
        distributed.join("cpu")


def test_other_variables_of_torchrun_do_not_matter_to_one_process(go, monkeypatch):
    for name in ("LOCAL_RANK", "RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "x")
    assert go("--dry-run") == 0


def test_a_dry_run_mentions_compilation_only_if_it_compiles(go, capsys):
    assert go("--dry-run") == 0
    assert "compil" not in capsys.readouterr().out.lower()


# ---- data


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_data_file_that_is_cut_short_is_named(go, root, tmp_path, capsys, name):
    path = tmp_path / "data/MNIST/raw" / name
    whole = path.read_bytes()
    empty = whole[:4] + bytes(12 if "images" in name else 4)  # a header with a count of zero
    for content in (whole[:-1], whole[:6], b"", empty, whole + b"x", b"\x1f\x8b" + whole):
        path.write_bytes(content)
        assert go() == 2
        sentence = f"{path} is truncated or damaged; delete it, and it will be extracted or downloaded again"
        assert capsys.readouterr().err == f"python -m training.train: {sentence}\n"


OTHERS = {
    "letters": (torch.zeros(112, 28, 28), torch.arange(112) % 26 + 1),
    "fewer labels": (torch.zeros(112, 28, 28), torch.arange(100) % 10),
    "more labels": (torch.zeros(100, 28, 28), torch.arange(112) % 10),
    "larger": (torch.zeros(112, 32, 32), torch.arange(112) % 10),
}


@pytest.mark.parametrize("name", OTHERS)
def test_data_that_is_not_digits_is_one_sentence(go, root, tmp_path, capsys, name):
    for part, array in zip(("images-idx3", "labels-idx1"), OTHERS[name], strict=True):
        write_idx(tmp_path / f"data/MNIST/raw/train-{part}-ubyte", array.to(torch.uint8))
    assert go() == 2
    assert "train-labels-idx1-ubyte are not mnist, which has images of" in capsys.readouterr().err
