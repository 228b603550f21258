"""Command: compute the plane per digit in which the page shows paths from noise. `python -m training.measure.plane`

The plane is chosen to show a path best: its first axis leads from mid-grey, the centre of the noise, to the mean digit
of the class, and its second is the first principal component of the residual, along which the digits of the class
differ most. The first two principal components of the digits would hide the path itself.
"""

import argparse
import base64
import json
import sys

import torch

from model.common import add_shared, replacing, sentence_on_error
from model.images import CLASSES
from model.scenes import PLANES, Plane
from training.data import load

DOTS = 250  # real digits shown per class


def axes(pixels: torch.Tensor) -> torch.Tensor:
    """Two orthonormal axes `[2, 784]` for images uint8 `[N, 28, 28]`; digits that lean to the right lie higher."""
    x = pixels.flatten(1).double() / 255 - 0.5
    first = x.mean(0) / x.mean(0).norm()
    x = x - x.mean(0)
    x = x - torch.outer(x @ first, first)
    second = torch.linalg.eigh(x.T @ x).eigenvectors[:, -1]
    place = torch.linspace(-1, 1, pixels.shape[-1], dtype=torch.float64)
    if second @ torch.outer(-place, place).flatten() < 0:  # the sign of an eigenvector is arbitrary
        second = -second
    return torch.stack([first, second]).float()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.measure.plane", description=__doc__.splitlines()[0])
    add_shared(parser, "--data-root")
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        pixels, labels = load("mnist", options.data_root)
        record = {}
        for label, name in enumerate(CLASSES[:10]):
            digits = pixels[labels == label]
            halves = axes(digits).half()
            dots = Plane(halves.float(), []).project(digits[:DOTS].float() / 255)
            packed = base64.b64encode(halves.numpy().astype("<f2").tobytes()).decode()
            record[name] = {"axes": packed, "dots": [[round(value, 2) for value in dot] for dot in dots.tolist()]}
        with replacing(PLANES) as new:
            new.write_text(json.dumps(record).replace("}, ", "},\n") + "\n", encoding="utf-8")
    print(f"{PLANES}: {len(record)} planes, {PLANES.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
