"""The run folder: lock, logs and pictures. With several processes, only the first one writes."""

import json
import math
import shlex
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from model import images, weights
from model.common import replacing
from training import distributed
from training.measure import plots

RUNS = Path("runs")
CONFIG, HISTORY, METRICS, WEIGHTS = "config.json", "history.jsonl", "metrics.jsonl", "weights"
KEPT = "kept"  # intermediate weights, in folders named by step
FILM = "previews.gif"  # the last file that a run writes
FIELDS = {  # required in every line of a log, with their types
    HISTORY: {"commit": str, "device": str, "torch": str},
    METRICS: {"step": int, "images": int, "loss": float | None},
}


def quoted(path: Path) -> str:
    """A path quoted for the shell."""
    return shlex.quote(str(path))


class RunFolder:
    """`runs/NAME`, written by one process at a time."""

    def __init__(self, path: Path):
        self.path = path
        self.writes = distributed.rank() == 0
        self.lock = FileLock(path / ".lock", timeout=0)
        self.lock_inode = None

    # ---- one process at a time

    def holds_run(self) -> bool:
        return (self.path / CONFIG).exists()

    def check_free(self) -> None:
        """Raise ValueError if the folder already holds a run."""
        if self.writes and self.holds_run():
            raise ValueError(
                f"{self.path} already holds a run; continue it with --resume {quoted(self.path)}, "
                "or choose another --name"
            )

    def create(self) -> None:
        """Claim the folder for a new run; removes the history of a start killed before it saved its configuration."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.claim()
        self.check_free()
        if self.writes:
            (self.path / HISTORY).unlink(missing_ok=True)

    def check_data(self, data: str, sha256: str | None = None) -> None:
        """Raise ValueError if the run began with another data set or, if the hash is given, with other images."""
        if not self.began_with(data, sha256):
            raise ValueError(
                f"the run in {self.path} began with other images than those in {data}; restore them, or start another "
                f"run with --init {quoted(self.path / WEIGHTS)}"
            )

    def began_with(self, data: str, sha256: str | None) -> bool:
        """Whether every start of the run recorded this data set and, if given, this hash of the training data."""
        return all(
            start.get("data", data) == data and start.get("data_sha256", sha256) == (sha256 or start.get("data_sha256"))
            for start in self.rows(HISTORY)
        )

    def claim(self) -> None:
        """Lock the folder until `release` or the end of the process; raises ValueError if another process holds it."""
        if self.writes:
            try:
                self.lock.acquire()
            except Timeout:
                raise ValueError(
                    f"another process is training in {self.path}; wait for it, or choose another --name"
                ) from None
            self.lock_inode = self.inode()

    def release(self) -> None:
        if self.writes:
            self.lock.release()

    def inode(self) -> int | None:
        """The inode of the lock file, which reveals that another file has replaced it under the same name."""
        try:
            return (self.path / ".lock").stat().st_ino
        except FileNotFoundError:
            return None

    def is_lost(self) -> bool:
        """Whether the folder is gone or belongs to a later run."""
        return self.writes and self.inode() != self.lock_inode

    # ---- logs

    def append_row(self, name: str, row: dict) -> None:
        """Add a line to a .jsonl file."""
        if self.writes:
            with open(self.path / name, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def rows(self, name: str) -> list[dict]:
        """The rows of a .jsonl file, without lines that are truncated or not written by this trainer."""
        return [row for line in self.lines(name) if (row := parsed(line, FIELDS[name]))]

    def lines(self, name: str) -> list[bytes]:
        log = self.path / name
        return log.read_bytes().splitlines() if log.exists() else []

    def clean_logs(self, step: int) -> None:
        """Drop unreadable lines of both logs, with a message, and lines of metrics.jsonl after the resumed step."""
        for name in (HISTORY, METRICS) if self.writes else ():
            rows = self.rows(name)
            if dropped := len(self.lines(name)) - len(rows):
                print(f"{self.path / name}: unreadable lines dropped ({dropped}).")
            kept = [json.dumps(row) + "\n" for row in rows if name == HISTORY or row["step"] <= step]
            with replacing(self.path / name) as new:
                new.write_text("".join(kept), encoding="utf-8")

    def saved_weights_step(self) -> int | None:
        """The step of the saved weights; None if unknown."""
        try:
            return weights.read_metrics(self.path / WEIGHTS / weights.METRICS)["training"]["steps"]
        except (ValueError, KeyError, TypeError):
            return None

    # ---- pictures

    def save_preview(self, step: int, pixels: torch.Tensor) -> None:
        """Write the preview of a step, one image per class, uint8 `[N, 28, 28]`."""
        (self.path / "previews").mkdir(exist_ok=True)
        with replacing(self.path / "previews" / f"{step:07d}.png") as new:
            images.sheet(pixels, columns=6, scale=4).save(new)

    def plot_run(self) -> None:
        """Write loss.png and previews.gif."""
        if not self.writes:
            return
        rows = [row for row in self.rows(METRICS) if math.isfinite(row["loss"] or math.nan)]
        try:
            if rows:
                plots.loss_curve(self.path / "loss.png", rows)
        except ImportError:
            print("No loss.png, because matplotlib is not installed (see requirements-dev.txt).")
        plots.growth(self.path / FILM, sorted((self.path / "previews").glob("[0-9]*.png")))


def parsed(line: bytes, fields: dict) -> dict | None:
    """The JSON object of a line if it has fields of these types, else None."""
    try:
        row = json.loads(line.decode())
        return row if all(isinstance(row[name], kind) for name, kind in fields.items()) else None
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
