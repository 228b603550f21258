"""What is measured: digits that weights draw, or a file of digits that somebody else drew."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from model import flow, images, weights
from model.generate import MNIST_HISTOGRAM, draw, parse_labels

FEWEST = 256  # fewer digits than twice the features measure nothing


class FromWeights:
    """Weights: as many digits as the training set has, and from each setting others."""

    def __init__(self, where: str | None, device: torch.device):
        where = where or os.environ.get("WEIGHTS") or str(weights.BUNDLED)
        self.folder = Path(where) if Path(where).is_dir() else None
        loaded = weights.load(where, device)
        kept = loaded.metrics.get("sha256", {}).get(weights.TENSORS)  # compared with the file as it was loaded
        self.sha256 = kept or weights.sha256((self.folder or weights.download(where)[0]) / weights.TENSORS)
        self.network, self.name, self.sampler = loaded.network, loaded.source, flow.SAMPLER
        self.available, self.guidance = sum(MNIST_HISTOGRAM), loaded.network.default_guidance
        self.time_shift = loaded.network.time_shift
        self.metrics = {key: loaded.metrics[key] for key in ("training", "sha256") if key in loaded.metrics}
        taught = loaded.metrics.get("training", {}).get("data", "mnist")
        if taught != "mnist":
            raise ValueError(f"{where} was trained on {taught}, and everything here is compared with MNIST")

    def digits(self, count: int, steps: int, guidance: float, time_shift: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` digits uint8 `[count, 28, 28]` and their labels, in the proportions of the training set."""
        labels = parse_labels("mnist", count, seed)
        return self.draw(labels, steps, guidance, time_shift, seed), labels

    def blanks(self, count: int, steps: int, guidance: float, time_shift: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` black and as many white images, and their labels; none where the network knows no such classes."""
        labels = torch.tensor([images.BLACK, images.WHITE]).repeat(count if self.network.null_label > images.WHITE else 0)
        return self.draw(labels, steps, guidance, time_shift, seed), labels

    def draw(self, labels: torch.Tensor, steps: int, guidance: float, time_shift: float, seed: int) -> torch.Tensor:
        self.network.time_shift = time_shift
        chunks = [torch.empty(0, images.SIZE, images.SIZE, dtype=torch.uint8)]
        with tqdm(total=len(labels), desc=f"drawing, {steps} steps, guidance {guidance:g}", unit="digit", dynamic_ncols=True) as bar:
            for chunk in draw(self.network, labels, seed, steps, guidance):
                chunks.append(chunk)
                bar.update(len(chunk))
        return torch.cat(chunks)


class FromFile:
    """Digits that somebody else drew, from an `.npz` of `images` and `labels`; how they were drawn is not known here."""

    def __init__(self, path: Path):
        self.pixels, self.labels = read_samples(path)
        self.folder, self.name, self.sha256, self.metrics = path.parent, path.name, weights.sha256(path), {}
        self.available = int((self.labels < images.BLACK).sum())
        self.guidance = self.time_shift = self.sampler = None

    def digits(self, count: int, steps: None, guidance: None, time_shift: None, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` of the digits, in the proportions of the training set as far as the file has them."""
        of_digits = self.labels < images.BLACK
        pixels, labels = in_proportion(self.pixels[of_digits], self.labels[of_digits], seed)
        return pixels[:count], labels[:count]

    def blanks(self, count: int, steps: None, guidance: None, time_shift: None, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All black and white images of the file."""
        chosen = self.labels >= images.BLACK
        return self.pixels[chosen], self.labels[chosen]


def in_proportion(pixels: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits in a random order whose first N, for every N, have labels in the proportions of the training set, while all classes last.

    By chance alone they would differ, and a distance would say more of that than of the digits.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = labels[order]
    rank = F.one_hot(chosen).cumsum(0).gather(1, chosen.unsqueeze(1)).squeeze(1)  # of each image among those of its class
    order = order[((rank - 0.5) / torch.tensor(MNIST_HISTOGRAM)[chosen]).argsort(stable=True)]
    return pixels[order], labels[order]


def read_samples(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels uint8 `[N, 28, 28]` and labels int64 `[N]` of an `.npz`; raises ValueError or OSError, in one sentence."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            pixels, labels = archive["images"], archive["labels"]
    except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{path} is no .npz that holds images and labels") from None
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (images.SIZE, images.SIZE):
        raise ValueError(f"images must be uint8 [N, 28, 28], not {pixels.dtype} {list(pixels.shape)}")
    if labels.dtype.kind not in "iu" or labels.shape != pixels.shape[:1]:
        raise ValueError(f"labels must be whole numbers [{len(pixels)}], one an image, not {labels.dtype} {list(labels.shape)}")
    outside = labels[(labels < 0) | (labels >= len(images.CLASSES))]
    if outside.size:
        raise ValueError(f"labels must lie in 0..11, not {outside[0]}")
    digits = int((labels < images.BLACK).sum())
    if digits < FEWEST:
        raise ValueError(f"{digits} digits of the classes 0 to 9 are too few; the figures need {FEWEST}")
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))
