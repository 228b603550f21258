"""Paths through a plane of real digits, for the tab "Why it works"."""

import base64
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from model import images
from model.dit import DiT
from model.sampling import SamplingConfig, Turn, states

PLANES = Path(__file__).parent / "page" / "plane.json"  # written by `python -m training.measure.plane`
PATH_STEPS = (1, 4, 20)


@dataclass(frozen=True)
class Plane:
    """A plane in image space, and the positions of some real digits of its class in it."""

    axes: torch.Tensor  # [2, 784], orthonormal
    dots: list[list[float]]  # [x, y] of each real digit

    def project(self, pixels: torch.Tensor) -> torch.Tensor:
        """The positions `[..., 2]` of images, float `[..., 28, 28]`, 0 black, 1 white; mid-grey is the origin.

        Values beyond black and white, as in noise, are not clipped.
        """
        return (pixels.float().cpu().flatten(-2) - 0.5) @ self.axes.T


def read_planes() -> dict[str, Plane]:
    """The plane of each digit, by the name of its class."""
    record = json.loads(PLANES.read_text(encoding="utf-8"))
    return {name: Plane(unpacked(plane["axes"]), plane["dots"]) for name, plane in record.items()}


def unpacked(axes: str) -> torch.Tensor:
    """Two axes float32 `[2, 784]` from base64 of float16."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(axes), "<f2").astype(np.float32)).view(2, -1)


def paths(
    network: DiT,
    teacher: DiT | None,
    label: int,
    seeds: Sequence[int],
    sampling: SamplingConfig,
    plane: Plane,
    turn: Turn = nullcontext,
) -> dict:
    """One path per seed through a plane, for each of `PATH_STEPS`: the data of `<digit-paths>`.

    Where `network` is a flow map with its `teacher`, the paths are the teacher's, and the last run is one jump of the
    map. A run has the `kind` of its network; its `steps`; `path` `[steps + 1, N, 2]`, the positions of x_t; `aims`
    `[steps, N, 2]`, those of the images predicted there; and `pixels`, the final digits `[N, 28, 28]`.
    """
    walker = teacher or network
    drawn = [(walker, steps) for steps in PATH_STEPS] + [(network, 1)] * (teacher is not None)

    def project(x: torch.Tensor) -> list:
        where = plane.project(x.squeeze(1) * network.pixel_std + network.pixel_mean)
        return [[round(value, 3) for value in point] for point in where.tolist()]

    runs = []
    for one, steps in drawn:
        labels = torch.full((len(seeds),), label)
        *before, last = states(one, labels, seeds, replace(sampling, steps=steps), turn, film=True)
        runs.append(
            {
                "kind": one.kind,
                "steps": steps,
                "path": [project(state.x) for state in (*before, last)],
                "aims": [project(state.image) for state in before],
                "pixels": packed(images.to_pixels(last.x, network.pixel_mean, network.pixel_std)),
            }
        )
    shown = {"digits": [network.class_names[label]], "seeds": list(seeds), **asdict(sampling), "kind": walker.kind}
    return {**shown, "dots": plane.dots, "runs": runs}


def packed(pixels: torch.Tensor) -> str:
    """Images uint8 of any shape as base64."""
    return base64.b64encode(pixels.cpu().numpy().tobytes()).decode()
