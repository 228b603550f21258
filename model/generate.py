"""Command: labelled digits into a picture or a data set. `python -m model.generate --labels 0-9 --count 100 --out digits.png`"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from model import check, flow, images, weights
from model.command import sentence_on_error
from model.device import pick
from model.dit import DiT
from model.files import replacing

MAX_STEPS, MAX_GUIDANCE, MAX_SEED = 50, 5, 2**31 - 1
MAX_NUMBER = 16  # digits of a number that is written out
MAX_CLASSES = 1000  # characters of a text that names classes
MNIST_HISTOGRAM = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)  # labels of the training set
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHUNK, GPU_CHUNK = 10, 500  # digits at once: on a CPU so few that what a block makes of them stays in the cache


def label(name: str) -> int:
    """The label of a class name; raises ValueError for one that is not there."""
    if not isinstance(name, str) or name not in images.CLASSES:
        raise ValueError(f"class must be one of {', '.join(images.CLASSES)}, not {check.shown(name)}")
    return images.CLASSES.index(name)


def parse_labels(text: str, count: int, seed: int = 0) -> torch.Tensor:
    """`count` labels, int64, from `7`, `0-9`, `3,5,black` (each in turn) or `mnist` (the training histogram, in a random order).

    Raises ValueError for a class that is not there.
    """
    if not isinstance(text, str) or len(text) > MAX_CLASSES:
        raise ValueError(f"classes must be a text such as 0-9 of at most {MAX_CLASSES} characters, not {check.shown(text)}")
    if text == "mnist":
        share = torch.tensor(MNIST_HISTOGRAM, dtype=torch.float64) / sum(MNIST_HISTOGRAM)
        ends = (share.cumsum(0) * count).round().long()  # class k fills the places from the end of the one before it
        labels = torch.bucketize(torch.arange(count), ends, right=True)
        return labels[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]
    chosen = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low, high = label(first), label(last if dash else first)
        if high < low:
            raise ValueError(f"labels {check.shown(part)} run backwards")
        chosen += range(low, high + 1)
    return torch.tensor(chosen).repeat(-(-count // len(chosen)))[:count]


def parse_number(text: str) -> torch.Tensor:
    """The labels of a number, digit by digit; ValueError for what is no number of at most 16 digits."""
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER):
        raise ValueError(f"a number has 1 to {MAX_NUMBER} digits and nothing else, not {check.shown(text)}")
    return torch.tensor([int(character) for character in text])


def settings(seed, steps, guidance, count: int = 1) -> tuple[int, int, float]:
    """The three values of a drawing, checked: ValueError for steps outside 1..50, guidance outside 0..5, or a seed outside
    0..2³¹ − 1, which is also the largest that the last of `count` digits may have."""
    return (
        check.whole("seed", seed, 0, MAX_SEED - count + 1),
        check.whole("steps", steps, 1, MAX_STEPS),
        check.number("guidance", guidance, 0, MAX_GUIDANCE),
    )


def states(network: DiT, labels: torch.Tensor, seeds: Iterable[int], steps: int, guidance: float) -> Iterator[flow.State]:
    """The flow from noise to one digit for each label `[B]`, each from the noise that its seed names."""
    device = next(network.parameters()).device
    times = flow.time_grid(steps, network.time_shift)
    velocity = flow.guided(network.along(times[:-1]), labels.to(device), network.null_label, guidance)
    return flow.sample(velocity, flow.noise(seeds).to(device), times)


def draw(network: DiT, labels: torch.Tensor, seed: int, steps: int, guidance: float) -> Iterator[torch.Tensor]:
    """One digit for each label `[N]`, in chunks of uint8 `[·, 28, 28]` on the CPU; digit i has the noise of `seed` + i."""
    for begin in range(0, len(labels), size := CHUNK if network.rotary.is_cpu else GPU_CHUNK):
        chunk = labels[begin : begin + size]
        *_, last = states(network, chunk, range(seed + begin, seed + begin + len(chunk)), steps, guidance)
        yield images.to_pixels(last.x, network.pixel_mean, network.pixel_std).cpu()


def save(file: Path | BinaryIO, kind: str, pixels: torch.Tensor, labels: torch.Tensor, columns: int) -> None:
    """Write a sheet (`png`) or a labelled data set (`npz`: `images` uint8 `[n, 28, 28]`, `labels` int64 `[n]`)."""
    if kind == "npz":
        np.savez_compressed(file, images=pixels.numpy(), labels=labels.numpy())
    else:
        images.sheet(pixels, columns).save(file, "png")


def columns(count: int) -> int:
    """Of a sheet: ten, so that the digits in turn stand in columns, or a multiple of ten for a large one."""
    return min(count, 10 * max(1, round((count / 100) ** 0.5)))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model.generate", description=__doc__.splitlines()[0])
    parser.add_argument("--labels", default="0-9", help="7, 0-9, 3,5,black, or mnist for the training histogram (default 0-9)")
    parser.add_argument("--count", type=int, default=100, help="digits in all (default 100)")
    parser.add_argument("--steps", type=int, default=20, help="steps of the sampler, 1 to 50 (default 20)")
    parser.add_argument("--guidance", type=float, help="guidance scale, 0 to 5 (default: the one of the weights)")
    parser.add_argument("--seed", type=int, default=0, help="the noise of the first digit; the next has the next seed (default 0)")
    parser.add_argument("--out", type=Path, default=Path("digits.png"), help="a .png sheet or a .npz data set (default digits.png)")
    parser.add_argument("--weights", help="a folder or USER/NAME[@revision] (default: the variable WEIGHTS, else the bundled ones)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument("--dtype", choices=DTYPES, help="what the network computes in (default: bfloat16 where there is hardware for it)")
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        if options.out.suffix not in (".png", ".npz"):
            raise ValueError(f"--out must end in .png or .npz, not {options.out}")
        count = check.whole("count", options.count, 1, 1_000_000)
        labels = parse_labels(options.labels, count, options.seed)
        given = 1.0 if options.guidance is None else options.guidance
        seed, steps, guidance = settings(options.seed, options.steps, given, count)
        loaded = weights.load(options.weights, pick(options.device), DTYPES.get(options.dtype))
        if options.guidance is None:
            guidance = loaded.network.default_guidance
        with replacing(options.out) as new:
            new.touch()  # a folder that cannot be written is known before the work
            chunks, bar = [], tqdm(total=count, unit="digit", dynamic_ncols=True)
            for chunk in draw(loaded.network, labels, seed, steps, guidance):
                chunks.append(chunk)
                bar.update(len(chunk))
            bar.close()
            save(new, options.out.suffix[1:], torch.cat(chunks), labels, columns(count))
    print(f"{options.out}: {count} digits, {steps} steps, guidance {guidance:g}, weights {loaded.source}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
