"""Checkpoints: the resumable state of a run, written atomically and verified by checksum.

A checkpoint is written under a temporary name, flushed to disk and renamed; the previous one is kept.
"""

import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def save(folder: Path, state: dict) -> None:
    """Save `state` as the newest checkpoint of a run folder; at least one intact checkpoint exists at any time.

    Raises OSError if it cannot be written; existing checkpoints are kept.
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
        raise OSError(f"cannot write a checkpoint to {folder}: {cause.strerror}") from None


def flush(folder: Path) -> None:
    """Flush a directory to disk; otherwise a machine crash could undo a rename."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load(folder: Path, accept: Callable[[object], None] = lambda state: None) -> tuple[dict, str]:
    """Load the newest intact checkpoint that `accept` accepts, on the CPU; also returns a notice about any newer one
    (or "").

    `accept` raises ValueError to reject a state. Raises ValueError if it rejects all intact checkpoints, OSError if no
    checkpoint is intact.
    """
    rejected, notice, reason = [], "", ""
    for name in (NEWEST, PREVIOUS, NEWEST + ".new"):  # the last is left by a kill just before the rename
        path = folder / name
        if not path.exists():
            continue
        try:
            state = read(path)
            accept(state)
        except OSError:  # it may be intact and readable later
            notice = notice or f"{path} is damaged"
        except zipfile.BadZipFile:
            rejected.append(path)
            notice = notice or f"{path} is damaged"
        except ValueError as error:
            rejected.append(path)
            reason = reason or str(error)  # keeping the error would keep its frames and thus the lock alive
            notice = notice or str(error)
        else:
            for other in rejected:  # otherwise the next save would replace the intact one with it
                with suppress(FileNotFoundError):  # another process of this run was faster
                    os.replace(other, other.with_name(other.name + ".damaged"))
            return state, notice and f"{notice}; continuing from the previous checkpoint."
    if reason:
        raise ValueError(reason)
    raise OSError(f"{folder} holds no intact checkpoint to resume from")


def read(path: Path):
    """The content of a checkpoint; raises BadZipFile if it is damaged, OSError if it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load ignores checksums, zipfile verifies them
            if archive.testzip() is None:
                return torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # a flipped bit may raise anything
        raise zipfile.BadZipFile from error
    raise zipfile.BadZipFile
