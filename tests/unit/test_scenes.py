import base64
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from model import flow, images, scenes
from model.sampling import SamplingConfig, draw, states
from training.data import load
from training.measure import plane as command

SEEDS, SAMPLING = [5, 6, 7], SamplingConfig(steps=7, guidance=2.0)


@pytest.fixture
def plane() -> scenes.Plane:
    """A plane spanned by two pixels: the first of the first row and the last of the last row."""
    axes = torch.zeros(2, 784)
    axes[0, 0] = axes[1, -1] = 1
    return scenes.Plane(axes, [[0.25, -0.5]])


def unpacked(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8).view(-1, 28, 28)


def test_an_image_lies_where_its_pixels_say(plane):
    image = torch.full((28, 28), 0.5)
    assert plane.project(image).tolist() == [0, 0]
    image[0, 0], image[0, 1], image[-1, -1] = 0.75, 9, -3.5
    assert plane.project(image).tolist() == [0.25, -4]


def test_paths_lead_from_the_noise_of_a_seed_to_its_digit(small, plane):
    drawn = scenes.paths(small, None, 3, SEEDS, SAMPLING, plane)
    assert (drawn["digits"], drawn["seeds"], drawn["dots"]) == (["3"], SEEDS, [[0.25, -0.5]])
    assert [run["steps"] for run in drawn["runs"]] == [1, 4, 20]
    noise = flow.noise(SEEDS)[:, 0] * small.pixel_std + small.pixel_mean - 0.5
    for run in drawn["runs"]:
        path, aims = torch.tensor(run["path"]), torch.tensor(run["aims"])
        assert path.shape == (run["steps"] + 1, 3, 2)
        assert aims.shape == (run["steps"], 3, 2)
        assert torch.allclose(path[0], torch.stack([noise[:, 0, 0], noise[:, -1, -1]], 1), atol=1e-3)
        assert torch.allclose(aims[0], torch.tensor(drawn["runs"][0]["aims"][0]), atol=1e-3)
        assert torch.allclose(path[-1], aims[-1], atol=2e-3)  # the last step lands on the predicted image

        each = replace(SAMPLING, steps=run["steps"])
        *_, last = states(small, torch.full((3,), 3), SEEDS, each)
        x = last.x[:, 0] * small.pixel_std + small.pixel_mean - 0.5  # not clipped to black and white
        assert x.abs().max() > 0.5
        assert torch.allclose(path[-1], torch.stack([x[:, 0, 0], x[:, -1, -1]], 1), atol=1e-3)
        digits = torch.cat([*draw(small, torch.full((3,), 3), SEEDS[0], each)])
        assert (unpacked(run["pixels"]).int() - digits.int()).abs().max() <= 1


def test_every_network_call_of_the_paths_takes_a_turn(small, plane):
    turns = []

    @contextmanager
    def turn():
        turns.append(len(turns))
        yield

    scenes.paths(small, None, 0, SEEDS, SAMPLING, plane, turn)
    assert len(turns) == 1 + 4 + 20


# ---- the planes


def test_the_axes_are_the_way_to_the_average_and_what_varies_most():
    pixels = torch.full((4, 28, 28), 127.5)
    pixels[:, 14, 14] = torch.tensor([260, 260, 140, 140])  # present in all images, with the largest variance
    for sign, image in zip((1, -1, 2, -2), pixels, strict=True):
        image[2, 25] += 20 * sign  # above, to the right
        image[3, 0] += sign
    first, second = command.axes(pixels).unflatten(1, (28, 28))
    assert first[14, 14] == pytest.approx(1)
    assert second[2, 25] == pytest.approx(20 / 401**0.5)
    assert second[3, 0] == pytest.approx(1 / 401**0.5)


def test_a_digit_that_leans_to_the_right_lies_higher():
    row, column = np.indices((28, 28))
    lean = torch.arange(-8, 9)
    lines = np.stack([np.abs(column - 13.5 + shift.item() * (row - 13.5) / 13.5) < 2 for shift in lean])
    pixels = torch.from_numpy(lines).to(torch.uint8) * 255
    height = scenes.Plane(command.axes(pixels), []).project(pixels / 255)[:, 1]
    assert height[-1] > 1 > -1 > height[0]


def test_the_planes_are_orthonormal_and_one_per_digit():
    planes = scenes.read_planes()
    assert [*planes] == [*images.CLASSES[:10]]
    for plane in planes.values():
        assert torch.allclose(plane.axes @ plane.axes.T, torch.eye(2), atol=1e-3)
        assert np.shape(plane.dots) == (command.DOTS, 2)


def test_the_dots_are_real_digits(mnist_root):
    pixels, labels = load("mnist", mnist_root)
    plane = scenes.read_planes()["3"]
    where = plane.project(pixels[labels == 3][: command.DOTS] / 255)
    assert torch.allclose(where, torch.tensor(plane.dots), atol=0.006)


def test_the_command_writes_what_the_page_reads(root, tmp_path, monkeypatch, capsys):
    for module in (command, scenes):
        monkeypatch.setattr(module, "PLANES", tmp_path / "plane.json")
    assert command.main(["--data-root", root]) == 0
    assert "10 planes" in capsys.readouterr().out
    pixels, labels = load("mnist", root)
    plane = scenes.read_planes()["9"]
    assert torch.allclose(plane.axes, command.axes(pixels[labels == 9]), atol=1e-3)
    assert len(plane.dots) == 11
