"""Command: train the network. `python -m training.train` is the recipe of the released weights.

A run lives in `runs/NAME/`: config.json, history.jsonl (one line per start), metrics.jsonl, previews/, checkpoint.pt,
weights/ ready to draw with, and at its end previews.gif and loss.png. With several GPUs: `torchrun --nproc_per_node=N
-m training.train`.
"""

import argparse
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from model import check, weights
from model.common import python, sentence_on_error
from model.device import peak_memory
from training import distributed
from training.config import NETWORK, PRESETS, RESUMABLE, Config, add_options
from training.distributed import print_once
from training.run_folder import CONFIG, RUNS, WEIGHTS, RunFolder, quoted
from training.trainer import Trainer, device_name


def fresh(options: dict, folder: RunFolder, preset: str) -> Trainer:
    """A run at its first step, from the weights of --init if given; writes nothing. Raises ValueError or OSError."""
    config = Config(**{**PRESETS[preset], **options})
    if not config.init:
        return Trainer(config, folder)
    loaded = weights.load(config.init, dtype=torch.float32)
    config = replace(config, **{name: getattr(loaded.network, name) for name in NETWORK})
    other = sorted(name for name in options if name in NETWORK and options[name] != getattr(config, name))
    if other:
        raise ValueError(f"the weights in {config.init} have another {', '.join(other)}; leave it out")
    return Trainer(config, folder, loaded)


def start(options: dict, path: Path, preset: str) -> Trainer:
    """A new run in its own folder, with a first checkpoint to resume from; raises ValueError or OSError before writing
    anything."""
    folder = RunFolder(path)
    folder.check_free()
    run = fresh(options, folder, preset)
    folder.create()
    run.record_start()
    return run


def resume(options: dict, path: Path) -> Trainer:
    """The run of a folder at its newest checkpoint; raises ValueError or OSError."""
    if not (path / CONFIG).is_file():
        named = f"; did you mean --resume {quoted(RUNS / path)}?" if (RUNS / path / CONFIG).is_file() else ""
        raise ValueError(f"{path} holds no run to continue{named}")
    config = Config.load(path / CONFIG)
    fixed = sorted(name for name, value in options.items() if name not in RESUMABLE and value != getattr(config, name))
    if fixed:
        raise ValueError(
            f"a resumed run keeps its {', '.join(fixed)}; to change it, start another run with "
            f"--init {quoted(path / WEIGHTS)}"
        )
    folder = RunFolder(path)
    folder.check_data(config.data)
    run = Trainer(replace(config, **options), folder)
    folder.claim()
    run.restore()
    run.record_start()
    return run


def dry_run(run: Trainer) -> None:
    """Print what the run would do, and take one step; writes nothing."""
    parameters = sum(parameter.numel() for parameter in run.network.parameters())
    images = run.total * run.config.batch
    print_once(run.config.command(distributed.launcher()))
    print_once(f"{run.total:,} steps of {run.config.batch}: {images:,} images of {run.config.data}")
    print_once(f"{parameters:,} parameters on {device_name(run.device)}")
    started = time.monotonic()
    norm = run.advance().item()
    loss, taken = distributed.sum_over_ranks(run.loss_sum).item() / distributed.world_size(), time.monotonic() - started
    rate = run.optimizer.param_groups[0]["lr"]
    print_once(
        f"One step, compiling included: {taken:.1f} s, loss {loss:.4f}, gradient norm {norm:.4f}, rate {rate:.1e}"
    )
    print_once(
        f"Peak memory: {peak_memory(run.device):.1f} GB of the {'GPU' if run.device.type == 'cuda' else 'process'}"
    )


def train(run: Trainer) -> int:
    """Train until the end or a signal; returns the exit status."""
    folder = run.folder
    work = f"{run.total:,} steps of {run.config.batch} on {run.device}, {run.config.data}"
    print_once(f"{folder.path}: {work}, from step {run.step}")

    def stop(number, frame):
        run.stopped_by = number

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        run.train()
    except OSError as error:
        if folder.is_lost():
            raise OSError(
                f"stopped at step {run.step}, because {folder.path} is gone, or belongs to another run by now"
            ) from None
        reason = " ".join(str(error).split())
        raise OSError(
            f"stopped at step {run.step}, {reason}; fix that and continue with --resume {quoted(folder.path)}"
        ) from None
    finally:
        for number, before in handlers.items():
            signal.signal(number, before)
        folder.release()
    if run.stopped_by and run.step < run.total:
        command = f"{distributed.launcher()} -m training.train --resume {quoted(folder.path)}"
        print_once(f"Stopped at step {run.step}. Continue with: {command}")
        return 128 + run.stopped_by
    print_once(f"Done. Draw with it: {python('app.py', '--weights', folder.path / WEIGHTS)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset", choices=PRESETS, default="full", help="what the other flags start from (default full)"
    )
    parser.add_argument("--name", default="", help="the run is runs/NAME (default: the preset's name)")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="continue the run in this folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what the run would do, take one step, write nothing"
    )
    add_options(parser)
    options = vars(parser.parse_args(argv))
    preset, name, folder, dry = (options.pop(key) for key in ("preset", "name", "resume", "dry_run"))
    with sentence_on_error(parser):
        distributed.join(options.get("device", "auto"))
        if dry and folder:
            raise ValueError("--dry-run is for a new run; leave out --resume")
        path, status = folder or RUNS / check.plain_name("--name", name or preset), 0
        if dry:
            dry_run(fresh(options, RunFolder(path), preset))
        else:
            status = train(resume(options, path) if folder else start(options, path, preset))
        distributed.leave()  # not after an error: the other processes would have to come here too
        return status


if __name__ == "__main__":
    sys.exit(main())
