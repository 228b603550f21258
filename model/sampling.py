"""From labels and seeds to digits: sampling settings, batches of digits, and films with all states of the sampler.

All drawing functions take a `turn`: a function that returns a context manager, which is entered for each network call
and exited between steps. Drawings that share a lock take turns this way; an exception raised by `turn` ends the drawing
at that step.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace

import torch

from model import check, flow, images
from model.dit import DiT

MAX_STEPS, MAX_GUIDANCE, MAX_SEED = 50, 5, 2**31 - 1
MAX_NUMBER = 16  # digits of a number to write
MAX_CLASSES_TEXT = 1000  # characters of a list of classes
MNIST_HISTOGRAM = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)  # label counts of the training set
STEP_COUNTS = (1, 2, 4, 8, 16, 32)  # in the comparison of steps
Turn = Callable[[], AbstractContextManager]
CPU_BATCH, GPU_BATCH = 10, 500  # on a CPU, so few that a block's activations stay in cache


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling settings: `steps` of the sampler (1 to 50), `guidance` scale (0 to 5), `time_shift` of the time grid.

    The defaults of a set of weights are in its `sampling.json`. Raises ValueError for a value out of range.
    """

    steps: int = 20
    guidance: float = 1.0
    time_shift: float = 1.63206

    def __post_init__(self):
        object.__setattr__(self, "steps", check.whole("steps", self.steps, 1, MAX_STEPS))
        object.__setattr__(self, "guidance", check.number("guidance", self.guidance, 0, MAX_GUIDANCE))
        object.__setattr__(self, "time_shift", check.number("time_shift", self.time_shift, 1e-3, 1e3))

    def updated(self, **asked) -> "SamplingConfig":
        """A copy with these fields replaced, except those that are None."""
        return replace(self, **{name: value for name, value in asked.items() if value is not None})

    def for_network(self, network: DiT) -> "SamplingConfig":
        """A copy with the guidance that the network will use; every drawing starts from one."""
        return replace(self, guidance=network.nearest_guidance(self.guidance))

    def note(self, asked: float | None) -> str:
        """A sentence for the user if the requested guidance `asked` is not the one used, else ""."""
        if asked is None or asked == self.guidance:
            return ""
        used = f"{self.guidance:g}"
        return f"Drawn at guidance {used}: this network does not support values between 0 and {used}."

    def recipe(self, digits: str, seed: int) -> str:
        """The digits of a picture and their settings, for the comment in its file."""
        return f"{digits}: {', '.join(f'{name} {value}' for name, value in {'seed': seed, **asdict(self)}.items())}"


def check_seed(seed, count: int = 1) -> int:
    """The seed of the first of `count` digits; raises ValueError if the last one's would exceed 2³¹ − 1."""
    return check.whole("seed", seed, 0, MAX_SEED - count + 1)


def label(name: str, names: Sequence[str] = images.CLASSES) -> int:
    """The label of a class: its index in `names`, which is also accepted as a name if no name is a number.

    Raises ValueError for an unknown class.
    """
    if isinstance(name, str) and name in names:
        return names.index(name)
    places = () if any(map(str.isdecimal, names)) else tuple(map(str, range(len(names))))
    if isinstance(name, str) and name in places:
        return places.index(name)
    known = f"{', '.join(names[:20])}{', …' * (len(names) > 20)}"
    raise ValueError(f"class must be one of {known}, not {check.shown(name)}")


def parse_labels(text: str, count: int, seed: int = 0, names: Sequence[str] = images.CLASSES) -> torch.Tensor:
    """`count` labels, int64, of the classes `names`: from `7`, `0-9`, `3,5,black` (in turn) or, for MNIST's classes,
    `mnist` (the training histogram, in random order).

    Raises ValueError for an unknown class.
    """
    if not isinstance(text, str) or len(text) > MAX_CLASSES_TEXT:
        raise ValueError(
            f"classes must be a string such as 0-9 of at most {MAX_CLASSES_TEXT} characters, not {check.shown(text)}"
        )
    if text == "mnist" and tuple(names[:10]) == images.CLASSES[:10]:
        share = torch.tensor(MNIST_HISTOGRAM, dtype=torch.float64) / sum(MNIST_HISTOGRAM)
        ends = (share.cumsum(0) * count).round().long()  # class k fills the places up to ends[k]
        labels = torch.bucketize(torch.arange(count), ends, right=True)
        return labels[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]
    chosen = []
    for part in text.split(","):
        part = part.strip()
        first, dash, last = (part, "", "") if part in names else part.partition("-")
        low, high = label(first, names), label(last if dash else first, names)
        if high < low:
            raise ValueError(f"classes must go from low to high, not {check.shown(part)}")
        chosen += range(low, high + 1)
    return torch.tensor(chosen).repeat(-(-count // len(chosen)))[:count]


def parse_number(text: str) -> torch.Tensor:
    """The labels of a number, digit by digit; raises ValueError unless it has 1 to 16 digits."""
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER):
        raise ValueError(f"number must be 1 to {MAX_NUMBER} digits, not {check.shown(text)}")
    return torch.tensor([int(character) for character in text])


def states(
    network: DiT,
    labels: torch.Tensor,
    seeds: Iterable[int],
    sampling: SamplingConfig,
    turn: Turn = nullcontext,
    film: bool = False,
) -> Iterator[flow.State]:
    """The sampler's states from noise to digits, for labels `[B]` and one seed per label; see `states_from`."""
    return states_from(network, flow.noise(seeds), labels, sampling, turn, film=film)


def states_from(
    network: DiT,
    x: torch.Tensor,
    labels: torch.Tensor | flow.Labels,
    sampling: SamplingConfig,
    turn: Turn,
    start: float = 1.0,
    film: bool = False,
) -> Iterator[flow.State]:
    """The sampler's states from `x` `[B, 1, 28, 28]` at time `start` to digits, for labels `[B]` or a function of t.

    Every state of a `film` has its velocity and its predicted image.
    """
    device = next(network.parameters()).device
    times = flow.time_grid(sampling.steps, sampling.time_shift, start)
    labels = labels if callable(labels) else labels.to(device)
    return network.states(x.to(device), labels, times, sampling.guidance, turn, film)


def draw(
    network: DiT, labels: torch.Tensor, seed: int, sampling: SamplingConfig, turn: Turn = nullcontext
) -> Iterator[torch.Tensor]:
    """One digit per label `[N]`, in batches of uint8 `[·, 28, 28]` on the CPU; digit i uses the noise of `seed` + i."""
    for begin in range(0, len(labels), size := CPU_BATCH if network.rotary.is_cpu else GPU_BATCH):
        batch = labels[begin : begin + size]
        *_, last = states(network, batch, range(seed + begin, seed + begin + len(batch)), sampling, turn)
        yield images.to_pixels(last.x, network.pixel_mean, network.pixel_std).cpu()


@dataclass(frozen=True)
class Film:
    """The states of N digits drawn together, from noise to images; pictures are uint8 `[steps + 1, N, 28, 28]`."""

    times: list[float]
    noisy: torch.Tensor  # x_t
    predicted: torch.Tensor | None  # the image predicted at t; None from a flow map without `film`
    velocity: torch.Tensor | None  # v, mid-grey is 0; uint8 [steps, N, 28, 28]
    kind: str  # of the network that drew it

    @property
    def digits(self) -> torch.Tensor:
        """The finished images, uint8 `[N, 28, 28]`."""
        return self.noisy[-1]

    def frames(self, count: int) -> list[int]:
        """At most `count` evenly spaced indices of states, the first and the last included."""
        last = len(self.times) - 1
        count = min(count, last + 1)
        return [round(i * last / max(count - 1, 1)) for i in range(count)]


def draw_film(
    network: DiT, labels: torch.Tensor, seeds: Iterable[int], sampling: SamplingConfig, turn: Turn = nullcontext
) -> Film:
    """Draw labels `[N]`, each from the noise of its seed, in one batch, and keep every state."""
    return film(network, states(network, labels, seeds, sampling, turn, film=True))


def draw_row(
    network: DiT, labels: torch.Tensor, seeds: Iterable[int], sampling: SamplingConfig, turn: Turn = nullcontext
) -> Film:
    """Like `draw_film`, for digits shown without predicted images, which cost a flow map more work."""
    return film(network, states(network, labels, seeds, sampling, turn))


def change_class(
    network: DiT,
    label: int,
    other: int,
    seed: int,
    sampling: SamplingConfig,
    at: Sequence[float],
    turn: Turn = nullcontext,
) -> Film:
    """One digit per time in `at`, all from the same noise: each starts as class `label` and switches to `other` at the
    first time of the sampler that is not above its own.

    Raises ValueError for a time outside [0, 1].
    """
    device = next(network.parameters()).device
    at = torch.tensor([check.number("switch time", t, 0, 1) for t in at], device=device)
    before, after = (torch.full((len(at),), value, device=device) for value in (label, other))
    noise = flow.noise([seed]).expand(len(at), -1, -1, -1)
    return film(network, states_from(network, noise, flow.switched(before, after, at), sampling, turn))


def morph(
    network: DiT,
    label: int,
    seed: int,
    other_seed: int,
    count: int,
    sampling: SamplingConfig,
    turn: Turn = nullcontext,
) -> Film:
    """`count` digits of one class, from the noise of one seed to that of another in equal angles."""
    noise = flow.slerp(*flow.noise([seed, other_seed]).split(1), torch.linspace(0, 1, count))
    return film(network, states_from(network, noise, torch.full((count,), label), sampling, turn))


def finish(
    network: DiT,
    pixels: torch.Tensor,
    label: int,
    seed: int,
    t: float,
    sampling: SamplingConfig,
    turn: Turn = nullcontext,
) -> Film:
    """Mix a sketch, uint8 `[28, 28]`, with the noise of `seed` up to time `t`, and draw it from there as a digit of the
    class (after SDEdit, Meng et al., arXiv 2108.01073). A `t` of 0 keeps the sketch, 1 discards it.

    Steps are no larger than in a full drawing of `sampling.steps`, so there are at most as many; see the film.
    Raises ValueError for an empty sketch and for a time outside [0, 1].
    """
    if not pixels.any():
        raise ValueError("the sketch is empty; draw something first")
    t = check.number("noise", t, 0, 1)
    image = images.to_model(pixels.unsqueeze(0), network.pixel_mean, network.pixel_std)
    x, _ = flow.path(image, flow.noise([seed]), torch.tensor([t]))
    return film(network, states_from(network, x, torch.tensor([label]), sampling, turn, start=t, film=True))


def film(network: DiT, path: Iterable[flow.State]) -> Film:
    """Run through a sampler's states of `B` images and keep them all."""
    path = list(path)

    def pixels(pictures: list[torch.Tensor], mean: float, std: float) -> torch.Tensor:
        return torch.stack([images.to_pixels(picture, mean, std).cpu() for picture in pictures])

    noisy = pixels([state.x for state in path], network.pixel_mean, network.pixel_std)
    predicted = velocity = None
    if all(state.image is not None for state in path):
        predicted = pixels([state.image for state in path], network.pixel_mean, network.pixel_std)
        v = [torch.zeros_like(state.x) if state.v is None else state.v for state in path]
        velocity = pixels(v, 0.5, 1 / 6)[:-1]  # ±3 standard deviations map to black and white
    return Film([state.t for state in path], noisy, predicted, velocity, network.kind)


class Timed:
    """A `turn` that measures the time of a drawing, without the time spent waiting for the lock."""

    def __init__(self, turn: Turn):
        self.turn, self.started = turn, time.perf_counter()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        asked = time.perf_counter()
        with self.turn():
            self.started += time.perf_counter() - asked
            yield

    @property
    def milliseconds(self) -> float:
        return 1000 * (time.perf_counter() - self.started)


def compare_steps(
    drawers: Sequence[tuple[DiT, SamplingConfig]], labels: torch.Tensor, seed: int, turn: Turn = nullcontext
) -> Iterator[tuple[int, torch.Tensor, list[float]]]:
    """Draw all labels `[B]` from the same noise at each of `STEP_COUNTS`, with each network of `drawers` and its
    settings.

    Yields steps, pixels uint8 `[len(drawers)·B, 28, 28]` and, for each network, the milliseconds of drawing.
    """
    for steps in STEP_COUNTS:
        pixels, milliseconds = [], []
        for network, sampling in drawers:
            timed = Timed(turn)
            *_, last = states(network, labels, [seed] * len(labels), replace(sampling, steps=steps), timed)
            pixels.append(images.to_pixels(last.x, network.pixel_mean, network.pixel_std).cpu())
            milliseconds.append(timed.milliseconds)
        yield steps, torch.cat(pixels), milliseconds
