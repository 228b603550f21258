"""The figures: what a set of digits is worth, as functions of its features and its pixels, beside real ones.

Distances are those of torchmetrics. Precision and recall follow Kynkäänniemi et al. (arXiv 1904.06991, §3), density and coverage
Naeem et al. (arXiv 2002.09797, §3), copies a nearest-neighbour test in pixels. Features are `[N, 128]`, pixels uint8 `[N, 28, 28]`.
"""

import warnings

import torch
from torch import nn
from tqdm import tqdm

NEIGHBOURS = 5  # k of the four manifold figures
KERNEL_SUBSETS, KERNEL_SUBSET = 100, 1000
CHUNK = 500  # rows of a distance matrix at once: 120 MB against the training set


class Given(nn.Identity):
    """What torchmetrics takes for a network when the features are there already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


def distance_between(metric, drawn: torch.Tensor, real: torch.Tensor):
    """A torchmetrics distance between two sets of features, in float64 on the CPU: not every device has it."""
    metric.update(real.cpu().double(), real=True)
    metric.update(drawn.cpu().double(), real=False)
    return metric.compute()


def frechet(drawn: torch.Tensor, real: torch.Tensor) -> float:
    """Fréchet distance, squared as in FID, between the Gaussians of two sets (Heusel et al., arXiv 1706.08500, eq. 6)."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # only whoever measures needs torchmetrics

    return distance_between(FrechetInceptionDistance(feature=Given(drawn.shape[1])), drawn, real).item()


def kernel(drawn: torch.Tensor, real: torch.Tensor) -> float:
    """Kernel distance KID, the mean over 100 subsets of at most 1,000 (Bińkowski et al., arXiv 1801.01401, §4)."""
    from torchmetrics.image.kid import KernelInceptionDistance

    subset = min(KERNEL_SUBSET, len(drawn), len(real))
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # it says that it keeps the features
        torch.manual_seed(0)  # names the subsets
        metric = KernelInceptionDistance(feature=Given(drawn.shape[1]), subsets=KERNEL_SUBSETS, subset_size=subset)
        return distance_between(metric, drawn, real)[0].item()


def radii(points: torch.Tensor, k: int) -> torch.Tensor:
    """Distance `[N]` of each point `[N, d]` to its k-th nearest neighbour among the others."""
    return torch.cat([torch.cdist(chunk, points).kthvalue(k + 1).values for chunk in points.split(CHUNK)])  # the nearest is itself


def manifold(drawn: torch.Tensor, real: torch.Tensor, k: int = NEIGHBOURS) -> dict[str, float]:
    """Precision, recall, density and coverage of `drawn` `[M, d]` over `real` `[N, d]`, from the balls out to the k-th neighbour.

    precision: share of drawn points inside a real ball · density: real balls around a drawn point, over k ·
    coverage: share of real balls with a drawn point inside · recall: share of real points inside a drawn ball.
    One odd point with a wide ball is enough to flatter precision or recall, hence the other two (Naeem et al., §2).
    """
    drawn_radii = radii(drawn, k)
    balls_around = torch.zeros(len(drawn), device=drawn.device)  # of each drawn point
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
    """Distance in pixels `[N]` (Euclidean, white is 1) of each image to its nearest training image, and which one that is `[N]`."""
    images, training = (x.flatten(1).float() / 255 for x in (pixels, training))
    squares = training.square().sum(1)
    found = []
    for chunk in tqdm(images.split(CHUNK), desc="nearest training images", unit="chunk", leave=False, dynamic_ncols=True):
        found.append((squares - 2 * chunk @ training.T).argmin(1))  # the chunk's own squares change no order
    index = torch.cat(found)
    return (images - training[index]).norm(dim=1), index


def copies(drawn: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
    """Share of images suspiciously near to the training set, from nearest distances of `drawn` `[M]` and of real test images `[N]`.

    Suspicious is nearer than 1 % of the real test images are. Real images beside it: each half of them, every other one, under
    the other half's limit. `z` is the Mann–Whitney score of all distances: below 0 the drawn ones are nearer.
    """
    first, second = real[::2], real[1::2]
    held_back = torch.cat([first < second.quantile(0.01), second < first.quantile(0.01)])
    limit = real.quantile(0.01)
    return {
        "share": (drawn < limit).float().mean().item(),
        "real_share": held_back.float().mean().item(),
        "limit": limit.item(),
        "z": mann_whitney(drawn, real),
    }


def mann_whitney(a: torch.Tensor, b: torch.Tensor) -> float:
    """Standard score of the Mann–Whitney U test of two samples `[M]`, `[N]`: negative where `a` tends to be the smaller."""
    ordered = b.sort().values
    below = (torch.searchsorted(ordered, a) + torch.searchsorted(ordered, a, right=True)).double() / 2  # a tie counts half
    m, n = len(a), len(b)
    return ((below.sum() - m * n / 2) / (m * n * (m + n + 1) / 12) ** 0.5).item()


def flat(pixels: torch.Tensor, level: int) -> dict[str, float]:
    """How evenly black (`level` 0) or white (255) images are: mean, spread, and the pixel furthest off, in levels of 255."""
    values = pixels.float()
    return {"count": len(pixels), "mean": values.mean().item(), "spread": values.std().item(), "worst": (values - level).abs().max().item()}
