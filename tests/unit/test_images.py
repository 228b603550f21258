import io

import numpy as np
import torch
from PIL import Image

from model import images


def test_pixels_go_to_the_model_and_back_unchanged():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(4)[: 28 * 28].view(1, 28, 28)
    x = images.to_model(pixels, 0.5, 0.3081)
    assert x.shape == (1, 1, 28, 28)
    assert torch.equal(images.to_pixels(x, 0.5, 0.3081), pixels)


def test_mean_and_std_are_those_of_pixels_from_0_to_1():
    x = images.to_model(torch.tensor([[[0, 255]]], dtype=torch.uint8), 0.5, 0.25)
    assert x.flatten().tolist() == [-2, 2]
    assert images.to_pixels(torch.tensor([[[[-9.0, 9.0, 0.0]]]]), 0.5, 0.25).flatten().tolist() == [0, 255, 128]


def test_sheet_goes_row_by_row_with_a_grey_gap():
    pixels = torch.stack([torch.full((28, 28), value, dtype=torch.uint8) for value in (10, 20, 30, 255)])
    sheet = np.array(images.sheet(pixels, columns=2, scale=1, gap=2))
    assert sheet.shape == (62, 62)
    assert [sheet[16, 16], sheet[16, 46], sheet[46, 16], sheet[46, 46]] == [10, 20, 30, 255]
    assert sheet[0, 0] == 64


def test_png_keeps_every_pixel():
    pixels = torch.randint(0, 256, (28, 28), dtype=torch.uint8)
    back = np.array(Image.open(io.BytesIO(images.png(pixels, scale=3))))
    assert back.shape == (84, 84)
    assert np.array_equal(back[1::3, 1::3], pixels.numpy())


def test_animation_plays_once_and_stops_on_the_last():
    frames = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    file = Image.open(io.BytesIO(images.animation(frames, milliseconds=500)))
    assert file.n_frames == 1 + 5
    assert file.info["loop"] == 1
    for place, frame in ((0, 4), (1, 0), (4, 3), (5, 4)):  # image 0 is for viewers without animation
        file.seek(place)
        assert np.array_equal(np.array(file.convert("L")), frames[frame].numpy())
