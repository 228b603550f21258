"""The rows of metrics.json: measured one by one, saved as soon as they are done, and reused."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile

import torch

from model import check, images, weights
from model.common import git_commit, replacing
from model.device import described
from model.sampling import SamplingConfig
from training.measure import metrics, plots
from training.measure.reference import Reference
from training.measure.samples import FileSamples, GeneratedSamples

SWEEPS = ("steps", "guidance", "shift")
PARTS = ("headline", "cas", *SWEEPS)
STEPS = (1, 2, 3, 4, 8, 16, 20, 32)
SCALES = (0.0, 0.5, 0.9, 1.0, 1.1, 1.15, 1.25, 1.5, 2.0)
SHIFTS, SHIFT_STEPS = (1.0, SamplingConfig.time_shift, 2.5), (2, 4, 8)  # in addition to the shift of the weights
MAX_COUNT = 10_000  # digits: the size of the real test set
SWEEP_COUNT, CAS_COUNT = {"cuda": 10_000, "other": 2_000}, {"cuda": 60_000, "other": 10_000}  # digits
BLANKS = 50  # of black and of white images


class Results:
    """The metrics.json of one set of samples. Rows of other weights are dropped."""

    def __init__(self, path: Path, samples: GeneratedSamples | FileSamples):
        self.path, self.samples = path, samples
        self.read()  # fail early if the file is foreign or the folder is not writable
        path.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path.parent).close()

    def read(self) -> dict:
        """The file's content without rows of other samples; raises ValueError for a file of other weights."""
        kept = weights.read_metrics(self.path)
        if kept.get("sha256", {}).get(weights.TENSORS, self.samples.sha256) != self.samples.sha256:
            raise ValueError(f"{self.path} belongs to other weights than these; choose another --out")
        for part in ("evaluation", "sweeps", "cas"):
            there = kept.pop(part, [])
            there = [there] if part == "evaluation" and there else there
            rows = [row for row in there if row.get("settings", {}).get("sha256") == self.samples.sha256]
            if len(rows) < len(there) and isinstance(self.samples, FileSamples):
                raise ValueError(f"{self.path} contains results for other digits than these; choose another --out")
            if rows:
                kept[part] = rows[0] if part == "evaluation" else rows
        return {**self.samples.metrics, **kept}

    def get(self, part: str, settings: dict) -> dict | None:
        """The saved row with these settings, if there is one."""
        content = self.read()
        headline = [content["evaluation"]] if "evaluation" in content else []
        rows = headline if part == "evaluation" else content.get(part, [])
        if part == "sweeps":  # the headline row has all metrics of a sweep row
            rows = [*rows, *headline]
        return next((row for row in rows if row["settings"] == settings), None)

    def put(self, part: str, row: dict) -> None:
        """Save a row: replace the one of `evaluation`, or append to `sweeps` or `cas`."""
        content = self.read()
        content[part] = row if part == "evaluation" else [*content.get(part, []), row]
        with replacing(self.path) as new:
            new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def rounded(row: dict) -> dict:
    """Round floats to five significant digits."""
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}


def rounded_pair(drawn: dict, real: dict) -> dict:
    return {"drawn": rounded(drawn), "real": rounded(real)}


class Evaluation:
    """Evaluates one set of samples. The `settings` of a row determine its metrics, so saved rows are reused."""

    def __init__(
        self,
        samples: GeneratedSamples | FileSamples,
        reference: Reference,
        results: Results,
        drawing: dict,
        command: str,
    ):
        """`drawing` holds count, seed, steps, guidance and time_shift; the last three are None for a file."""
        self.samples, self.reference, self.results = samples, reference, results
        self.drawing, self.command, self.out = drawing, command, results.path.parent
        self.drawn = {}  # digits by sampling settings: CAS may reuse those of the headline

    def row(self, part: str, measure: Callable, fresh: bool = False, **changed) -> dict:
        """The row for the drawing with `changed` settings; drawn, measured and saved now if missing or `fresh`."""
        drawing = {**self.drawing, **changed}
        drawing["count"] = min(drawing["count"], self.samples.available)
        notes = self.reference.notes
        sources = {"sampler": self.samples.sampler, "sha256": self.samples.sha256, "extractor": notes["sha256"]}
        saved = None if fresh else self.results.get(part, {**drawing, **sources})
        if saved:
            return saved
        started = time.monotonic()
        key = tuple(drawing.values())
        if key not in self.drawn:
            self.drawn[key] = self.samples.digits(**drawing)
        pixels, labels = self.drawn[key]
        drawn_at = time.monotonic()
        print(f"measuring {len(pixels):,} digits …", file=sys.stderr, flush=True)
        row = {
            "settings": {**drawing, **sources},
            **measure(pixels, labels),
            "extractor_accuracy": notes["accuracy"],
            "device": described(self.reference.device),
            "torch": torch.__version__,
            "command": self.command,
            "commit": git_commit(),
            "seconds": {"drawing": round(drawn_at - started, 1), "figures": round(time.monotonic() - drawn_at, 1)},
        }
        self.results.put(part, row)
        return row

    def all_metrics(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict:
        """The metrics of the headline row; also plots samples and nearest neighbours."""
        reference, device = self.reference, self.reference.device
        drawn, real = reference.compare(pixels, labels)
        training = reference.train.to(device)
        distance, index = metrics.nearest(pixels.to(device), training)
        copies = metrics.copies(distance, metrics.nearest(reference.test.to(device), training)[0])
        drawn.update(copies=copies["share"], copies_limit=copies["limit"])
        real.update(copies=copies["real_share"])
        plots.samples(self.out / "samples.png", pixels, labels)
        plots.neighbours(self.out / "neighbours.png", pixels, labels, distance.cpu(), reference.train[index.cpu()])
        return {**rounded_pair(drawn, real), "blank": self.blank()}

    def blank(self) -> dict:
        """The metrics of the black and white images, which all other metrics ignore."""
        pixels, labels = self.samples.blanks(**{**self.drawing, "count": BLANKS})
        classes = {"black": (images.BLACK, 0), "white": (images.WHITE, 255)}
        present = {name: value for name, value in classes.items() if value[0] in labels}
        return {
            name: rounded(metrics.blank_error(pixels[labels == label], level))
            for name, (label, level) in present.items()
        }

    def feature_metrics(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict:
        """The metrics of a sweep row."""
        return rounded_pair(*self.reference.compare(pixels, labels))

    def cas(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict:
        """The metrics of a row of the classification accuracy score."""
        return rounded_pair(*self.reference.cas(pixels, labels))

    @check.complete(weights.METRICS)
    def sweep(self, over: str, count: int) -> None:
        """Measure a row for each point of `steps`, `guidance` or `shift`, and plot them."""
        if over == "shift":
            name, shifts = "time_shift", sorted({*SHIFTS, self.drawing["time_shift"]})
            points = [{"steps": steps, "time_shift": shift} for steps in SHIFT_STEPS for shift in shifts]
        else:
            scales = [scale for scale in SCALES if self.samples.network.nearest_guidance(scale) == scale]
            name, points = over, [{over: point} for point in {"steps": STEPS, "guidance": scales}[over]]
        rows = [self.row("sweeps", self.feature_metrics, count=count, **point) for point in points]
        plots.sweep(self.out / f"{over}.png", name, rows)

    def run(self, parts: list[str], count: int | None = None, fresh_headline: bool = False) -> None:
        """Measure `parts` in order; CAS and sweeps use `count` digits, with a default that depends on the device."""
        where = "cuda" if self.reference.device.type == "cuda" else "other"
        for part in parts:
            if part == "headline":
                self.row("evaluation", self.all_metrics, fresh_headline)
            elif part == "cas":
                self.row("cas", self.cas, count=count or CAS_COUNT[where])
            else:
                self.sweep(part, count or SWEEP_COUNT[where])


def drawing_of(samples: GeneratedSamples | FileSamples, count: int, seed: int = 0, **asked) -> dict:
    """The settings of a drawing: the weights' sampling defaults, updated by the options asked for; None for a file.

    If the network does not support that guidance, a note on stderr says so, and the settings hold the one it uses.
    """
    sampling = dict.fromkeys(("steps", "guidance", "time_shift"))
    if samples.sampling:
        config = samples.sampling.updated(**asked).for_network(samples.network)
        sampling = asdict(config)
        if note := config.note(asked.get("guidance")):
            print(note, file=sys.stderr)
    return {"count": count, "seed": seed, **sampling}
