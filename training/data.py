"""The data set, resident on the device, and the batch of every step.

All randomness is a function of (seed, step), so checkpoints need no random state and a run resumes exactly in
mid-epoch.
"""

import hashlib
import math
import struct
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import torch
from torchvision.datasets import KMNIST, MNIST, FashionMNIST

from model.images import BLACK, CLASSES, SIZE, WHITE
from training import own_images

DATASETS = {"mnist": MNIST, "fashion": FashionMNIST, "kmnist": KMNIST}
NAMES = {  # of their ten classes
    "mnist": CLASSES[:BLACK],
    "fashion": ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}


def training_set(name: str, root: str, blanks: int) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Pixels, labels and class names.

    A built-in set gets `blanks` all-black and as many all-white images; custom images, at the path `name`, get none.
    Raises OSError or ValueError, in one sentence, for missing, damaged or unsupported data.
    """
    if name in DATASETS:
        return *with_blanks(*load(name, root), blanks), (*NAMES[name], *CLASSES[BLACK:])
    return own_images.read(Path(name))


def load(name: str, root: str, train: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels uint8 `[N, 28, 28]` and labels int64 `[N]`, 0 to 9, of a data set, downloaded into `root` if necessary.

    Raises OSError if it is missing and cannot be downloaded, ValueError if its files are damaged or hold other images.
    """
    raw = Path(root) / DATASETS[name].__name__ / "raw"
    files = [raw / f"{'train' if train else 't10k'}-{part}-ubyte" for part in ("images-idx3", "labels-idx1")]
    for path, dimensions in zip(files, (3, 1), strict=True):
        if path.is_file():
            check_whole(path, dimensions)
    try:
        dataset = DATASETS[name](root, train=train, download=True)
    except (RuntimeError, URLError, ConnectionError, TimeoutError):
        raise OSError(
            f"the data set {name} is not in {raw} and cannot be downloaded; put its four .gz files there"
        ) from None
    pixels, labels = dataset.data, dataset.targets
    if pixels.shape != (len(labels), SIZE, SIZE) or labels.max() >= BLACK:
        raise ValueError(
            f"{files[0]} and {files[1].name} are not {name}, which has images of {SIZE} × {SIZE} pixels "
            "and a label from 0 to 9 for each"
        )
    return pixels, labels


def check_whole(path: Path, dimensions: int) -> None:
    """Raise ValueError unless an IDX file of bytes is as long as its header says (torchvision does not check)."""
    with open(path, "rb") as file:
        header = file.read(4 + 4 * dimensions)
    shape = struct.unpack(f">{dimensions}I", header[4:].ljust(4 * dimensions, b"\xff"))
    length = len(header) + math.prod(shape)
    if header[:4] != bytes([0, 0, 8, dimensions]) or not math.prod(shape) or path.stat().st_size != length:
        raise ValueError(f"{path} is truncated or damaged; delete it, and it will be extracted or downloaded again")


def with_blanks(pixels: torch.Tensor, labels: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The set with `count` all-black and `count` all-white images appended, in classes of their own."""
    black = torch.zeros(count, SIZE, SIZE, dtype=torch.uint8)
    blank_labels = torch.tensor([BLACK, WHITE]).repeat_interleave(count)
    return torch.cat([pixels, black, ~black]), torch.cat([labels, blank_labels])


def fingerprint(pixels: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...]) -> str:
    """The sha256 of a training set."""
    digest = hashlib.sha256(repr(names).encode())
    for tensor in (pixels, labels):
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()


def seeded(device: torch.device, *key) -> torch.Generator:
    """A generator seeded by a hash of its key, such as (seed, "step", step)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest))


class Batch(NamedTuple):
    """The random input of one step, batch dimension first."""

    pixels: torch.Tensor  # uint8 [B, 28, 28]
    labels: torch.Tensor  # int64 [B], some replaced by the null class
    noise: torch.Tensor  # [B, 1, 28, 28], standard normal
    normal: torch.Tensor  # [B], standard normal: the logit of the time, before the shift


class Batches:
    """The batches of a run, by step: each epoch is a new permutation, and its last incomplete batch is dropped.

    All processes draw the same global batch and take their own slice, so the result does not depend on their number.
    Raises ValueError if `batch` is larger than the data set or not divisible by `world`.
    """

    def __init__(
        self,
        pixels,
        labels,
        batch: int,
        label_drop: float,
        null_label: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ):
        if batch > len(pixels):
            raise ValueError(f"batch {batch} is larger than the data set of {len(pixels)} images")
        if batch % world:
            raise ValueError(f"batch {batch} is not divisible by the {world} processes")
        self.local_slice = slice(rank * batch // world, (rank + 1) * batch // world)
        self.pixels, self.labels = pixels.to(device), labels.to(device)
        self.batch, self.label_drop, self.null_label = batch, label_drop, null_label
        self.seed, self.device = seed, device
        self.epoch, self.order = None, None

    @property
    def steps_per_epoch(self) -> int:
        return len(self.pixels) // self.batch

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over the whole run."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            generator = seeded(self.device, self.seed, "order", epoch)
            self.epoch, self.order = epoch, torch.randperm(len(self.pixels), generator=generator, device=self.device)
        chosen = self.order[position * self.batch : (position + 1) * self.batch]
        generator = seeded(self.device, self.seed, "step", step)
        noise = torch.randn(self.batch, 1, SIZE, SIZE, generator=generator, device=self.device)
        normal = torch.randn(self.batch, generator=generator, device=self.device)
        dropped = torch.rand(self.batch, generator=generator, device=self.device) < self.label_drop
        chosen, noise, normal, dropped = (whole[self.local_slice] for whole in (chosen, noise, normal, dropped))
        return Batch(self.pixels[chosen], self.labels[chosen].masked_fill(dropped, self.null_label), noise, normal)
