import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from model import generate, images, weights
from model.generate import MNIST_HISTOGRAM, draw, main, parse_labels, parse_number, states


def test_labels():
    assert parse_labels("7", 3).tolist() == [7, 7, 7]
    assert parse_labels("0-9", 12).tolist() == [*range(10), 0, 1]
    assert parse_labels("3,5,black", 4).tolist() == [3, 5, 10, 3]
    assert parse_labels("8-white", 4).tolist() == [8, 9, 10, 11]


def test_mnist_labels_have_the_histogram_of_the_training_set():
    assert parse_labels("mnist", 60_000).bincount().tolist() == list(MNIST_HISTOGRAM)
    few = parse_labels("mnist", 1000).bincount()
    assert few.sum() == 1000
    assert (few - torch.tensor(MNIST_HISTOGRAM) / 60).abs().max() < 1
    assert parse_labels("mnist", 1000)[:100].unique().numel() == 10  # in a random order


def test_a_text_without_end_is_not_even_read():
    with pytest.raises(ValueError, match="at most 1000 characters"):
        parse_labels("0-9," * 1_000_000, 10)


def test_the_seed_of_the_last_digit_is_one_too():
    assert generate.settings(2**31 - 10, 1, 1, count=10) == (2**31 - 10, 1, 1)
    with pytest.raises(ValueError, match="seed must be a whole number from 0 to 2147483638"):
        generate.settings(2**31 - 9, 1, 1, count=10)


@pytest.mark.parametrize("text", ["ten", "", "5-x", "12", "9-0", "3,,5", "-1"])
def test_a_class_that_is_not_there(text):
    with pytest.raises(ValueError, match=r"class must be|backwards"):
        parse_labels(text, 10)


def test_a_number_is_its_digits():
    assert parse_number("20261123").tolist() == [2, 0, 2, 6, 1, 1, 2, 3]


@pytest.mark.parametrize("text", ["", "12a", "-1", "1" * 17, "٣", "1.5"])
def test_what_is_no_number(text):
    with pytest.raises(ValueError, match="1 to 16 digits"):
        parse_number(text)


def test_a_digit_of_a_sheet_is_the_digit_of_its_own_seed(small, monkeypatch):
    monkeypatch.setattr(generate, "CHUNK", 4)
    labels = parse_labels("0-9", 10)
    sheet = torch.cat(list(draw(small, labels, seed=30, steps=3, guidance=2.0)))
    alone = torch.cat(list(draw(small, labels[7:8], seed=37, steps=3, guidance=2.0)))
    assert sheet.shape == (10, 28, 28)
    assert (sheet[7].int() - alone[0].int()).abs().max() <= 1


def test_steps_and_guidance_reach_the_flow(small):
    label = torch.tensor([3])
    path = list(states(small, label, [0], steps=5, guidance=1.0))
    assert [round(state.t, 3) for state in path] == [1, 0.867, 0.71, 0.521, 0.29, 0]  # shifted by 1.63206
    stronger = list(states(small, label, [0], steps=5, guidance=3.0))
    assert not torch.allclose(path[-1].x, stronger[-1].x)


def run(capsys, *arguments):
    """Status and what the command printed on stderr besides its progress."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err


def test_command_writes_a_labelled_data_set(small_weights, tmp_path, capsys):
    out = tmp_path / "new" / "digits.npz"
    assert (
        run(capsys, "--weights", small_weights, "--labels", "3,white", "--count", 5, "--steps", 2, "--out", out)[0] == 0
    )
    data = np.load(out)
    assert data["images"].shape == (5, 28, 28)
    assert data["images"].dtype == np.uint8
    assert data["labels"].tolist() == [3, 11, 3, 11, 3]
    assert data["labels"].dtype == np.int64
    network = weights.load(str(small_weights)).network
    expected = torch.cat(list(draw(network, torch.from_numpy(data["labels"]), 0, 2, 1.0)))
    assert np.array_equal(data["images"], expected.numpy())


def test_command_writes_a_sheet(small_weights, tmp_path, capsys):
    out = tmp_path / "digits.png"
    assert run(capsys, "--weights", small_weights, "--count", 20, "--steps", 1, "--out", out)[0] == 0
    sheet = images.sheet(torch.zeros(20, 28, 28, dtype=torch.uint8), columns=10)
    assert Image.open(out).size == sheet.size


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--labels", "ten"], "class must be one of 0, 1"),
        (["--steps", 0], "steps .* not 0"),
        (["--steps", 51], "steps .* not 51"),
        (["--guidance", -1], "guidance .* not -1"),
        (["--guidance", "nan"], "guidance .* not nan"),
        (["--seed", "1.5"], "invalid int value: '1.5'"),
        (["--seed", -1], "seed .* not -1"),
        (["--count", 0], "count .* not 0"),
        (["--out", "digits.jpg"], "must end in .png or .npz"),
        (["--weights", "nowhere/at/all"], "neither a folder"),
        (["--device", "abacus"], "no device 'abacus'"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(small_weights, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir())
    status, error = run(capsys, "--weights", small_weights, *arguments)
    assert status == 2
    lines = [line for line in error.splitlines() if line.startswith("python -m model.generate: ")]
    assert len(lines) == 1
    assert re.search(words, lines[0])
    assert "Traceback" not in error
    assert sorted(os.listdir()) == before


def test_a_failed_drawing_leaves_the_old_file(small_weights, tmp_path, capsys, monkeypatch):
    out = tmp_path / "digits.png"
    out.write_bytes(b"old")

    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(generate, "save", fail)
    status, error = run(capsys, "--weights", small_weights, "--count", 1, "--steps", 1, "--out", out)
    assert status == 2
    assert "the disk is full" in error
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.png", "weights"]
