"""Command: train and measure one change to the recipe at a time. `python -m training.ablations [NAME …]`

The run of a row is runs/ablation-NAME. A stopped command continues where it was when it is started again.
"""

import argparse
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from model import check, weights
from model.common import sentence_on_error
from model.device import pick
from training.config import Config, add_options
from training.measure.evaluation import MOST, SWEEP_COUNT, Evaluation, Results, drawing_of
from training.measure.reference import Reference
from training.measure.samples import FEWEST, GeneratedSamples
from training.run_folder import CONFIG, FILM, RUNS, WEIGHTS

ALWAYS = {"epochs": 60.0, "preview_every": 20.0}
ROWS = {
    "baseline": {},
    "baseline-again": {"seed": 1},  # the noise of the measurement
    "constant-rate": {"decay_share": 0.0},
    "rate-2e-4": {"lr": 2e-4},
    "rate-5e-4": {"lr": 5e-4},
    "rate-2e-3": {"lr": 2e-3},
    "beta2-0.999": {"beta2": 0.999},
    "time-mean-0.5": {"time_mean": 0.5},
    "time-mean--0.5": {"time_mean": -0.5},
    "time-std-1.5": {"time_std": 1.5},
    "centred": {"pixel_mean": 0.1307},  # the mean of MNIST
    "drop-0.05": {"label_drop": 0.05},
    "drop-0.2": {"label_drop": 0.2},
    "batch-512": {"batch": 512},
    "weight-decay-0": {"weight_decay": 0.0},
    "weight-decay-0.1": {"weight_decay": 0.1},
}
SCALES = (1.0, 1.15, 1.3)
HEAD = (
    "| row | flags | hours | guidance | FD ÷ floor | coverage | class accuracy | FD ÷ floor at 1 |",
    "|---|---|" + "---:|" * 6,
)


def folder_of(name: str) -> Path:
    return RUNS / f"ablation-{name}"


def train(name: str, config: Config) -> int:
    """Train the run of a row to its end, from where it was; returns the trainer's exit status.

    Raises ValueError where the folder holds a run with another configuration: the table would show the wrong flags.
    """
    folder = folder_of(name)
    if begun := (folder / CONFIG).exists():
        saved = Config.load(folder / CONFIG)
        if config.init:  # whose network the run took over
            saved = replace(saved, **config.network())
        if saved.recipe() != config.recipe():
            raise ValueError(f"{folder} holds a run with other flags than these; give those, or move it away")
        if (folder / FILM).exists():  # it is finished
            return 0
    where = ["--resume", str(folder)] if begun else ["--name", folder.name]
    return subprocess.run([sys.executable, "-m", "training.train", *where, *config.flags()]).returncode


def measure(folder: Path, reference: Reference, count: int) -> list[dict]:
    """A row of metrics for each guidance scale, `count` digits; rows saved in the folder are not measured again."""
    samples = GeneratedSamples(str(folder), reference.device)
    results = Results(folder / weights.METRICS, samples)
    evaluation = Evaluation(samples, reference, results, drawing_of(samples, count), "python -m training.ablations")
    return [evaluation.row("sweeps", evaluation.feature_metrics, guidance=scale) for scale in SCALES]


def line(name: str, config: Config, reference: Reference, count: int) -> str:
    """The table line of a trained row, at the guidance scale with the smallest FD."""
    folder = folder_of(name) / WEIGHTS
    rows = measure(folder, reference, count)
    best = min(rows, key=lambda row: row["drawn"]["fd_ratio"])
    hours, drawn = weights.read(folder).metrics["training"]["hours"], best["drawn"]
    return (
        f"| {name} | `{shlex.join(config.flags())}` | {hours} | {best['settings']['guidance']:g} "
        f"| {drawn['fd_ratio']:.2f} | {drawn['coverage']:.1%} | {drawn['accuracy']:.1%} "
        f"| {rows[0]['drawn']['fd_ratio']:.2f} |"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.ablations", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"just these of {', '.join(ROWS)}")
    parser.add_argument("--count", type=int, help="digits per measurement (default 10,000 on CUDA, else 2,000)")
    add_options(parser)
    options = vars(parser.parse_args(argv))
    names, count = options.pop("names") or list(ROWS), options.pop("count")
    with sentence_on_error(parser):
        foreign = sorted(set(names) - set(ROWS))
        if foreign:
            raise ValueError(f"there is no row {', '.join(foreign)}; there are {', '.join(ROWS)}")
        configs = {name: Config(**{**ALWAYS, **options, **ROWS[name]}) for name in names}
        device = pick(options.get("device", "auto"))
        default = SWEEP_COUNT["cuda" if device.type == "cuda" else "other"]
        count = check.whole("count", default if count is None else count, FEWEST, MOST)
        reference, lines = Reference(device, options.get("data_root", "data")), list(HEAD)
        for name, config in configs.items():
            status = train(name, config)
            if status > 128 or status < 0:  # a signal stops the whole table
                return status
            unfinished = f"| {name} | `{shlex.join(config.flags())}` | did not finish |" + " |" * 5
            lines.append(unfinished if status else line(name, config, reference, count))
            print(lines[-1], flush=True)
    print("\n".join(["", *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
