"""Rectified flow: noise, time grid, guidance and samplers. The time convention, defined only here:

    t = 1 is noise, t = 0 is the image
    path      x_t = t·noise + (1 − t)·image
    velocity  v   = dx_t/dt = noise − image
    step      x ← x + (t_next − t)·v

Liu et al., "Flow Straight and Fast" (arXiv 2209.03003); the shift and the logit-normal are those of
Esser et al., "Scaling Rectified Flow Transformers" (arXiv 2403.03206, §3.1 and §5.3.2).

The sampler replaces v in the step by a second-order multistep estimate (AB2), still with one network call per step. A
flow map predicts the average velocity of the whole step and needs no such estimate.

A *velocity* is any callable `(x, t, t_next) → v` with `x` and `v` float `[B, 1, 28, 28]`, `t` and `t_next` numbers in
[0, 1].
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch

from model.images import SIZE

SAMPLER = "Adams–Bashforth 2 with Euler's last step"  # recorded with every measurement
Velocity = Callable[[torch.Tensor, float, float], torch.Tensor]
Labels = Callable[[float], torch.Tensor]  # t → [B]


class State(NamedTuple):
    """The sampler's state at one time; all tensors are `[B, 1, 28, 28]`."""

    t: float
    x: torch.Tensor
    v: torch.Tensor | None  # the velocity; None for the final image, and for a flow map outside a film
    image: torch.Tensor | None  # the predicted image: x − t·v, or a flow map's jump to t = 0


def path(image: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t on the line from `image` to `noise`, and the velocity there; `t` is `[B]`, the rest `[B, 1, H, W]`."""
    t = t.view(-1, 1, 1, 1)
    return t * noise + (1 - t) * image, noise - image


def shifted(t, shift: float):
    """SD3's timestep shift, towards the noise for s > 1, of a number or a tensor: s·t / (1 + (s − 1)·t)."""
    return shift * t / (1 + (shift - 1) * t)


def logit_normal(normal: torch.Tensor, shift: float) -> torch.Tensor:
    """Training times from standard normal draws of any shape: their sigmoid, shifted."""
    return shifted(torch.sigmoid(normal), shift)


def time_grid(steps: int, shift: float, start: float = 1.0) -> list[float]:
    """`steps` + 1 times from 1 to 0: equal steps, then shifted.

    From a later `start` there are at most as many, equal before the shift and no larger than in the full grid; from 0
    there are none.
    Raises ValueError for fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    before_shift = start / (shift + (1 - shift) * start)  # the inverse of `shifted`
    steps = math.ceil(before_shift * steps - 1e-9)  # no extra step if `start` is a time of the full grid
    return [start] + [shifted(before_shift * (1 - i / steps), shift) for i in range(1, steps + 1)]


def noise(seeds: Iterable[int]) -> torch.Tensor:
    """Standard normal noise, one image per seed: float32 `[len(seeds), 1, 28, 28]`, on the CPU.

    Each image has its own generator, so a seed gives the same noise whatever the batch or the device.
    """
    generator = torch.Generator()
    return torch.stack([torch.randn(1, SIZE, SIZE, generator=generator.manual_seed(seed)) for seed in seeds])


def slerp(a: torch.Tensor, b: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation between two images `[1, 1, H, W]`, at weights `w` `[N]` from 0 (`a`) to 1 (`b`): `[N, 1,
    H, W]`.

    Normal noise in many dimensions lies close to a sphere. The chord between two points on it runs through the inside,
    which the network has never seen; the arc stays on the sphere (Shoemake, "Animating Rotation with Quaternion
    Curves", SIGGRAPH 1985; for latents, White, arXiv 1609.04468).
    """
    w = w.view(-1, 1, 1, 1)
    angle = torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1).acos()
    if angle < 1e-3:  # sin(angle) is too close to 0; the arc is nearly its chord
        return torch.lerp(a, b, w)
    return ((1 - w) * angle).sin() / angle.sin() * a + (w * angle).sin() / angle.sin() * b


def switched(before: torch.Tensor, after: torch.Tensor, at: torch.Tensor) -> Labels:
    """Labels for `guided` that change during sampling: label i is `before[i]` while t > `at[i]`, then `after[i]`.

    The first step that starts at t ≤ `at[i]` uses the new label: with 1 every step does, with 0 none. AB2 extrapolates
    across the change once, which has the effect of a change half a step earlier.
    """
    return lambda t: torch.where(t <= at, after, before)


def guided(network: Callable, labels: torch.Tensor | Labels, null_label: int, scale: float) -> Velocity:
    """The velocity of a network `(x, t, labels) → v` under classifier-free guidance (Ho & Salimans, arXiv 2207.12598,
    eq. 6).

    `labels` is `[B]`, or a function of t that returns them. Scale 1 is plain conditional and 0 unconditional, one
    forward each; anything else is one forward of twice the batch.
    """

    def velocity(x: torch.Tensor, t: float, t_next: float) -> torch.Tensor:
        real = labels(t) if callable(labels) else labels
        null = torch.full_like(real, null_label)
        if scale in (0, 1):
            return network(x, t, real if scale else null)
        plain, conditional = network(torch.cat([x, x]), t, torch.cat([null, real])).chunk(2)
        return torch.lerp(plain, conditional, scale)

    return velocity


@torch.inference_mode()
def sample(velocity: Velocity, x: torch.Tensor, times: Iterable[float]) -> Iterator[State]:
    """Second-order Adams–Bashforth (AB2) along `times`: yields the state before each update, and the image last.

    A step uses v + (v − v_before) · step / (2 · step_before): the slope between the last two velocities, no extra
    network call. The first step, which has no predecessor, and the last, which should land on the predicted image, are
    Euler steps. The error is O(step²) where Euler's is O(step) (Hairer, Nørsett & Wanner, Solving Ordinary Differential
    Equations I, §III.5; for diffusion models, Zhang & Chen, arXiv 2204.13902).
    """
    v_before = t_before = None
    for t, t_next in pairwise(times):
        v = slope = velocity(x, t, t_next)
        yield State(t, x, v, x - t * v)
        if t_before is not None and t_next > 0:
            slope = v + (v - v_before) * (t_next - t) / (2 * (t - t_before))
        x = x + (t_next - t) * slope
        v_before, t_before = v, t
    yield State(0.0, x, None, x)


@torch.inference_mode()
def jump(average: Velocity, x: torch.Tensor, times: Iterable[float], film: bool = False) -> Iterator[State]:
    """Jump along `times` with a flow map: yields the state before each jump, and the image last.

    `average` is `(x, t, s) → u`, the average velocity from t to s ≤ t, and at s = t the velocity itself. The velocity
    and the predicted image of a state, u(x, t, t) and x − t·u(x, t, 0), are computed only for a `film`. Raises
    ValueError for increasing times.
    """
    for t, s in pairwise(times):
        if s > t:
            raise ValueError(f"a flow map jumps to an earlier time, not from {t:g} to {s:g}")
        u = average(x, t, s)
        v = average(x, t, t) if film else None
        image = x - t * (u if s == 0 else average(x, t, 0.0)) if film else None
        yield State(t, x, v, image)
        x = x + (s - t) * u
    yield State(0.0, x, None, x)
