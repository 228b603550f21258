"""Command: one change at a time to the recipe, each trained and measured, as a table. `python -m training.rows [NAME …]`

The run of a row is runs/rows/NAME. Stopped and started again, the command goes on where it was; the winner becomes the default by hand.
"""

import argparse
import shlex
import sys
from pathlib import Path

from model import check, weights
from model.command import sentence_on_error
from model.device import pick
from training import train
from training.benchmark import forget
from training.config import Config, add_options
from training.evaluate import MOST, SWEEP_COUNT, Evaluation, Results, Ruler
from training.subject import FEWEST, FromWeights

# Every row keeps these averages too; at 60 epochs the ramp holds the recipe's 500,000 images at 186,000.
ALWAYS = {"epochs": 60.0, "preview_every": 20.0, "ema_also": "100000,20000"}
DECAY = {"decay_share": 0.4}
ROWS = {
    "reference": {},
    "reference-again": {"seed": 1},  # the noise of the measure
    "decay": DECAY,
    "rate-4e-4": {**DECAY, "lr": 4e-4},
    "rate-1e-3": {**DECAY, "lr": 1e-3},
    "time-mean-0.5": {**DECAY, "time_mean": 0.5},
    "time-mean--0.5": {**DECAY, "time_mean": -0.5},
    "time-std-1.5": {**DECAY, "time_std": 1.5},
    "centred": {**DECAY, "pixel_mean": 0.1307},  # the mean of MNIST
    "drop-0.05": {**DECAY, "label_drop": 0.05},
    "drop-0.2": {**DECAY, "label_drop": 0.2},
    "batch-512": {**DECAY, "batch": 512},
    "weight-decay-0": {**DECAY, "weight_decay": 0.0},
    "weight-decay-0.1": {**DECAY, "weight_decay": 0.1},
}
SCALES = (1.0, 1.25, 1.5)
HEAD = (
    "| row | flags | hours | half-life | guidance | FD ÷ floor | coverage | class accuracy | FD ÷ floor at 1 |",
    "|---|---|" + "---:|" * 7,
)


def flags(config: Config) -> list[str]:
    """What the command of the trainer needs for this configuration."""
    return shlex.split(config.command())[3:]


def trained(name: str, config: Config) -> int:
    """Train the run of a row to its end, from where it was; returns the trainer's status.

    Raises ValueError where the run that is there has another configuration: the table would name flags that it was not trained with.
    """
    folder = Path("runs/rows") / name
    begun = (folder / "config.json").exists()
    if begun and Config.load(folder / "config.json") != config:
        raise ValueError(f"{folder} holds a run with other flags than these; give those, or move it away")
    forget()
    try:
        return train.main([*(["--resume", str(folder)] if begun else ["--name", f"rows/{name}"]), *flags(config)])
    except SystemExit as stop:  # it has said why
        return int(stop.code or 0)


def measured(folder: Path, ruler: Ruler, count: int) -> list[dict]:
    """A row of figures for each guidance scale, `count` digits in 20 steps; what is saved in the folder is not measured again."""
    subject = FromWeights(str(folder), ruler.device)
    drawing = {"count": count, "steps": 20, "guidance": 1.0, "time_shift": subject.time_shift, "seed": 0}
    evaluation = Evaluation(subject, ruler, Results(folder / weights.METRICS, subject), folder, drawing, "python -m training.rows")
    return [evaluation.row("sweeps", evaluation.compared, guidance=scale) for scale in SCALES]


def line(name: str, config: Config, ruler: Ruler, count: int) -> str:
    """The line of a trained row: the average and the guidance scale that are nearest to the training set."""
    run = Path("runs/rows") / name
    found = {folder: measured(run / folder, ruler, count) for folder in config.half_lives()}
    ratio = {(folder, i): row["drawn"]["fd_ratio"] for folder, rows in found.items() for i, row in enumerate(rows)}
    folder, i = min(ratio, key=ratio.get)
    row, training = found[folder][i], weights.read(run / folder)[1]["training"]
    drawn, half_life = row["drawn"], min(config.half_lives()[folder], config.ema_ramp * training["images"])
    return (
        f"| {name} | `{shlex.join(flags(config))}` | {training['hours']} | {half_life:,.0f} | {row['settings']['guidance']:g} "
        f"| {drawn['fd_ratio']:.2f} | {drawn['coverage']:.1%} | {drawn['accuracy']:.1%} | {ratio[folder, 0]:.2f} |"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.rows", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"just these of {', '.join(ROWS)}")
    parser.add_argument("--count", type=int, help="digits that each figure is of (default 10,000 on CUDA, else 2,000)")
    add_options(parser)
    options = vars(parser.parse_args(argv))
    names, count = options.pop("names") or list(ROWS), options.pop("count")
    with sentence_on_error(parser):
        foreign = sorted(set(names) - set(ROWS))
        if foreign:
            raise ValueError(f"there is no row {', '.join(foreign)}; there are {', '.join(ROWS)}")
        configs = {name: Config(**{**ALWAYS, **options, **ROWS[name]}) for name in names}
        device = pick(options.get("device", "auto"))
        count = check.whole("count", count or SWEEP_COUNT["cuda" if device.type == "cuda" else "other"], FEWEST, MOST)
        ruler, lines = Ruler(device, options.get("data_root", "data")), list(HEAD)
        for name, config in configs.items():
            status = trained(name, config)
            if status > 128:  # a signal: not the fault of the row
                return status
            unfinished = f"| {name} | `{shlex.join(flags(config))}` | did not finish |" + " |" * 6
            lines.append(unfinished if status else line(name, config, ruler, count))
            print(lines[-1], flush=True)
    print("\n".join(["", *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
