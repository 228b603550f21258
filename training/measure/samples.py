"""The digits to evaluate: drawn with weights or read from a file."""

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from model import images, weights
from model.common import sha256
from model.sampling import MNIST_HISTOGRAM, SamplingConfig, draw, parse_labels
from training.own_images import read_arrays

MIN_COUNT = 256  # digits: twice the 128 features; fewer give no meaningful metrics


class GeneratedSamples:
    """Digits drawn with weights on request, with any sampling configuration."""

    def __init__(self, where: str | None, device: torch.device):
        where = where or os.environ.get("WEIGHTS") or str(weights.BUNDLED)
        self.folder = Path(where) if Path(where).is_dir() else None
        loaded = weights.load(where, device).alone()
        recorded = loaded.metrics.get("sha256", {}).get(weights.TENSORS)  # verified while loading
        self.sha256 = recorded or sha256(loaded.folder / weights.TENSORS)
        self.network, self.sampling = loaded.network, loaded.sampling.for_network(loaded.network)
        self.name, self.sampler = loaded.source, loaded.network.sampler
        self.available = sum(MNIST_HISTOGRAM)
        self.metrics = {key: loaded.metrics[key] for key in ("training", "sha256") if key in loaded.metrics}
        data = loaded.metrics.get("training", {}).get("data", "mnist")
        if data != "mnist":
            raise ValueError(f"{where} was trained on {data}, but evaluation compares with MNIST")

    def digits(self, count: int, seed: int, **sampling) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` digits uint8 `[count, 28, 28]` and their labels, in the proportions of the training set."""
        labels = parse_labels("mnist", count, seed)
        return self.draw(labels, seed, **sampling), labels

    def blanks(self, count: int, seed: int, **sampling) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` black and `count` white images, and their labels; none if the network has no such classes."""
        count = count if self.network.null_label > images.WHITE else 0
        labels = torch.tensor([images.BLACK, images.WHITE]).repeat(count)
        return self.draw(labels, seed, **sampling), labels

    def draw(self, labels: torch.Tensor, seed: int, **sampling) -> torch.Tensor:
        config = SamplingConfig(**sampling)
        batches = [torch.empty(0, images.SIZE, images.SIZE, dtype=torch.uint8)]
        title = f"drawing, {config.steps} steps, guidance {config.guidance:g}"
        with tqdm(total=len(labels), desc=title, unit="digit", dynamic_ncols=True) as bar:
            for batch in draw(self.network, labels, seed, config):
                batches.append(batch)
                bar.update(len(batch))
        return torch.cat(batches)


class FileSamples:
    """Digits from an `.npz` of `images` and `labels`; their sampling settings are unknown."""

    def __init__(self, path: Path):
        self.pixels, self.labels = read_samples(path)
        self.folder, self.name, self.sha256, self.metrics = path.parent, path.name, sha256(path), {}
        self.available = int((self.labels < images.BLACK).sum())
        self.sampler = self.sampling = None

    def digits(self, count: int, seed: int, **sampling) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` of the digits, in the class proportions of the training set as far as possible."""
        chosen = self.labels < images.BLACK
        pixels, labels = in_proportion(self.pixels[chosen], self.labels[chosen], seed)
        return pixels[:count], labels[:count]

    def blanks(self, count: int, seed: int, **sampling) -> tuple[torch.Tensor, torch.Tensor]:
        """All black and white images of the file."""
        chosen = self.labels >= images.BLACK
        return self.pixels[chosen], self.labels[chosen]


def in_proportion(pixels: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Shuffle digits so that the first N, for every N, have the class proportions of the training set.

    Otherwise the distance between two sets would also measure random differences between their labels.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = labels[order]
    rank = F.one_hot(chosen).cumsum(0).gather(1, chosen.unsqueeze(1)).squeeze(1)  # of each image within its class
    order = order[((rank - 0.5) / torch.tensor(MNIST_HISTOGRAM)[chosen]).argsort(stable=True)]
    return pixels[order], labels[order]


def read_samples(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels uint8 `[N, 28, 28]` and labels int64 `[N]` of an `.npz`; raises ValueError or OSError, in one sentence."""
    pixels, labels, _ = read_arrays(path)
    if pixels.shape[1:] != (images.SIZE, images.SIZE):
        raise ValueError(f"images must be uint8 [N, 28, 28], not {pixels.dtype} {list(pixels.shape)}")
    outside = labels[(labels < 0) | (labels >= len(images.CLASSES))]
    if outside.size:
        raise ValueError(f"labels must be from 0 to 11, not {outside[0]}")
    digits = int((labels < images.BLACK).sum())
    if digits < MIN_COUNT:
        raise ValueError(f"{digits} digits of the classes 0 to 9 are too few; at least {MIN_COUNT} are needed")
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))
