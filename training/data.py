"""The data set, whole and resident on the device, and the draws of every step.

Everything random is a function of (seed, step): nothing random goes into a checkpoint, and resuming in mid-epoch is free.
"""

import hashlib
from typing import NamedTuple
from urllib.error import URLError

import torch
from torchvision.datasets import KMNIST, MNIST, FashionMNIST

from model.images import BLACK, SIZE, WHITE

DATASETS = {"mnist": MNIST, "fashion": FashionMNIST, "kmnist": KMNIST}


def load(name: str, root: str, train: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels uint8 `[N, 28, 28]` and labels int64 `[N]` of a data set, downloaded by torchvision where it is not in `root`.

    Raises OSError when it is neither there nor to be had.
    """
    try:
        dataset = DATASETS[name](root, train=train, download=True)
    except (RuntimeError, URLError, ConnectionError, TimeoutError):
        folder = f"{root}/{DATASETS[name].__name__}/raw"
        raise OSError(f"the data set {name} is not in {folder} and cannot be downloaded; put its four .gz files there") from None
    return dataset.data, dataset.targets


def with_blanks(pixels: torch.Tensor, labels: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The set with `count` all black and `count` all white images after it, in their own classes."""
    black, white = torch.zeros(count, SIZE, SIZE, dtype=torch.uint8), torch.full((count, SIZE, SIZE), 255, dtype=torch.uint8)
    blank_labels = torch.tensor([BLACK, WHITE]).repeat_interleave(count)
    return torch.cat([pixels, black, white]), torch.cat([labels, blank_labels])


def generator(device: torch.device, *key) -> torch.Generator:
    """A generator that is a function of its key, such as (seed, "noise", step)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest))


class Draw(NamedTuple):
    """All that a step takes from the data set and from chance; every field has the batch first."""

    pixels: torch.Tensor  # uint8 [B, 28, 28]
    labels: torch.Tensor  # int64 [B], the null class where a label was dropped
    noise: torch.Tensor  # [B, 1, 28, 28], standard normal
    normal: torch.Tensor  # [B], standard normal: the time before its logit-normal


class Draws:
    """The draws of a run, by step: each epoch is a fresh permutation, and its last incomplete batch is left out.

    Of several processes each draws the same global batch and takes its own slice, so that their number changes nothing.
    """

    def __init__(self, pixels, labels, batch: int, label_drop: float, null_label: int, seed: int, device: torch.device, rank=0, world=1):
        if batch > len(pixels):
            raise ValueError(f"batch {batch} is larger than the data set of {len(pixels)} images")
        if batch % world:
            raise ValueError(f"batch {batch} is not divisible by the {world} processes")
        self.mine = slice(rank * batch // world, (rank + 1) * batch // world)
        self.pixels, self.labels = pixels.to(device), labels.to(device)
        self.batch, self.label_drop, self.null_label, self.seed, self.device = batch, label_drop, null_label, seed, device
        self.epoch, self.order = None, None

    @property
    def steps_per_epoch(self) -> int:
        return len(self.pixels) // self.batch

    def at(self, step: int) -> Draw:
        """The draw of a step, counted from 0 over the whole run."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            chance = generator(self.device, self.seed, "order", epoch)
            self.epoch, self.order = epoch, torch.randperm(len(self.pixels), generator=chance, device=self.device)
        chosen = self.order[position * self.batch : (position + 1) * self.batch]
        chance = generator(self.device, self.seed, "step", step)
        noise = torch.randn(self.batch, 1, SIZE, SIZE, generator=chance, device=self.device)
        normal = torch.randn(self.batch, generator=chance, device=self.device)
        dropped = torch.rand(self.batch, generator=chance, device=self.device) < self.label_drop
        chosen, noise, normal, dropped = (whole[self.mine] for whole in (chosen, noise, normal, dropped))
        return Draw(self.pixels[chosen], self.labels[chosen].masked_fill(dropped, self.null_label), noise, normal)
