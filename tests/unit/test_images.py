import numpy as np
import torch

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


def test_every_pixel_is_enlarged_alike():
    pixels = torch.randint(0, 256, (28, 28), dtype=torch.uint8)
    large = images.enlarge(pixels, 3)
    assert large.shape == (84, 84)
    for corner in (0, 2):
        assert np.array_equal(large[corner::3, corner::3], pixels.numpy())


def test_sheet_goes_row_by_row_with_a_grey_gap():
    pixels = torch.stack([torch.full((28, 28), value, dtype=torch.uint8) for value in (10, 20, 30, 255)])
    sheet = np.array(images.sheet(pixels, columns=2, scale=1, gap=2))
    assert sheet.shape == (62, 62)
    assert [sheet[16, 16], sheet[16, 46], sheet[46, 16], sheet[46, 46]] == [10, 20, 30, 255]
    assert sheet[0, 0] == 64
