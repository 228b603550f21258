"""One digit and the film of its making: what the page shows."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from model import images
from model.dit import DiT
from model.generate import states


@dataclass(frozen=True)
class Film:
    """The states of one drawing, from noise to image; pictures are uint8 `[steps + 1, 28, 28]`."""

    times: list[float]
    noisy: torch.Tensor  # x_t
    predicted: torch.Tensor  # x_t − t·v, the image that the network sees in it
    velocity: torch.Tensor  # v, grey where nothing moves; one fewer: the image itself has none
    milliseconds: float

    @property
    def digit(self) -> torch.Tensor:
        """The finished image, uint8 `[28, 28]`."""
        return self.noisy[-1]

    def frames(self, count: int) -> list[int]:
        """At most `count` indices of states, evenly spread, first and last among them."""
        last = len(self.times) - 1
        count = min(count, last + 1)
        return [round(i * last / (count - 1)) for i in range(count)]


def shoot(network: DiT, label: int, seed: int, steps: int, guidance: float) -> Film:
    """Draw one digit and keep every state; the arguments as in `generate.states`."""
    started = time.perf_counter()
    path = list(states(network, torch.tensor([label]), [seed], steps, guidance))
    noisy = torch.cat([state.x for state in path])
    velocity = torch.cat([state.v for state in path[:-1]])
    t = torch.tensor([state.t for state in path[:-1]], device=noisy.device).view(-1, 1, 1, 1)
    predicted = torch.cat([noisy[:-1] - t * velocity, noisy[-1:]])
    pixels = [images.to_pixels(x, network.pixel_mean, network.pixel_std).cpu() for x in (noisy, predicted)]
    moving = images.to_pixels(velocity, 0.5, 1 / 6).cpu()  # ±3 standard deviations from black to white
    return Film([state.t for state in path], *pixels, moving, 1000 * (time.perf_counter() - started))


def filmed(*arguments) -> Iterator[Film]:
    """`shoot` as a generator, which all that the page draws with is."""
    yield shoot(*arguments)


STEP_COUNTS = (1, 2, 4, 8, 16, 32)


def compare(network: DiT, labels: torch.Tensor, seed: int, guidance: float) -> Iterator[tuple[int, torch.Tensor, float]]:
    """The same noise for every label `[B]`, at each of `STEP_COUNTS`: yields steps, pixels uint8 `[B, 28, 28]`, milliseconds."""
    for steps in STEP_COUNTS:
        started = time.perf_counter()
        *_, last = states(network, labels, [seed] * len(labels), steps, guidance)
        pixels = images.to_pixels(last.x, network.pixel_mean, network.pixel_std).cpu()
        yield steps, pixels, 1000 * (time.perf_counter() - started)
