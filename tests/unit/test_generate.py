import math
import os
import re
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, astuple, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from model import images, sampling, weights
from model.flow import noise
from model.generate import main
from model.sampling import (
    MNIST_HISTOGRAM,
    SamplingConfig,
    change_class,
    check_seed,
    compare_steps,
    draw,
    draw_film,
    finish,
    morph,
    parse_labels,
    parse_number,
    states,
)


def close(a, b) -> bool:
    """Whether images are equal up to rounding, which depends on the batch size."""
    return (a.int() - b.int()).abs().max() <= 1


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


def test_a_very_long_text_is_refused_unread():
    with pytest.raises(ValueError, match="at most 1000 characters"):
        parse_labels("0-9," * 1_000_000, 10)


def test_the_seed_of_the_last_digit_is_in_range_too():
    assert check_seed(2**31 - 10, count=10) == 2**31 - 10
    with pytest.raises(ValueError, match="seed must be a whole number from 0 to 2147483638"):
        check_seed(2**31 - 9, count=10)


def test_a_sampling_configuration_is_checked_and_cannot_be_changed():
    config = SamplingConfig(8.0, 2, 3)
    assert (config.steps, config.guidance, config.time_shift) == (8, 2.0, 3.0)
    assert [type(value) for value in astuple(config)] == [int, float, float]
    with pytest.raises(FrozenInstanceError):
        config.steps = 9


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 0}, "steps must be a whole number from 1 to 50, not 0"),
        ({"steps": 51}, "not 51"),
        ({"steps": 2.5}, "not 2.5"),
        ({"steps": True}, "not True"),
        ({"guidance": 5.1}, "guidance must be a number from 0 to 5, not 5.1"),
        ({"guidance": math.nan}, "not nan"),
        ({"guidance": "1"}, "not '1'"),
        ({"time_shift": 0}, "time_shift must be a number from 0.001 to 1000.0, not 0"),
        ({"time_shift": math.inf}, "not inf"),
        ({"time_shift": None}, "not None"),
    ],
)
def test_sampling_values_out_of_range_are_named(values, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        SamplingConfig(**values)


@pytest.mark.parametrize("text", ["ten", "", "5-x", "12", "9-0", "3,,5", "-1"])
def test_an_unknown_class(text):
    with pytest.raises(ValueError, match=r"class must be|low to high"):
        parse_labels(text, 10)


def test_a_number_becomes_its_digits():
    assert parse_number("20261123").tolist() == [2, 0, 2, 6, 1, 1, 2, 3]


@pytest.mark.parametrize("text", ["", "12a", "-1", "1" * 17, "٣", "1.5"])
def test_text_that_is_not_a_number(text):
    with pytest.raises(ValueError, match="1 to 16 digits"):
        parse_number(text)


def test_a_digit_of_a_sheet_equals_the_digit_of_its_own_seed(small, monkeypatch):
    monkeypatch.setattr(sampling, "CPU_BATCH", 4)
    labels, config = parse_labels("0-9", 10), SamplingConfig(steps=3, guidance=2.0)
    batches = list(draw(small, labels, 30, config))
    alone = torch.cat(list(draw(small, labels[7:8], 37, config)))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert (torch.cat(batches)[7].int() - alone[0].int()).abs().max() <= 1
    assert not torch.equal(torch.cat(batches)[6], alone[0])


def test_the_sampling_configuration_reaches_the_flow(small):
    config = SamplingConfig(steps=5)
    path = list(states(small, torch.tensor([3]), [0], config))
    assert [round(state.t, 3) for state in path] == [1, 0.867, 0.71, 0.521, 0.29, 0]  # shifted by 1.63206
    unshifted = list(states(small, torch.tensor([3]), [0], replace(config, time_shift=1)))
    assert [round(state.t, 3) for state in unshifted] == [1, 0.8, 0.6, 0.4, 0.2, 0]
    stronger = list(states(small, torch.tensor([3]), [0], replace(config, guidance=3)))
    assert not torch.allclose(path[-1].x, stronger[-1].x)


def test_a_film_keeps_every_state_of_each_digit(small):
    labels, config = torch.tensor([3, 5]), SamplingConfig(steps=4, guidance=2)
    film = draw_film(small, labels, [7, 8], config)
    assert torch.equal(film.digits, torch.cat(list(draw(small, labels, 7, config))))
    assert not torch.equal(film.digits[0], film.digits[1])
    assert [len(pictures) for pictures in (film.times, film.noisy, film.predicted, film.velocity)] == [5, 5, 5, 4]
    assert {pictures.shape[1:] for pictures in (film.noisy, film.predicted, film.velocity)} == {(2, 28, 28)}
    assert torch.equal(film.noisy[0], images.to_pixels(noise([7, 8]), small.pixel_mean, small.pixel_std))
    assert torch.equal(film.predicted[-1], film.digits)
    assert close(film.predicted[-2], film.digits)  # the last step ends at the predicted image
    for before, after in pairwise(range(3)):  # the other predictions differ
        assert not close(film.predicted[before], film.predicted[after])
    states = [image.unsqueeze(1).double() for image in (film.noisy[0], film.predicted[0])]
    arrow = (states[0] - states[1]) / small.pixel_std / 6 + 127.5  # x_1 − (x_1 − v); ±3 span 0 to 255
    inside = (film.noisy[0] > 0) & (film.noisy[0] < 255) & (film.predicted[0] > 0) & (film.predicted[0] < 255)
    assert (film.velocity[0].double() - arrow[:, 0])[inside].abs().max() <= 1
    assert film.frames(3) == [0, 2, 4]
    assert film.frames(99) == [0, 1, 2, 3, 4]


class Turns:
    """A counter of turns that raises after `allowed` of them."""

    def __init__(self, allowed: int = 10**9):
        self.allowed, self.taken, self.inside = allowed, 0, False

    @contextmanager
    def __call__(self):
        if self.taken == self.allowed:
            raise KeyboardInterrupt
        self.taken, self.inside = self.taken + 1, True
        yield
        self.inside = False


@pytest.mark.parametrize("guidance", [1, 2])
def test_a_turn_is_taken_around_each_network_call_and_over_between_the_steps(small, monkeypatch, guidance):
    monkeypatch.setattr(sampling, "CPU_BATCH", 2)
    monkeypatch.setattr(sampling, "STEP_COUNTS", (1, 4))
    turns, calls, velocity = Turns(), [], small.velocity
    monkeypatch.setattr(small, "velocity", lambda *inputs: calls.append(turns.inside) or velocity(*inputs))
    labels, config = torch.tensor([3, 5, 7]), SamplingConfig(steps=3, guidance=guidance)
    for _ in states(small, labels, range(3), config, turns):
        assert not turns.inside
    assert turns.taken == 3
    list(draw(small, labels, 0, config, turns))  # two batches
    assert turns.taken == 3 + 6
    draw_film(small, labels, range(3), config, turns)
    assert turns.taken == 9 + 3
    list(compare_steps([(small, config)], labels, 0, turns))
    assert turns.taken == 12 + 1 + 4
    assert calls == [True] * 17


def test_waiting_for_turns_is_not_part_of_the_time_of_a_drawing(small, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: clock[0])

    @contextmanager
    def turn():
        clock[0] += 100  # waiting for others
        yield
        clock[0] += 0.25

    monkeypatch.setattr(sampling, "STEP_COUNTS", (1, 4))
    drawers = [(small, SamplingConfig()), (small, SamplingConfig(guidance=2))]
    times = [milliseconds for *_, milliseconds in compare_steps(drawers, torch.tensor([3]), 7, turn)]
    assert times == [[250, 250], [1000, 1000]]


def test_a_turn_that_is_refused_ends_the_drawing(small):
    turns = Turns(allowed=2)
    with pytest.raises(KeyboardInterrupt):
        draw_film(small, torch.tensor([3]), [7], SamplingConfig(steps=5), turns)
    assert turns.taken == 2


def test_comparing_steps_starts_from_the_same_noise(small, monkeypatch):
    monkeypatch.setattr(sampling, "STEP_COUNTS", (1, 4))
    labels, config = torch.tensor([3, 5]), SamplingConfig(guidance=2)
    compared = {steps: pixels for steps, pixels, _ in compare_steps([(small, config)], labels, 7)}
    assert list(compared) == [1, 4]
    for place, label in enumerate([3, 5]):
        alone = draw_film(small, torch.tensor([label]), [7], replace(config, steps=4)).digits[0]
        assert close(compared[4][place], alone)


@pytest.fixture
def sketch() -> torch.Tensor:
    sketch = torch.zeros(28, 28, dtype=torch.uint8)
    sketch[4:24, 10:14] = 255
    return sketch


@pytest.mark.parametrize("guidance", [1, 2])
def test_a_class_that_changes_at_1_was_the_other_from_the_start_and_at_0_never_changes(small, monkeypatch, guidance):
    monkeypatch.setattr(small, "velocity", lambda x, _, labels: x - labels.view(-1, 1, 1, 1) / 10)  # class-dependent
    turns, config = Turns(), SamplingConfig(steps=5, guidance=guidance)
    film = change_class(small, 3, 8, 7, config, [1, 0.6, 0], turns)
    assert turns.taken == 5
    ends = draw_film(small, torch.tensor([8, 3]), [7, 7], config)
    for place, end in ((0, 0), (2, 1)):
        for part in ("noisy", "predicted", "velocity"):
            assert close(getattr(film, part)[:, place], getattr(ends, part)[:, end])
    # the times are 1, 0.87, 0.71, 0.52, 0.29, 0: from 0.52 on it is an 8
    assert close(film.noisy[:4, 1], film.noisy[:4, 2])
    assert close(film.velocity[:3, 1], film.velocity[:3, 2])
    assert not close(film.velocity[3, 1], film.velocity[3, 2])
    assert not close(film.digits[1], film.digits[0])
    with pytest.raises(ValueError, match=r"switch time must be a number from 0 to 1, not 1\.1"):
        change_class(small, 3, 8, 7, config, [1.1])


def test_a_morph_ends_at_the_digits_of_both_seeds(small):
    turns, config = Turns(), SamplingConfig(steps=3, guidance=2)
    film = morph(small, 3, 7, 9, 5, config, turns)
    assert turns.taken == 3
    assert film.noisy.shape == (4, 5, 28, 28)
    ends = draw_film(small, torch.tensor([3, 3]), [7, 9], config)
    assert close(film.noisy[:, [0, 4]], ends.noisy)
    half = (noise([7]) + noise([9])) / (noise([7]) + noise([9])).norm() * noise([7]).norm()
    middle = film.noisy[0, 2].int() - images.to_pixels(half, small.pixel_mean, small.pixel_std)[0].int()
    assert middle.abs().float().mean() < 4  # their norms differ by a few per cent


def test_a_sketch_is_kept_at_0_and_forgotten_at_1(small, sketch):
    config = SamplingConfig(steps=5, guidance=2)
    kept = finish(small, sketch, 3, 7, 0, config)
    assert kept.times == [0]
    assert torch.equal(kept.digits, sketch.unsqueeze(0))
    assert torch.equal(kept.predicted, kept.noisy)
    assert kept.velocity.shape == (0, 1, 28, 28)
    forgotten, drawn = finish(small, sketch, 3, 7, 1, config), draw_film(small, torch.tensor([3]), [7], config)
    assert forgotten.times == drawn.times
    assert torch.equal(forgotten.noisy, drawn.noisy)


def test_a_sketch_goes_on_from_its_mixture_with_noise(small, sketch):
    turns, config = Turns(), SamplingConfig(steps=5)
    film = finish(small, sketch, 3, 7, 0.8, config, turns)
    assert film.times == pytest.approx([0.8, 0.65, 0.473, 0.261, 0], abs=1e-3)
    assert turns.taken == 4
    mixture = 0.8 * noise([7]) + 0.2 * images.to_model(sketch.unsqueeze(0), small.pixel_mean, small.pixel_std)
    assert torch.equal(film.noisy[0], images.to_pixels(mixture, small.pixel_mean, small.pixel_std))
    v = small(mixture, torch.tensor([0.8]), torch.tensor([3]))
    x = mixture + (film.times[1] - 0.8) * v  # the first step is an Euler step
    assert close(film.noisy[1], images.to_pixels(x, small.pixel_mean, small.pixel_std))
    with pytest.raises(ValueError, match=r"noise must be a number from 0 to 1, not 2"):
        finish(small, sketch, 3, 7, 2, config)
    with pytest.raises(ValueError, match="the sketch is empty; draw something first"):
        finish(small, torch.zeros_like(sketch), 3, 7, 0.5, config)


def run(capsys, *arguments):
    """The command's status and stderr output."""
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
    expected = torch.cat(list(draw(network, torch.from_numpy(data["labels"]), 0, SamplingConfig(steps=2))))
    assert np.array_equal(data["images"], expected.numpy())


def test_what_is_not_asked_for_is_that_of_the_weights(small, tmp_path, capsys):
    own = SamplingConfig(steps=3, guidance=2, time_shift=4)
    weights.save(small, tmp_path / "own", own, {})
    for asked, config in {(): own, ("--guidance", 1): replace(own, guidance=1)}.items():
        out = tmp_path / "digits.npz"
        assert run(capsys, "--weights", tmp_path / "own", "--count", 2, "--out", out, *asked)[0] == 0
        expected = torch.cat(list(draw(weights.load(str(tmp_path / "own")).network, torch.arange(2), 0, config)))
        assert np.array_equal(np.load(out)["images"], expected.numpy())


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
        (["--device", "abacus"], "device 'abacus' is not available"),
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

    monkeypatch.setattr(images, "save", fail)
    status, error = run(capsys, "--weights", small_weights, "--count", 1, "--steps", 1, "--out", out)
    assert status == 2
    assert "the disk is full" in error
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.png", "weights"]


@pytest.mark.parametrize(("asked", "digits"), [([], "0,1,2,3,4,5,6,7,8,9"), (["--labels", "3,5"], "3,5")])
def test_a_picture_records_its_classes_even_if_none_were_requested(small_weights, tmp_path, capsys, asked, digits):
    out = tmp_path / "digits.png"
    assert run(capsys, "--weights", small_weights, "--count", 2, "--steps", 1, "--out", out, *asked)[0] == 0
    comment = f"{digits}: seed 0, steps 1, guidance 1.0, time_shift 1.63206"
    assert Image.open(out).text == {"Comment": comment}
