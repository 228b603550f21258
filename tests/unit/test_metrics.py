"""Metrics and their plots, checked against known answers."""

import numpy as np
import pytest
import torch
from PIL import Image

from training.measure import metrics, plots

for package in ("torchmetrics", "matplotlib"):
    pytest.importorskip(package, reason=f"{package} is a development package")


def cloud(mean, covariance, count: int = 400, seed: int = 0) -> torch.Tensor:
    """Points with exactly this sample mean and covariance."""
    covariance = torch.tensor(covariance, dtype=torch.float64)
    points = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points = points - points.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(points.T.cov()), points.T, upper=False)
    return (torch.linalg.cholesky(covariance) @ white).T + torch.tensor(mean, dtype=torch.float64)


def test_a_set_has_distance_0_from_itself():
    points = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    assert metrics.frechet(points, points) == pytest.approx(0, abs=1e-9)
    assert metrics.prdc(points, points) == pytest.approx(
        {"precision": 1, "recall": 1, "density": 6 / 5, "coverage": 1}, abs=0.05
    )


def test_frechet_of_two_gaussians_is_the_closed_form():
    a, b = cloud([0, 0], [[4, 0], [0, 1]]), cloud([3, 1], [[1, 0], [0, 9]], seed=1)
    assert metrics.frechet(a, b) == pytest.approx(3**2 + 1**2 + (2 - 1) ** 2 + (1 - 3) ** 2, rel=1e-9)
    # correlated: the trace of the root of a 2 × 2 product is √(trace + 2·√determinant)
    a, b = [[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.3], [-0.3, 3.0]]
    product = torch.tensor(a) @ torch.tensor(b)
    root = (product.trace() + 2 * product.det().sqrt()).sqrt().item()
    assert metrics.frechet(cloud([0, 0], a), cloud([0, 0], b, seed=1)) == pytest.approx(3 + 4 - 2 * root, rel=1e-5)


def test_prdc_by_hand():
    """Real 0, 1, 3, 7 and k = 1: radii 1, 1, 2, 4. Drawn 0.5, 4, 40: radii 3.5, 3.5, 36."""
    drawn, real = torch.tensor([[0.5], [4.0], [40.0]]), torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert metrics.radii(real, 1).tolist() == [1, 1, 2, 4]
    assert metrics.radii(drawn, 1).tolist() == [3.5, 3.5, 36]
    found = metrics.prdc(drawn, real, k=1)
    # 0.5 lies in the balls of 0 and 1, 4 in those of 3 and 7, 40 in none; all real points lie in a drawn ball
    assert found == pytest.approx({"precision": 2 / 3, "recall": 1, "density": 4 / 3, "coverage": 1})
    found = metrics.prdc(real, drawn, k=1)
    # 0, 1 and 3 lie in the ball of 0.5, 1, 3 and 7 in that of 4, 7 in that of 40; 40 lies in no real ball
    assert found == pytest.approx({"precision": 1, "recall": 2 / 3, "density": 7 / 4, "coverage": 1})


def test_the_chunk_size_changes_nothing(monkeypatch):
    drawn, real = torch.randn(70, 3), torch.randn(90, 3)
    pixels = torch.randint(0, 256, (160, 28, 28), dtype=torch.uint8)
    whole = metrics.prdc(drawn, real), metrics.nearest(pixels[:70], pixels[70:])[1].tolist()
    monkeypatch.setattr(metrics, "CHUNK", 7)
    assert (metrics.prdc(drawn, real), metrics.nearest(pixels[:70], pixels[70:])[1].tolist()) == whole


def test_nearest_is_the_distance_in_pixels():
    training = torch.zeros(3, 28, 28, dtype=torch.uint8)
    training[1] = 255
    training[2, 0, 0] = 255
    image = torch.zeros(2, 28, 28, dtype=torch.uint8)
    image[0] = 255
    image[1, 0, :2] = 255
    distance, index = metrics.nearest(image, training)
    assert index.tolist() == [1, 2]
    assert distance.tolist() == [0, 1]


def test_copies_are_closer_than_one_real_image_in_a_hundred():
    real = torch.arange(1000) + 1.0
    found = metrics.copies(torch.tensor([0.0, 5.0, 500.0, 900.0]), real)
    assert found["share"] == 0.5
    assert found["limit"] == pytest.approx(10.99)
    assert found["real_share"] == pytest.approx(0.01, abs=0.002)


def test_blank_errors_are_in_levels_of_255():
    images = torch.full((2, 28, 28), 255, dtype=torch.uint8)
    images[0, 0, 0] = 245
    found = metrics.blank_error(images, 255)
    assert (found["count"], found["worst"]) == (2, 10)
    assert found["mean"] == pytest.approx(255 - 10 / (2 * 784))
    assert found["spread"] == pytest.approx(10 / (2 * 784) ** 0.5, rel=1e-2)


# ---- plots


@pytest.mark.parametrize("half", [0, 1, 3])
def test_the_moving_average_of_a_line_is_that_line_up_to_the_last_values(half):
    line = 5 - 0.25 * torch.arange(40, dtype=torch.float64)
    torch.testing.assert_close(plots.moving_average(line, half), line[: 40 - half])


@pytest.mark.parametrize(("peak", "reach"), [(40, 2), (9, 1), (3, 0)])
def test_the_moving_average_is_centred_and_narrower_at_the_start(peak, reach):
    loss = torch.zeros(60, dtype=torch.float64)
    loss[peak] = 1
    expected = torch.zeros(58, dtype=torch.float64)
    expected[peak - reach : peak + reach + 1] = 1 / (2 * reach + 1)
    torch.testing.assert_close(plots.moving_average(loss, 2), expected)


@pytest.mark.parametrize("count", [1, 2, 200])
def test_a_loss_curve_of_any_length_is_drawn(count, tmp_path):
    plots.loss_curve(tmp_path / "loss.png", [{"images": 128 * i, "loss": 1 / i} for i in range(1, count + 1)])
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (1050, 525)


def test_the_sheet_of_samples_has_a_column_per_class(tmp_path):
    labels = torch.tensor([3, 0, 3, 9])
    pixels = torch.tensor([100, 50, 120, 200], dtype=torch.uint8).view(-1, 1, 1).expand(-1, 28, 28)
    plots.samples(tmp_path / "samples.png", pixels, labels, rows=2)
    with Image.open(tmp_path / "samples.png") as image:
        sheet = np.array(image)
    pitch, middle = 3 * (28 + 2), 3 * (2 + 14)
    assert sheet[middle, middle::pitch].tolist() == [50, 0, 0, 100, 0, 0, 0, 0, 0, 200]
    assert sheet[middle + pitch, middle::pitch].tolist() == [0, 0, 0, 120, 0, 0, 0, 0, 0, 0]


def test_neighbours_are_drawn_for_classes_with_any_number_of_digits(tmp_path):
    labels = torch.tensor([0, 0, 0, 5])
    pixels = torch.zeros(4, 28, 28, dtype=torch.uint8)
    plots.neighbours(tmp_path / "neighbours.png", pixels, labels, torch.arange(4.0), pixels)
    with Image.open(tmp_path / "neighbours.png") as image:
        assert image.size == (1500, 750)


@pytest.mark.parametrize(("over", "width"), [("steps", 1800), ("time_shift", 1950)])
def test_a_sweep_is_drawn_with_a_line_per_number_of_steps_over_the_shift(over, width, tmp_path):
    rows = [
        {
            "settings": {"count": 2000, "steps": steps, "guidance": 1.0, "time_shift": shift},
            "drawn": {"fd_ratio": 8 / steps, "coverage": 0.9, "accuracy": 0.98},
            "real": {"fd_ratio": 1.0, "coverage": 0.95, "accuracy": 0.99},
        }
        for steps in (2, 4)
        for shift in (1.0, 2.5)
    ]
    plots.sweep(tmp_path / "sweep.png", over, rows)
    with Image.open(tmp_path / "sweep.png") as image:
        assert image.size == (width, 570)
