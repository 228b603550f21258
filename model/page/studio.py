"""The drawing functions of the page's tabs and API: they validate plain values and take turns on the device."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace

import torch

from model import check, sampling, scenes, weights
from model.common import masked
from model.images import CLASSES, SIZE, columns
from model.page import html as pictures
from model.turns import Turns

START = {"digit": "7", "seed": 67}  # the initial digit; steps and guidance are those of the weights
MAX_SHEET = 400  # digits
MAX_ROW = 16  # digits of a row in the API
PATHS = 8  # through the plane
CHANGES = [1.0, 0.9, 0.85, 0.8, 0.75, 0.7, 0.5, 0.0]  # times at which a digit changes its class
NOISE = 0.85  # on a sketch: enough to complete a rough one
MORPHS = 8  # digits from one seed to another
OTHER_SEED = 87  # the initial target of a morph: its 7 is crossed, that of the start seed is not
# The work of the other calls, at most: a number of digits in 50 steps each.
ROWS = {"number_tab": sampling.MAX_NUMBER, "visit": sampling.MAX_NUMBER, "steps_tab": 3, "steps_api": 13}
ROWS |= {"paths_tab": PATHS, "styles_tab": 10, "change_tab": len(CHANGES), "morph_tab": MORPHS, "sketch_tab": 1}
ROWS |= {"change_api": MAX_ROW, "morph_api": MAX_ROW}
OWN_DEVICE = "SPACES_ZERO_GPU" in os.environ  # there, every call has its own process and device
TURNS = nullcontext() if OWN_DEVICE else Turns()


def work(function: str, values: dict) -> int:
    """The steps of single digits that a call takes at most; an invalid value counts as the largest, a single digit as
    0."""
    if function == "sheet_tab":
        (_, count), (_, _, steps, _) = (padded(values.get(name), size) for name, size in (("asked", 2), ("subject", 4)))
    elif function == "sheet_api":
        count, steps = values.get("count"), values.get("steps")
    else:
        return ROWS.get(function, 0) * sampling.MAX_STEPS
    sizes = [
        value if type(value) is int and 0 < value < high else high
        for value, high in ((count, MAX_SHEET), (steps, sampling.MAX_STEPS))
    ]
    return sizes[0] * sizes[1]


def padded(value, size: int) -> list:
    """A list of exactly `size` values, padded with None; all None if `value` is not a list."""
    return [*value, *[None] * size][:size] if isinstance(value, list) else [None] * size


def from_link(query: dict, start: dict, classes: tuple = CLASSES) -> dict:
    """The values of the controls in a link, clamped to their ranges; an invalid one becomes the default."""
    values = dict(start)
    if query.get("digit") in classes:
        values["digit"] = query["digit"]
    ranges = {"seed": (int, 0, sampling.MAX_SEED), "steps": (int, 1, sampling.MAX_STEPS)}
    ranges["guidance"] = (float, 0, sampling.MAX_GUIDANCE)
    for name, (kind, low, high) in ranges.items():
        try:
            asked = kind(query[name])
        except (KeyError, ValueError):
            continue
        if asked == asked:  # not NaN
            values[name] = min(max(asked, low), high)
    return values


class Studio:
    """The functions behind the tabs and the API, which validate plain values and call `model/`.

    A `subject` is the list of the shared controls' values: class, seed, steps, guidance. `on_gpu` wraps the functions
    that draw, and `listened` returns whether a client still waits for the current call.
    """

    def __init__(
        self,
        loaded: weights.Weights,
        on_gpu: Callable = lambda function: function,
        listened: Callable[[], bool] = lambda: True,
    ):
        self.loaded, self.listened = loaded, listened
        self.network, self.classes = loaded.network, loaded.network.class_names
        self.sampling = loaded.choose(loaded.sampling)[1]
        self.teacher = loaded.teacher and loaded.teacher.network
        networks = filter(None, (self.network, self.teacher))
        counts = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
        source, at, commit = masked(loaded.source).partition("@")
        device = next(self.network.parameters()).device.type
        where = f"{source[:60]}{at}{commit[:12]}"
        self.about = pictures.about(self.network.kind, counts, where, device, loaded.notice)
        self.start = {**START, "steps": self.sampling.steps, "guidance": self.sampling.guidance}
        self.planes = scenes.read_planes()
        self.can_write_numbers = self.classes[:10] == CLASSES[:10]
        if START["digit"] not in self.classes:
            self.start["digit"] = self.classes[0]
        self.opening = None if OWN_DEVICE else self.digit(list(self.start.values()))
        on_device = (self.whole, self.film, self.paths, self.batches, self.comparison)
        self.whole, self.film, self.paths, self.batches, self.comparison = map(on_gpu, on_device)

    # ---- taking turns

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Context of a drawing step; raises ValueError if no client waits for the drawing."""
        if not self.listened():
            raise ValueError("nobody is waiting for this drawing any more")
        yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Context with exclusive use of the device, for a drawing step or a whole short drawing."""
        with TURNS, self.wanted():
            yield

    def while_wanted(self, chunks: Iterator) -> Iterator:
        """Yield the chunks of a drawing while a client waits; a drawing in another process cannot check that itself."""
        for chunk in chunks:
            with self.wanted():
                yield chunk

    # ---- runs on the GPU, with validated values

    def whole(self, function, *values):
        with self.turn():
            return function(self.network_for(values), *values, self.wanted)

    def film(self, function, *values):
        return function(self.network_for(values), *values, self.turn)

    def paths(self, *values):
        return scenes.paths(self.network, self.teacher, *values, self.turn)

    def batches(self, *values):
        yield from sampling.draw(self.network_for(values), *values, self.turn)

    def comparison(self, configs, labels, seed):
        """The comparison of steps with the page's network, or, for two `configs`, with its teacher and then itself."""
        networks = (self.network,) if len(configs) == 1 else (self.teacher, self.network)
        yield from sampling.compare_steps(list(zip(networks, configs, strict=True)), labels, seed, self.turn)

    def network_for(self, values):
        """The network that draws best for the SamplingConfig among these values."""
        (config,) = (value for value in values if isinstance(value, sampling.SamplingConfig))
        return self.loaded.choose(config)[0]

    # ---- one validated call each; ValueError for a bad value

    def how(self, steps, guidance):
        """The sampling settings for a tab, which has both values."""
        return self.loaded.choose(replace(self.sampling, steps=steps, guidance=guidance))[1]

    def config(self, steps=None, guidance=None):
        """The sampling settings for the API, where both values are optional."""
        asked = self.sampling.updated(steps=steps, guidance=guidance)
        return self.how(asked.steps, asked.guidance)

    def label(self, digit) -> torch.Tensor:
        name = str(digit) if type(digit) is int else digit
        return torch.tensor([sampling.label(name, self.classes)])

    def draw_one(self, digit, seed, config, draw=sampling.draw_film):
        return self.whole(draw, self.label(digit), [sampling.check_seed(seed)], config)

    def compare_steps(self, digit, seed, *configs):
        """The columns of the comparison of steps, for one class or "all" ten."""
        labels = torch.arange(len(self.classes[:10])) if digit == "all" else self.label(digit)
        yield from self.while_wanted(self.comparison(configs, labels, sampling.check_seed(seed)))

    def labels(self, classes, count):
        return sampling.parse_labels(classes, check.whole("count", count, 1, MAX_SHEET), names=self.classes)

    def draw_sheet(self, labels, seed, config):
        seed = sampling.check_seed(seed, len(labels))
        yield from self.while_wanted(self.batches(labels, seed, config))

    def change(self, digit, other, seed, at, config):
        check.whole("number of times", len(at), 1, MAX_ROW)
        at = [check.number("switch time", t, 0, 1) for t in at]
        label, other = self.label(digit).item(), self.label(other).item()
        return self.film(sampling.change_class, label, other, sampling.check_seed(seed), config, at)

    def morph(self, digit, seed, other, count, config):
        count, other = check.whole("count", count, 2, MAX_ROW), check.whole("other_seed", other, 0, sampling.MAX_SEED)
        return self.film(sampling.morph, self.label(digit).item(), sampling.check_seed(seed), other, count, config)

    def finish(self, sketch, digit, seed, noise, config):
        rows = sketch if isinstance(sketch, list) else []
        numbers = [number for row in rows for number in (row if isinstance(row, list) else [row])]
        if len(numbers) != SIZE**2 or not any(numbers):
            raise ValueError(f"sketch must be {SIZE} rows of {SIZE} numbers, not all of them 0")
        pixels = torch.tensor([check.whole("sketch pixel", number, 0, 255) for number in numbers], dtype=torch.uint8)
        label, seed, noise = self.label(digit).item(), sampling.check_seed(seed), check.number("noise", noise, 0, 1)
        return self.whole(sampling.finish, pixels.view(SIZE, SIZE), label, seed, noise, config)

    # ---- the API: ValueError for a bad value

    def draw_api(
        self, digit: str, seed: int = 42, steps: int | None = None, guidance: float | None = None
    ) -> list[list[int]]:
        """One digit ("0" to "9", "black", "white") from the noise of a seed: 28 rows of 28 pixels, 0 black to 255
        white."""
        return self.draw_one(digit, seed, self.config(steps, guidance), sampling.draw_row).digits[0].tolist()

    def steps_api(self, digit: str = "all", seed: int = 42, guidance: float | None = None) -> dict[str, list]:
        """One class, or "all" ten digits, drawn from the same noise in 1, 2, 4, 8, 16 and 32 steps: images by number
        of steps."""
        columns = self.compare_steps(digit, seed, self.config(1, guidance))
        return {str(count): pixels.tolist() for count, pixels, _ in columns}

    def sheet_api(
        self,
        classes: str = "0-9",
        count: int = 100,
        seed: int = 42,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> dict[str, list]:
        """Up to 400 digits, cycling through `classes` ("7", "0-9", "3,5,black"): images and labels. Digit i starts
        from the noise of seed + i."""
        labels = self.labels(classes, count)
        pixels = torch.cat(list(self.draw_sheet(labels, seed, self.config(steps, guidance))))
        return {"images": pixels.tolist(), "labels": labels.tolist()}

    def change_api(
        self,
        digit: str,
        other: str,
        seed: int = 42,
        at: list[float] = CHANGES,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> list[list[list[int]]]:
        """Drawings that begin as class `digit` and switch to class `other`, all from the same noise: one image for each
        time in `at`, from 1 (switch at once) to 0 (never). 1 to 16 times."""
        config = self.config(steps, guidance)
        return self.change(digit, other, seed, at if isinstance(at, list) else [at], config).digits.tolist()

    def morph_api(
        self,
        digit: str,
        seed: int,
        other_seed: int,
        count: int = 8,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> list[list[list[int]]]:
        """2 to 16 images of one class, from the noise of one seed to that of another."""
        return self.morph(digit, seed, other_seed, count, self.config(steps, guidance)).digits.tolist()

    def finish_api(
        self,
        sketch: list[list[int]],
        digit: str,
        noise: float = NOISE,
        seed: int = 42,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> list[list[int]]:
        """A sketch (28 rows of 28 pixels, 0 black to 255 white) finished as a class. `noise` goes from 0 (keep the
        sketch) to 1 (ignore it)."""
        return self.finish(sketch, digit, seed, noise, self.config(steps, guidance)).digits[0].tolist()

    # ---- the tabs: the value to show, and the message about a bad value, which leaves the shown value unchanged

    def digit(self, subject):
        """The film of the subject's digit."""
        digit, seed, steps, guidance = subject
        config = self.how(steps, guidance)
        return pictures.film(self.draw_one(digit, seed, config), [digit], config, seeds=[seed])

    def digit_tab(self, subject):
        with pictures.Told() as told:
            told.value = self.digit(subject)
            told.problem = self.note(subject)
        return told.both

    def note(self, subject):
        """A note beside the guidance if the network draws with another one, else None."""
        _, _, steps, guidance = subject
        return pictures.note("guidance", self.how(steps, guidance).note(guidance))

    def row(self, number, subject):
        """The film of all digits of a number."""
        _, seed, steps, guidance = subject
        config = self.how(steps, guidance)
        labels = sampling.parse_number(pictures.plain(number))
        seeds = range(sampling.check_seed(seed, len(labels)), seed + len(labels))
        film = self.film(sampling.draw_row, labels, seeds, config)
        return pictures.row(film, [self.classes[label] for label in labels], config, seeds=list(seeds))

    def number_tab(self, asked, subject):
        with pictures.Told() as told:
            if asked[0]:
                told.value = self.row(asked[0], subject)
        return told.both

    def visit(self, query: dict) -> list:
        """The content for a link: the controls, the digit, and the row of its number."""
        subject = list(from_link(query, self.start, self.classes).values())
        number = query.get("number", "") if self.can_write_numbers else ""
        film = {**self.digit(subject), "linked": True}  # an update in the browser, even if it is the opening film
        note, subject[-1] = self.note(subject), film["guidance"]
        return [subject, film, note, [number], *self.number_tab([number], subject)]

    def paths_tab(self, subject):
        """Several paths to the subject's class, in a plane of real digits; none for a class without a plane."""
        with suppress(ValueError):  # the digit's own form reports it
            digit, seed, _, guidance = subject
            if not (self.can_write_numbers and digit in self.planes):
                return {"digits": []}
            seeds = [(sampling.check_seed(seed) + i) % (sampling.MAX_SEED + 1) for i in range(PATHS)]
            config = (self.loaded.teacher or self.loaded).shifted(self.how(1, guidance))  # a jump has no grid
            return self.paths(self.label(digit).item(), seeds, config, self.planes[digit])
        return pictures.KEEP

    def styles_tab(self, subject):
        """Ten classes from the noise of the subject's seed."""
        with suppress(ValueError):
            _, seed, steps, guidance = subject
            config, names = self.how(steps, guidance), self.classes[:10]
            seeds = [sampling.check_seed(seed)] * len(names)
            film = self.film(sampling.draw_row, torch.arange(len(names)), seeds, config)
            return pictures.row(film, names, config, frames=6, seeds=seeds)
        return pictures.KEEP

    def steps_tab(self, subject):
        """Yields the comparison of steps each time a column is drawn."""
        with suppress(ValueError):
            digit, seed, _, guidance = subject
            config = self.how(1, guidance)
            shown = pictures.steps([digit], seed, config, self.teacher is not None)
            of_teacher = [self.loaded.teacher.shifted(config)] if self.teacher else []
            for column in self.compare_steps(digit, seed, *of_teacher, config):
                shown["columns"].append(pictures.column(*column))
                yield shown

    def change_tab(self, asked, subject):
        """A row from one noise, whose class changes at different times."""
        with pictures.Told() as told:
            (other,), (digit, seed, steps, guidance) = asked, subject
            config = self.how(steps, guidance)
            film = self.change(digit, other, seed, CHANGES, config)
            told.value = pictures.changed(film, digit, other, seed, CHANGES, config)
        return told.both

    def morph_tab(self, asked, subject):
        """A row of digits between the noises of two seeds."""
        with pictures.Told() as told:
            (other,), (digit, seed, steps, guidance) = asked, subject
            config = self.how(steps, guidance)
            film = self.morph(digit, seed, other, MORPHS, config)
            told.value = pictures.morphed(film, digit, (seed, other), MORPHS, config)
        return told.both

    def sketch_tab(self, sketch, asked, subject):
        """The film of a finished sketch, or None for an empty one."""
        if not sketch:
            return None, None
        with pictures.Told() as told:
            (noise,), (digit, seed, steps, guidance) = asked, subject
            config = self.how(steps, guidance)
            film = self.finish(sketch, digit, seed, noise, config)
            told.value = pictures.finished(film, digit, seed, noise, config)
        return told.both

    def sheet_tab(self, asked, subject):
        """Yields the sheet each time a batch is drawn."""
        with pictures.Told() as told:
            (classes, count), (_, seed, steps, guidance) = asked, subject
            if not classes:
                raise ValueError("class is missing; choose at least one")
            labels, config = self.labels(classes, count), self.how(steps, guidance)
            names = [self.classes[label] for label in labels]
            told.value = pictures.sheet(
                names, sampling.check_seed(seed, count), config, columns(count), labels.tolist()
            )
            for batch in self.draw_sheet(labels, seed, config):
                told.value["pixels"].append(scenes.packed(batch))
                yield told.both
        if told.problem:
            yield told.both
