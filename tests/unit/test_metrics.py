"""The figures against answers known beforehand."""

import pytest
import torch

from training import figures

pytest.importorskip("torchmetrics", reason="torchmetrics is a development package")


def cloud(mean, covariance, count: int = 400, seed: int = 0) -> torch.Tensor:
    """Points whose sample mean and sample covariance are exactly these."""
    covariance = torch.tensor(covariance, dtype=torch.float64)
    points = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points = points - points.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(points.T.cov()), points.T, upper=False)
    return (torch.linalg.cholesky(covariance) @ white).T + torch.tensor(mean, dtype=torch.float64)


def test_a_set_is_at_no_distance_from_itself():
    points = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    assert figures.frechet(points, points) == pytest.approx(0, abs=1e-9)
    assert figures.manifold(points, points) == pytest.approx(
        {"precision": 1, "recall": 1, "density": 6 / 5, "coverage": 1}, abs=0.05
    )


def test_frechet_of_two_gaussians_is_the_closed_form():
    a, b = cloud([0, 0], [[4, 0], [0, 1]]), cloud([3, 1], [[1, 0], [0, 9]], seed=1)
    assert figures.frechet(a, b) == pytest.approx(3**2 + 1**2 + (2 - 1) ** 2 + (1 - 3) ** 2, rel=1e-9)
    # correlated: the trace of the root of a 2 × 2 product is √(trace + 2·√determinant)
    a, b = [[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.3], [-0.3, 3.0]]
    product = torch.tensor(a) @ torch.tensor(b)
    root = (product.trace() + 2 * product.det().sqrt()).sqrt().item()
    assert figures.frechet(cloud([0, 0], a), cloud([0, 0], b, seed=1)) == pytest.approx(3 + 4 - 2 * root, rel=1e-5)


def test_kernel_of_two_points_is_the_closed_form():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 3.0])
    k = lambda x, y: (x @ y / 2 + 1).item() ** 3  # noqa: E731
    found = figures.kernel(a.expand(40, 2), b.expand(50, 2))
    assert found == pytest.approx(k(a, a) + k(b, b) - 2 * k(a, b), rel=1e-6)
    drawn, real = (torch.randn(400, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    # unbiased: little to be seen between two draws of one law
    assert 20 * abs(figures.kernel(drawn, real)) < figures.kernel(drawn + 1, real)


def test_manifold_by_hand():
    """Real 0, 1, 3, 7 and k = 1: radii 1, 1, 2, 4. Drawn 0.5, 4, 40: radii 3.5, 3.5, 36."""
    drawn, real = torch.tensor([[0.5], [4.0], [40.0]]), torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert figures.radii(real, 1).tolist() == [1, 1, 2, 4]
    assert figures.radii(drawn, 1).tolist() == [3.5, 3.5, 36]
    found = figures.manifold(drawn, real, k=1)
    # 0.5 lies in the balls of 0 and 1, 4 in those of 3 and 7, 40 in none; 7 lies 3 from 4, and all real points in a drawn ball
    assert found == pytest.approx({"precision": 2 / 3, "recall": 1, "density": 4 / 3, "coverage": 1})
    found = figures.manifold(real, drawn, k=1)
    # 0, 1 and 3 lie in the ball of 0.5; 1, 3 and 7 in that of 4; 7 in that of 40; of the drawn only 0.5 and 4 lie in a real ball
    assert found == pytest.approx({"precision": 1, "recall": 2 / 3, "density": 7 / 4, "coverage": 1})


def test_a_lost_mode_costs_coverage_and_recall_and_a_foreign_one_precision():
    modes = [torch.randn(300, 4, generator=torch.Generator().manual_seed(i)) + 20 * i for i in range(4)]
    lost = figures.manifold(torch.cat(modes[:3]), torch.cat(modes))
    assert lost["coverage"] < 0.78
    assert lost["recall"] < 0.78
    assert lost["precision"] == 1
    foreign = figures.manifold(torch.cat(modes), torch.cat(modes[:3]))
    assert foreign["precision"] < 0.78
    assert foreign["coverage"] > 0.95


def test_chunks_change_nothing(monkeypatch):
    drawn, real = torch.randn(70, 3), torch.randn(90, 3)
    pixels = torch.randint(0, 256, (160, 28, 28), dtype=torch.uint8)
    whole = figures.manifold(drawn, real), figures.nearest(pixels[:70], pixels[70:])[1].tolist()
    monkeypatch.setattr(figures, "CHUNK", 7)
    assert (figures.manifold(drawn, real), figures.nearest(pixels[:70], pixels[70:])[1].tolist()) == whole


def test_nearest_is_the_distance_in_pixels():
    training = torch.zeros(3, 28, 28, dtype=torch.uint8)
    training[1] = 255
    training[2, 0, 0] = 255
    image = torch.zeros(2, 28, 28, dtype=torch.uint8)
    image[0] = 255
    image[1, 0, :2] = 255
    distance, index = figures.nearest(image, training)
    assert index.tolist() == [1, 2]
    assert distance.tolist() == [0, 1]


def test_copies_are_those_nearer_than_one_real_image_in_a_hundred():
    real = torch.arange(1000) + 1.0
    found = figures.copies(torch.tensor([0.0, 5.0, 500.0, 900.0]), real)
    assert found["share"] == 0.5
    assert found["limit"] == pytest.approx(10.99)
    assert found["real_share"] == pytest.approx(0.01, abs=0.002)


def test_mann_whitney_has_its_sign_and_size():
    low, high = torch.arange(10.0), torch.arange(10.0) + 100
    whole = 50 / (10 * 10 * 21 / 12) ** 0.5
    assert figures.mann_whitney(low, high) == pytest.approx(-whole)
    assert figures.mann_whitney(high, low) == pytest.approx(whole)
    assert figures.mann_whitney(low, low) == 0


def test_flat_images_are_measured_in_levels():
    images = torch.full((2, 28, 28), 255, dtype=torch.uint8)
    images[0, 0, 0] = 245
    found = figures.flat(images, 255)
    assert (found["count"], found["worst"]) == (2, 10)
    assert found["mean"] == pytest.approx(255 - 10 / (2 * 784))
    assert found["spread"] == pytest.approx(10 / (2 * 784) ** 0.5, rel=1e-2)
