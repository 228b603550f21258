"""Command: measure digits. `python -m training.evaluate --weights runs/first/weights`, or `--samples digits.npz` of anybody's.

Writes metrics.json and pictures. The default is the headline row; `--full` adds sweeps over steps, guidance and time shift, and CAS.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

import torch

from model import check, images, weights
from model.command import sentence_on_error
from model.device import described, pick
from model.files import replacing
from model.generate import settings
from training import data, extractor, figures, pictures
from training.card import results_table
from training.subject import FEWEST, FromFile, FromWeights, in_proportion
from training.train import commit

SWEEPS = ("steps", "guidance", "shift")
PARTS = ("headline", *SWEEPS, "cas")
STEPS = (1, 2, 3, 4, 8, 16, 20, 32)
SCALES = (0.0, 0.5, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
SHIFTS, SHIFT_STEPS = (1.0, 2.5, 4.0), (2, 4, 8, 20)  # beside the shift of the weights
MOST = 10_000  # digits: the real test set, which stands beside them, has no more
SWEEP_COUNT, CAS_COUNT = {"cuda": 10_000, "other": 2_000}, {"cuda": 60_000, "other": 10_000}  # digits, by what drawing them costs
BLANKS = 50  # black images, and white ones
CAS_STEPS = 2350  # of 128 digits: five passes over 60,000


class Ruler:
    """The real digits as the extractor sees them, found once, and the figures of any set beside theirs."""

    def __init__(self, device: torch.device, data_root: str):
        self.device = device
        self.extractor, self.notes = extractor.load(device)
        self.train, self.train_labels = in_proportion(*data.load("mnist", data_root), seed=0)
        self.test, self.test_labels = in_proportion(*data.load("mnist", data_root, train=False), seed=0)
        self.test_features, self.test_verdicts = extractor.look(self.extractor, self.test)
        right = extractor.accuracy(self.test_verdicts, self.test_labels)
        if abs(right - self.notes["accuracy"]) > 0.001:
            raise ValueError(
                f"{extractor.PATH} is damaged: it names {right:.2%} of the real test digits rightly, and once it was "
                f"{self.notes['accuracy']:.2%}; train it again with: python -m training.extractor"
            )
        self.train_features, _ = extractor.look(self.extractor, self.train)
        self.real_figures = {}  # by how many

    def compare(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[dict, dict, torch.Tensor]:
        """Figures of digits `[N, 28, 28]` and of as many real ones, and the digits' features `[N, 128]`.

        Real are test digits measured against the training set, and for `fd_test` training digits against the test set.
        """
        found, verdicts = extractor.look(self.extractor, pixels)
        real = self.real(len(pixels))
        drawn = {
            "fd_train": figures.frechet(found, self.train_features),
            "fd_test": figures.frechet(found, self.test_features),
            **figures.manifold(found, self.train_features[: len(pixels)]),
            "accuracy": extractor.accuracy(verdicts, labels),
        }
        return {"fd_ratio": drawn["fd_train"] / real["fd_train"], **drawn}, {"fd_ratio": 1.0, **real}, found

    def real(self, count: int) -> dict:
        """The figures of `count` real digits, found once for each count."""
        if count not in self.real_figures:
            subset, held_back = self.train_features[:count], self.test_features[:count]
            self.real_figures[count] = {
                "fd_train": figures.frechet(held_back, self.train_features),
                "fd_test": figures.frechet(subset, self.test_features),
                "fd_train_subset": figures.frechet(subset, self.train_features),
                **figures.manifold(held_back, subset),
                "accuracy": extractor.accuracy(self.test_verdicts[:count], self.test_labels[:count]),
            }
        return self.real_figures[count]

    def cas(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[dict, dict]:
        """Classification accuracy score (Ravuri & Vinyals, arXiv 1905.10887): the accuracy on the real test set of a classifier
        that saw only these digits `[N, 28, 28]`, and of one that saw as many real training digits."""
        sets = ((pixels, labels), (self.train[: len(pixels)], self.train_labels[: len(pixels)]))
        scores = []
        for taught in sets:
            classifier = extractor.fit(*taught, CAS_STEPS, move=False, device=self.device)
            scores.append({"cas": extractor.accuracy(extractor.look(classifier, self.test)[1], self.test_labels)})
        return scores[0], scores[1]


class Results:
    """The metrics.json of what is measured. A row is saved as soon as it is done; rows of other weights are dropped."""

    def __init__(self, path: Path, subject: FromWeights | FromFile):
        self.path, self.subject = path, subject
        self.metrics()  # a file that is not ours, and a folder that cannot be written, are known before the work
        path.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path.parent).close()

    def metrics(self) -> dict:
        """The file as it is now, without rows of another subject; raises ValueError for one that belongs to other weights."""
        try:
            kept = json.loads(self.path.read_text()) if self.path.is_file() else {}
        except ValueError:
            raise ValueError(f"{self.path} is no JSON") from None
        if not isinstance(kept, dict):
            raise ValueError(f"{self.path} is no JSON object")
        if kept.get("sha256", {}).get(weights.TENSORS, self.subject.sha256) != self.subject.sha256:
            raise ValueError(f"{self.path} belongs to other weights than those measured; choose another --out")
        for part in ("evaluation", "sweeps", "cas"):
            there = as_list(kept.pop(part, []))
            rows = [row for row in there if row["settings"]["sha256"] == self.subject.sha256]
            if len(rows) < len(there) and isinstance(self.subject, FromFile):
                raise ValueError(f"{self.path} holds figures of other digits than these; choose another --out")
            if rows:
                kept[part] = rows[-1] if part == "evaluation" else rows
        return {**self.subject.metrics, **kept}

    def put(self, part: str, row: dict) -> None:
        """Save a row: the one evaluation, or one more of the `sweeps` or of `cas`, in place of the same by another sampler."""
        metrics, same = self.metrics(), {"sampler": row["settings"]["sampler"]}
        others = [other for other in as_list(metrics.get(part, [])) if other["settings"] | same != row["settings"]]
        metrics[part] = row if part == "evaluation" else [*others, row]
        with replacing(self.path) as new:
            new.write_text(json.dumps(metrics, indent=2) + "\n")

    def get(self, part: str, wanted: dict) -> dict | None:
        """The saved row of these settings, if there is one."""
        return next((row for row in as_list(self.metrics().get(part, [])) if row["settings"] == wanted), None)


def as_list(rows: dict | list) -> list:
    return rows if isinstance(rows, list) else [rows]


def rounded(row: dict) -> dict:
    """Five significant digits, which is more than any figure is worth."""
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}


class Evaluation:
    """One run of the command. A row's `settings` are all that decides what it says: two rows with the same are one."""

    def __init__(self, subject: FromWeights | FromFile, ruler: Ruler, results: Results, out: Path, drawing: dict, command: str):
        self.subject, self.ruler, self.results, self.out, self.drawing, self.command = subject, ruler, results, out, drawing, command
        self.drawn = {}  # digits by how they were drawn: the headline's may be those of CAS too

    def row(self, part: str, measure: Callable, fresh: bool = False, **changed) -> dict:
        """The row of the settings with what is `changed` in them: the saved one, or drawn, measured and saved now."""
        drawing = {**self.drawing, **changed}
        drawing["count"] = min(drawing["count"], self.subject.available)
        wanted = {**drawing, "sampler": self.subject.sampler, "sha256": self.subject.sha256, "extractor": self.ruler.notes["sha256"]}
        saved = None if fresh else self.results.get(part, wanted)
        if saved:
            return saved
        started = time.monotonic()
        how = tuple(drawing.values())
        if how not in self.drawn:
            self.drawn[how] = self.subject.digits(**drawing)
        pixels, labels = self.drawn[how]
        drawn_at = time.monotonic()
        print(f"measuring {len(pixels):,} digits …", file=sys.stderr, flush=True)
        row = {
            "settings": wanted,
            **measure(pixels, labels),
            "extractor_accuracy": self.ruler.notes["accuracy"],
            "device": described(self.ruler.device),
            "torch": torch.__version__,
            "command": self.command,
            "commit": commit(),
            "seconds": {"drawing": round(drawn_at - started, 1), "figures": round(time.monotonic() - drawn_at, 1)},
        }
        self.results.put(part, row)
        return row

    def headline(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict:
        """All figures, with the sheet of samples and the nearest neighbours."""
        ruler, device = self.ruler, self.ruler.device
        drawn, real, found = ruler.compare(pixels, labels)
        drawn["kid"] = figures.kernel(found, ruler.train_features)
        real["kid"] = figures.kernel(ruler.test_features[: len(pixels)], ruler.train_features)
        training = ruler.train.to(device)
        distance, index = figures.nearest(pixels.to(device), training)
        copies = figures.copies(distance, figures.nearest(ruler.test.to(device), training)[0])
        drawn.update(copies=copies["share"], copies_limit=copies["limit"], copies_z=copies["z"])
        real.update(copies=copies["real_share"])
        pictures.samples(self.out / "samples.png", pixels, labels)
        pictures.neighbours(self.out / "neighbours.png", pixels, labels, distance.cpu(), ruler.train[index.cpu()])
        return {"drawn": rounded(drawn), "real": rounded(real), "blank": self.blank()}

    def blank(self) -> dict:
        """The check of the black and the white images, which no other figure looks at."""
        pixels, labels = self.subject.blanks(**{**self.drawing, "count": BLANKS})
        classes = {"black": (images.BLACK, 0), "white": (images.WHITE, 255)}
        present = {name: value for name, value in classes.items() if value[0] in labels}
        return {name: rounded(figures.flat(pixels[labels == label], level)) for name, (label, level) in present.items()}

    def compared(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict:
        """The figures that need no second look at the pixels."""
        drawn, real, _ = self.ruler.compare(pixels, labels)
        return {"drawn": rounded(drawn), "real": rounded(real)}

    def sweep(self, over: str, count: int) -> None:
        """A row for each point of `steps`, `guidance` or `shift`, and their plot."""

        if over == "shift":
            name, shifts = "time_shift", sorted({*SHIFTS, self.drawing["time_shift"]})
            points = [{"steps": steps, "time_shift": shift} for steps in SHIFT_STEPS for shift in shifts]
        else:
            name, points = over, [{over: point} for point in {"steps": STEPS, "guidance": SCALES}[over]]
        rows = [self.row("sweeps", self.compared, count=count, **point) for point in points]
        pictures.sweep(self.out / f"{over}.png", name, rows)

    def cas(self, count: int) -> None:
        def measure(pixels, labels):
            drawn, real = self.ruler.cas(pixels, labels)
            return {"drawn": rounded(drawn), "real": rounded(real)}

        self.row("cas", measure, count=count)


def parts_of(options: argparse.Namespace) -> list[str]:
    """Which of the parts to measure, in their order; raises ValueError for one that is not there."""
    asked = options.only.split(",") if options.only else PARTS if options.full else ["headline"]
    foreign = sorted(set(asked) - set(PARTS))
    if foreign:
        raise ValueError(f"--only takes {', '.join(PARTS)}, not {', '.join(foreign)}")
    if options.samples:
        if options.only and set(SWEEPS) & set(asked):
            raise ValueError("--samples are drawn already: there is nothing to sweep over; --only takes headline and cas")
        asked = set(asked) - set(SWEEPS)
    return [part for part in PARTS if part in asked]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--weights", help="a folder or USER/NAME[@revision] (default: the variable WEIGHTS, else the bundled ones)")
    what.add_argument("--samples", type=Path, help="a .npz of images uint8 [N, 28, 28] and labels [N] to measure instead")
    parser.add_argument("--count", type=int, default=MOST, help=f"digits of the headline row, {FEWEST} to {MOST} (default {MOST})")
    parser.add_argument("--steps", type=int, default=20, help="steps of the sampler, 1 to 50 (default 20)")
    parser.add_argument("--guidance", type=float, help="guidance scale, 0 to 5 (default: the one of the weights)")
    parser.add_argument("--seed", type=int, default=0, help="the noise of the first digit; the next has the next seed (default 0)")
    parser.add_argument("--full", action="store_true", help="also the sweeps and CAS; rows that are saved already are kept")
    parser.add_argument("--only", metavar="PARTS", help=f"just these of {','.join(PARTS)}; rows that are saved already are kept")
    parser.add_argument("--out", type=Path, help="folder of metrics.json and the pictures (default: beside what is measured, else out/)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument("--data-root", default="data", help="folder of the data sets (default data)")
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        for name in ("torchmetrics", "matplotlib"):
            if find_spec(name) is None:
                raise ValueError(f"{name} is missing, which only measuring needs: pip install -r requirements-dev.txt")
        parts, device = parts_of(options), pick(options.device)
        count = check.whole("count", options.count, FEWEST, MOST)
        seed, steps, guidance = settings(options.seed, options.steps, 1.0 if options.guidance is None else options.guidance)
        if options.samples:
            subject, steps, guidance = FromFile(options.samples), None, None
        else:
            subject = FromWeights(options.weights, device)
            guidance = subject.guidance if options.guidance is None else guidance
        out = options.out or subject.folder or Path("out")
        results = Results(out / weights.METRICS, subject)
        drawing = {"count": count, "steps": steps, "guidance": guidance, "time_shift": subject.time_shift, "seed": seed}
        command = " ".join(["python -m training.evaluate", *(sys.argv[1:] if argv is None else argv)])
        where = "cuda" if device.type == "cuda" else "other"
        try:
            evaluation = Evaluation(subject, Ruler(device, options.data_root), results, out, drawing, command)
            for part in parts:
                if part == "headline":
                    evaluation.row("evaluation", evaluation.headline, fresh=not (options.full or options.only))
                elif part == "cas":
                    evaluation.cas(CAS_COUNT[where])
                else:
                    evaluation.sweep(part, min(count, SWEEP_COUNT[where]))
        except KeyboardInterrupt:
            print(f"\nStopped. The rows that were done are in {results.path}; with --full or --only the command goes on from there.")
            return 130
    print(results_table(results.metrics()))
    print(f"{subject.name}: {', '.join(parts)} in {results.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
