"""Checkpoints: the resumable state of a run, written atomically and verified by checksum.

A checkpoint is written under a temporary name, flushed to disk and renamed; the previous one is kept.
"""

import os
import zipfile
from pathlib import Path

import torch

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def save(folder: Path, state: dict) -> None:
    """Make `state` the newest checkpoint of a run folder; at every moment at least one whole checkpoint exists.

    Raises OSError where it cannot be written; existing checkpoints stay as they are.
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
        cause = error if isinstance(error, OSError) else error.__context__  # torch wraps a full disk in a RuntimeError
        if not isinstance(cause, OSError):
            raise
        raise OSError(f"no checkpoint can be written to {folder}: {cause.strerror}") from None


def flush(folder: Path) -> None:
    """Flush a directory to disk; without it, a crash of the machine could undo a renaming."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load(folder: Path) -> tuple[dict, str]:
    """The newest whole checkpoint of a run folder, on the CPU, and a sentence about any damaged one (or "").

    Raises OSError when none is whole.
    """
    damage = ""
    for name in (NEWEST, PREVIOUS, NEWEST + ".new"):  # the last is whole after a kill just before its renaming
        path = folder / name
        if not path.exists():
            continue
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load ignores checksums, zipfile verifies them
                if archive.testzip() is None:
                    return torch.load(path, map_location="cpu", weights_only=True), damage
        except MemoryError:
            raise
        except Exception as error:  # a flipped bit may raise anything
            readable = not isinstance(error, OSError)
        else:
            readable = True
        if readable:  # set it aside: saving would otherwise let it replace the whole one
            os.replace(path, path.with_name(path.name + ".damaged"))
        damage = f"{path} is damaged; continuing from the previous checkpoint."
    raise OSError(f"{folder} holds no whole checkpoint to resume from")
