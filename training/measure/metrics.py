"""Metrics of a set of digits, as functions of features `[N, 128]` or pixels uint8 `[N, 28, 28]`.

FD is computed by torchmetrics. Precision and recall follow Kynkäänniemi et al. (arXiv 1904.06991, §3), density
and coverage Naeem et al. (arXiv 2002.09797, §3). Near copies are found by a nearest-neighbour test in pixel space.
"""

import torch
from torch import nn
from tqdm import tqdm

NEIGHBOURS = 5  # k of precision, recall, density and coverage
CHUNK = 500  # rows of a distance matrix at once: 120 MB against the training set


class Precomputed(nn.Identity):
    """The feature module for torchmetrics when features are already computed."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


def frechet(drawn: torch.Tensor, real: torch.Tensor) -> float:
    """Fréchet distance, squared as in FID, of two sets as Gaussians (Heusel et al., arXiv 1706.08500, eq. 6)."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # needed only to measure

    metric = FrechetInceptionDistance(feature=Precomputed(drawn.shape[1]))
    metric.update(real.cpu().double(), real=True)  # float64 on the CPU: not every device has it
    metric.update(drawn.cpu().double(), real=False)
    return metric.compute().item()


def radii(points: torch.Tensor, k: int) -> torch.Tensor:
    """Distance `[N]` of each point `[N, d]` to its k-th nearest neighbour among the others."""
    chunks = points.split(CHUNK)
    return torch.cat([torch.cdist(chunk, points).kthvalue(k + 1).values for chunk in chunks])  # the nearest is itself


def prdc(drawn: torch.Tensor, real: torch.Tensor, k: int = NEIGHBOURS) -> dict[str, float]:
    """Precision, recall, density and coverage of `drawn` `[M, d]` against `real` `[N, d]`, from balls to the k-th
    neighbour.

    precision: share of drawn points inside a real ball · density: mean number of real balls around a drawn point, over
    k · coverage: share of real balls with a drawn point inside · recall: share of real points inside a drawn ball. A
    single outlier with a wide ball inflates precision or recall, hence the other two (Naeem et al., §2).
    """
    drawn_radii = radii(drawn, k)
    balls_around = torch.zeros(len(drawn), device=drawn.device)  # per drawn point
    covered, recalled = [], []
    for points, radius in zip(real.split(CHUNK), radii(real, k).split(CHUNK), strict=True):
        distance = torch.cdist(points, drawn)  # [≤ 500, M]
        inside = distance <= radius.unsqueeze(1)
        balls_around += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distance <= drawn_radii).any(1))
    return {
        "precision": (balls_around > 0).float().mean().item(),
        "recall": torch.cat(recalled).float().mean().item(),
        "density": balls_around.mean().item() / k,
        "coverage": torch.cat(covered).float().mean().item(),
    }


def nearest(pixels: torch.Tensor, training: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Euclidean distance `[N]` (white is 1) of each image to its nearest training image, and its index `[N]`."""
    images, training = (x.flatten(1).float() / 255 for x in (pixels, training))
    squares = training.square().sum(1)
    found = []
    for chunk in tqdm(
        images.split(CHUNK), desc="nearest training images", unit="chunk", leave=False, dynamic_ncols=True
    ):
        found.append((squares - 2 * chunk @ training.T).argmin(1))  # the chunk's own squares do not change the order
    index = torch.cat(found)
    return (images - training[index]).norm(dim=1), index


def copies(drawn: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
    """Share of near copies, from nearest-neighbour distances to the training set of drawn `[M]` and real test images
    `[N]`.

    A near copy is closer than the 1 % quantile of the real test images. For comparison, `real_share` applies the limit
    of each half of the real images (every other one) to the other half.
    """
    first, second = real[::2], real[1::2]
    held_out = torch.cat([first < second.quantile(0.01), second < first.quantile(0.01)])
    limit = real.quantile(0.01)
    share = (drawn < limit).float().mean().item()
    return {"share": share, "real_share": held_out.float().mean().item(), "limit": limit.item()}


def blank_error(pixels: torch.Tensor, level: int) -> dict[str, float]:
    """Mean, spread (std) and worst deviation from `level` of the pixels of black (0) or white (255) images, of 255."""
    values = pixels.float()
    worst = (values - level).abs().max().item()
    return {"count": len(pixels), "mean": values.mean().item(), "spread": values.std().item(), "worst": worst}
