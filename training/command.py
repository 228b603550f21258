"""Shared by the training commands: start, resume or dry-run a run, and train until it ends or a signal arrives."""

import argparse
import signal
import time
from dataclasses import replace
from pathlib import Path

from model import check
from model.common import masked, python, sentence_on_error
from model.device import peak_memory
from training import distributed
from training.config import RESUMABLE, add_options
from training.distributed import print_once
from training.run_folder import CONFIG, RUNS, WEIGHTS, RunFolder, quoted
from training.trainer import Trainer, device_name


def start(trainer: type[Trainer], options: dict, path: Path, preset: str) -> Trainer:
    """Start a run in its own folder and save a first checkpoint; raises ValueError or OSError before writing
    anything."""
    folder = RunFolder(path)
    folder.check_free()
    run = trainer.fresh(options, folder, preset)
    folder.create()
    run.record_start()
    return run


def resume(trainer: type[Trainer], options: dict, path: Path) -> Trainer:
    """Resume the run in a folder from its newest checkpoint; raises ValueError or OSError."""
    if not (path / CONFIG).is_file():
        named = f"; did you mean --resume {quoted(RUNS / path)}?" if (RUNS / path / CONFIG).is_file() else ""
        raise ValueError(f"{path} contains no run to resume{named}")
    config = trainer.config_class.load(path / CONFIG)
    fixed = sorted(name for name, value in options.items() if name not in RESUMABLE and value != getattr(config, name))
    if fixed:
        begin = f" with --init {quoted(path / WEIGHTS)}" if hasattr(config, "init") else ""
        raise ValueError(f"a resumed run keeps its {', '.join(fixed)}; to change it, start another run{begin}")
    folder = RunFolder(path)
    run = trainer(replace(config, **options), folder)
    folder.claim()
    run.restore()
    run.record_start()
    return run


def dry_run(run: Trainer) -> None:
    """Print what the run would do and take one step; writes nothing."""
    parameters = sum(parameter.numel() for parameter in run.network.parameters())
    images = run.total * run.config.batch
    print_once(run.config.command(distributed.launcher()))
    print_once(f"{run.total:,} steps of {run.config.batch}: {images:,} images of {run.data}")
    print_once(f"{parameters:,} parameters on {device_name(run.device)}")
    if run.config.compile:
        print_once("Compiling the network and taking one step …")
    started = time.monotonic()
    norm = run.advance().item()
    loss, taken = distributed.sum_over_ranks(run.loss_sum).item() / distributed.world_size(), time.monotonic() - started
    rate = run.optimizer.param_groups[0]["lr"]
    what = "One step, including compilation" if run.config.compile else "One step"
    print_once(f"{what}: {taken:.1f} s, loss {loss:.4f}, gradient norm {norm:.4f}, rate {rate:.1e}")
    print_once(
        f"Peak memory of the {'GPU' if run.device.type == 'cuda' else 'process'}: {peak_memory(run.device):.1f} GB"
    )


def train(run: Trainer) -> int:
    """Train until the end or a signal; returns the exit status."""
    folder = run.folder
    work = f"{run.total:,} steps of {run.config.batch} on {run.device}, {run.data}"
    print_once(f"{folder.path}: {work}, from step {run.step}")

    def stop(number, frame):
        run.stopped_by = number

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        run.train()
    except OSError as error:
        reason = f"{masked(error)}; fix this and continue with --resume {quoted(folder.path)}"
        if folder.is_lost():
            reason = f"{folder.path} is gone or now belongs to another run"
        raise OSError(f"stopped at step {run.step}: {reason}") from None
    finally:
        for number, before in handlers.items():
            signal.signal(number, before)
        folder.release()
    if run.stopped_by and run.step < run.total:
        command = f"{distributed.launcher()} -m {run.config.program} --resume {quoted(folder.path)}"
        print_once(f"Stopped at step {run.step}. Continue with: {command}")
        return 128 + run.stopped_by
    print_once(f"Done. Draw with it: {python('app.py', '--weights', folder.path / WEIGHTS)}")
    return 0


def main(argv: list[str] | None, trainer: type[Trainer], about: str) -> int:
    """The command line of `trainer`; `about` is the command's docstring. Returns the exit status."""
    config = trainer.config_class
    parser = argparse.ArgumentParser(prog=f"python -m {config.program}", description=about.splitlines()[0])
    parser.add_argument(
        "--preset", choices=trainer.presets, default="full", help="default values of the other flags (default full)"
    )
    parser.add_argument(
        "--name", default="", help=f"name of the run, saved in runs/NAME (default: {trainer.default_name}PRESET)"
    )
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="resume the run in this folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what the run would do, take one step, write nothing"
    )
    add_options(parser, config)
    options = vars(parser.parse_args(argv))
    preset, name, folder, dry = (options.pop(key) for key in ("preset", "name", "resume", "dry_run"))
    with sentence_on_error(parser):
        distributed.join(options.get("device", "auto"))
        if dry and folder:
            raise ValueError("--dry-run only works for a new run; leave out --resume")
        path, status = folder or RUNS / check.plain_name("--name", name or trainer.default_name + preset), 0
        if dry:
            dry_run(trainer.fresh(options, RunFolder(path), preset))
        else:
            run = resume(trainer, options, path) if folder else start(trainer, options, path, preset)
            status = train(run)
        distributed.leave()  # not after an error: the other processes would have to get here too
        return status
