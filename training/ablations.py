"""Command: train and measure one change to the recipe at a time. `python -m training.ablations [NAME …]`

Prints a Markdown table and plots loss against quality in runs/ablations.png. The run of a row is runs/ablation-NAME.
Run the command again to resume: finished runs and saved measurements are reused.
"""

import argparse
import math
import shlex
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch

from model import check, weights
from model.common import sentence_on_error
from model.device import pick
from model.sampling import SamplingConfig
from training import checkpoint
from training.config import PRESETS, Config, add_options
from training.measure import plots
from training.measure.evaluation import MAX_COUNT, Evaluation, Results
from training.measure.reference import Reference
from training.measure.samples import MIN_COUNT, GeneratedSamples
from training.run_folder import CONFIG, FILM, KEPT, METRICS, RUNS, WEIGHTS, RunFolder

# Default options by device.
CUDA = {"epochs": 15.0, "count": 10_000, "steps": 20, "points": 5}
OTHER = {"epochs": 1.0, "batch": 128, "count": 2_000, "steps": 8, "points": 2}
WARMUP = 0.1  # of the steps; decay and EMA half-life already scale with the length of the run

NO_CLIP = 1e6  # far above any gradient norm
BARE = {"qk_norm": False, "clip": NO_CLIP}
ROWS = {  # the most informative first
    "release": {},  # unit variance, shifted logit-normal times
    "release-again": {"seed": 1},  # measurement noise
    "reference": PRESETS["reference"],
    "3e-3": {"lr": 3e-3},
    "3e-3-bare": {"lr": 3e-3, **BARE},
    "pixels-0-to-1": {"pixel_mean": 0.0, "pixel_std": 1.0},
    "predict-image": {"predicts_image": True},
    "uniform": {"uniform_times": True, "time_shift": 1.0},
    "uniform-shifted": {"uniform_times": True},
    "logit-normal": {"time_shift": 1.0},
    "immiscible": {"immiscible": True},
    "offset-noise": {"offset_noise": 0.1},
    "no-label-drop": {"label_drop": 0.0},
    "width-128": {"width": 128},
    "1e-3-bare": BARE,
    "3e-3-no-qk-norm": {"lr": 3e-3, "qk_norm": False},
    "3e-3-no-clip": {"lr": 3e-3, "clip": NO_CLIP},
    "1e-2": {"lr": 1e-2},
    "1e-2-bare": {"lr": 1e-2, **BARE},
    "pixels-minus-1-to-1": {"pixel_mean": 0.5, "pixel_std": 0.5},
    "pixels-centred": {"pixel_mean": 0.1307},  # the mean of MNIST
}
MEASURING = {
    "count": "digits per measurement",
    "steps": "sampling steps",
    "points": "measurements per run, evenly spaced, with the last at its end",
}
WITH_EMA, NO_EMA = "release", "no-average"  # NO_EMA is the last network of WITH_EMA, without EMA
# Changing any of these changes what the loss measures.
INCOMPARABLE_LOSS = {
    "pixel_mean",
    "pixel_std",
    "time_shift",
    "uniform_times",
    "offset_noise",
    "immiscible",
    "label_drop",
}
PICTURE = "ablations.png"
HEAD = (
    "| row | flags | FD ÷ floor | coverage | class accuracy | loss | training, s |",
    "|---|---|" + "---:|" * 5,
)


class Moment(NamedTuple):
    """A run at one step: its recent training loss, and the metrics of its EMA weights."""

    loss: float
    drawn: dict


def folder_of(name: str) -> Path:
    return RUNS / f"ablation-{name}"


def flags_of(name: str) -> str:
    """The flags that a row changes, for the table."""
    return f"`{shlex.join(Config(**ROWS[name]).flags())}`" if ROWS[name] else ""


def as_flags(options: dict) -> str:
    return " ".join(f"--{name} {value:g}" for name, value in options.items())


def shared(options: dict, points: int) -> dict:
    """Settings shared by all rows: `options`, with a warm-up and preview interval that fit the length of the run."""
    config = Config(**options)
    per_epoch = (60_000 + 2 * config.blank_images) // config.batch
    steps = max(1, round(config.epochs * per_epoch))
    run = {"warmup_steps": round(WARMUP * steps), "keep_weights": True}
    run["preview_every"] = math.ceil(steps / points) / per_epoch  # epochs; ceil: no extra preview just before the end
    return {**run, **options}


def train(name: str, config: Config) -> int:
    """Train the run of a row to its end, resuming it if it exists; returns the trainer's exit status.

    Raises ValueError if the folder holds a run with another configuration: the table would show the wrong flags.
    """
    folder = folder_of(name)
    if begun := (folder / CONFIG).exists():
        saved = Config.load(folder / CONFIG)
        if config.init:  # the run copied the network of these weights
            saved = replace(saved, **config.network())
        if saved.recipe() != config.recipe():
            raise ValueError(
                f"{folder} contains a run with different flags; use the same ones, or move the folder away"
            )
        if (folder / FILM).exists():  # the run is finished
            return 0
    where = ["--resume", str(folder)] if begun else ["--name", folder.name]
    return subprocess.run([sys.executable, "-m", "training.train", *where, *config.flags()]).returncode


def measure(folder: Path, reference: Reference, drawing: dict) -> dict:
    """The metrics of digits drawn with a folder of weights; saved ones are reused."""
    samples = GeneratedSamples(str(folder), reference.device)
    results = Results(folder / weights.METRICS, samples)
    evaluation = Evaluation(samples, reference, results, drawing, "python -m training.ablations")
    return evaluation.row("sweeps", evaluation.feature_metrics)["drawn"]


def moments(name: str, reference: Reference, drawing: dict) -> list[Moment]:
    """The measurements of a finished run: at every step with kept weights, and at its end."""
    found, lines = [], RunFolder(folder_of(name)).rows(METRICS)
    for folder in (*sorted((folder_of(name) / KEPT).glob("[0-9]" * 7)), folder_of(name) / WEIGHTS):
        drawn = measure(folder, reference, drawing)
        found.append(Moment(loss_until(weights.read(folder).metrics["training"]["images"], lines), drawn))
    return found


def loss_until(images: int, lines: list[dict]) -> float:
    """The mean training loss of the last tenth of the log lines up to that many images."""
    losses = [line["loss"] for line in lines if line["images"] <= images and line["loss"] is not None]
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last) if last else math.nan


def save_raw(folder: Path) -> Path:
    """Save the weights of a finished run without EMA in a separate folder; returns the folder."""
    if not (folder / NO_EMA).exists():
        averaged = weights.load(str(folder / WEIGHTS), dtype=torch.float32)
        averaged.network.load_state_dict(checkpoint.load(folder)[0]["network"])
        weights.save(averaged.network, folder / NO_EMA, averaged.sampling, {"training": averaged.metrics["training"]})
    return folder / NO_EMA


def line(name: str, flags: str, moment: Moment, seconds: str) -> str:
    """The table row of a finished run."""
    drawn = moment.drawn
    return (
        f"| {name} | {flags} | {drawn['fd_ratio']:.2f} | {drawn['coverage']:.1%} | {drawn['accuracy']:.1%} "
        f"| {moment.loss:.4f} | {seconds} |"
    )


def rows(name: str, reference: Reference, drawing: dict) -> tuple[list[str], dict[str, list[Moment]]]:
    """The table lines of a finished row (two for `WITH_EMA`) and the moments of each."""
    found = {name: moments(name, reference, drawing)}
    seconds = max((row.get("seconds", 0) for row in RunFolder(folder_of(name)).rows(METRICS)), default=0)
    lines = [line(name, flags_of(name), found[name][-1], f"{seconds:.0f}")]
    if name == WITH_EMA:
        raw = Moment(found[name][-1].loss, measure(save_raw(folder_of(name)), reference, drawing))
        found[NO_EMA] = [raw]
        lines.append(line(NO_EMA, f"the last network of {name}", raw, ""))
    return lines, found


def draw_picture(found: dict[str, list[Moment]]) -> None:
    """Plot loss against FD ÷ floor, with the rank correlation of the rows whose losses are comparable."""
    points = {name: [(moment.loss, moment.drawn["fd_ratio"]) for moment in run] for name, run in found.items()}
    own_loss = {name for name in found if INCOMPARABLE_LOSS & ROWS.get(name, {}).keys()}
    last = [run[-1] for name, run in points.items() if name not in own_loss and name != NO_EMA]
    correlation = f"rank correlation of {len(last)} rows: {rank_correlation(last):.2f}" if len(last) > 2 else ""
    plots.loss_and_quality(RUNS / PICTURE, points, own_loss, correlation)


def rank_correlation(points: list[tuple[float, float]]) -> float:
    """Spearman's rank correlation of the two coordinates."""
    from torchmetrics.functional import spearman_corrcoef  # needed only to measure

    return spearman_corrcoef(*torch.tensor(points, dtype=torch.double).T).item()


def parsed(argv: list[str] | None) -> tuple[argparse.ArgumentParser, dict]:
    """The parser and the options given."""
    parser = argparse.ArgumentParser(
        prog="python -m training.ablations",
        description=__doc__.splitlines()[0],
        epilog=f"Defaults of this command: {as_flags(CUDA)} on CUDA, {as_flags(OTHER)} elsewhere, and a warm-up over a "
        "tenth of the steps. Any other flag of training.train applies to all rows.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"the rows to run (default: all): {', '.join(ROWS)}")
    for name, text in MEASURING.items():
        parser.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS, help=text)
    add_options(parser)
    return parser, vars(parser.parse_args(argv))


def main(argv: list[str] | None = None) -> int:
    parser, options = parsed(argv)
    with sentence_on_error(parser):
        names = options.pop("names") or list(ROWS)
        foreign = sorted(set(names) - set(ROWS))
        if foreign:
            raise ValueError(f"unknown row {', '.join(foreign)}; the rows are {', '.join(ROWS)}")
        device = pick(options.get("device", "auto"))
        options = {**(CUDA if device.type == "cuda" else OTHER), **options}
        count, steps, points = (options.pop(name) for name in MEASURING)
        count, points = check.whole("count", count, MIN_COUNT, MAX_COUNT), check.whole("points", points, 1, 100)
        drawing = {"count": count, "seed": 0, **asdict(SamplingConfig(steps=steps, guidance=1.0))}
        options = shared(options, points)
        configs = {name: Config(**{**options, **ROWS[name]}) for name in names}
        every = (
            f"Every row: `{shlex.join(Config(**options).flags())}`; {count:,} digits in {steps} steps at guidance 1."
        )

        reference, lines, found = Reference(device, options.get("data_root", "data")), list(HEAD), {}
        for name, config in configs.items():
            status = train(name, config)
            if status > 128 or status < 0:  # a signal stops the whole table
                return status
            new = [f"| {name} | {flags_of(name)} | did not finish |" + " |" * 4]
            if not status:
                new, measured = rows(name, reference, drawing)
                found |= measured
            lines += new
            print("\n".join(new), flush=True)
        if found:
            draw_picture(found)
    print("\n".join(["", every, "", *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
