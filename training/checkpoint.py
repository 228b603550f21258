"""Checkpoints: the resumable state of a run, never half-written and never believed when damaged.

A checkpoint is written under a temporary name, flushed to disk and renamed; the one before it is kept.
"""

import os
import zipfile
from pathlib import Path

import torch

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def save(folder: Path, state: dict) -> None:
    """Make `state` the newest checkpoint of a run folder; at every moment at least one whole checkpoint is there.

    Raises OSError where it cannot be written; the checkpoints that are there stay as they are.
    """
    new = folder / (NEWEST + ".new")
    try:
        with open(new, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if (folder / NEWEST).exists():
            os.replace(folder / NEWEST, folder / PREVIOUS)
        os.replace(new, folder / NEWEST)
        flush(folder)
    except (OSError, RuntimeError) as error:
        new.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__  # on a full disk torch raises a RuntimeError over the OSError
        if not isinstance(cause, OSError):
            raise
        raise OSError(f"no checkpoint can be written to {folder}: {cause.strerror}") from None


def flush(folder: Path) -> None:
    """The names in a folder to disk, without which a crash of the machine could undo a renaming."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load(folder: Path) -> tuple[dict, str]:
    """The newest whole checkpoint of a run folder, on the CPU, and a sentence about damage found on the way (or "").

    Raises OSError when none is whole.
    """
    damage = ""
    for name in (NEWEST, PREVIOUS, NEWEST + ".new"):  # the last is whole where a kill came just before its renaming
        path = folder / name
        if not path.exists():
            continue
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load does not compare checksums, zipfile does
                if archive.testzip() is None:
                    return torch.load(path, map_location="cpu", weights_only=True), damage
        except MemoryError:
            raise
        except Exception as error:  # a flipped bit may raise anything
            readable = not isinstance(error, OSError)
        else:
            readable = True
        if readable:  # else the next checkpoint would push it over the whole one
            os.replace(path, path.with_name(path.name + ".damaged"))
        damage = f"{path} is damaged; going on from the checkpoint before it."
    raise OSError(f"{folder} holds no whole checkpoint to resume from")
