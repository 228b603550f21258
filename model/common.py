"""Helpers of commands and libraries: one-line errors, atomic writes, hashes, the git commit."""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHARED = {
    "--weights": {"help": "a folder or USER/NAME[@revision] (default: the variable WEIGHTS, else the bundled weights)"},
    "--steps": {"type": int, "help": "sampling steps, 1 to 50 (default: from the weights)"},
    "--guidance": {"type": float, "help": "guidance scale, 0 to 5 (default: from the weights)"},
    "--seed": {"type": int, "default": 0, "help": "seed of the first digit; each further digit adds 1 (default 0)"},
    "--device": {"default": "auto", "help": "auto, cpu, cuda or mps (default auto)"},
    "--data-root": {"default": "data", "help": "folder of the data sets (default data)"},
}


def add_shared(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add options shared by several commands, by name."""
    for name in names:
        parser.add_argument(name, **SHARED[name])


def masked(text) -> str:
    """A text or an error as one line that is safe to show: credentials in URLs and the Hub's tokens are masked, control
    characters replaced."""
    if isinstance(text, OSError) and text.strerror:  # str() would begin with the errno
        text = f"{text.filename}: {text.strerror}" if text.filename else text.strerror
    line = re.sub(r"(?<=//)[^/\s]+@", "***@", " ".join(str(text).split()))
    line = re.sub(r"\bhf_\w+", "hf_***", line)
    return "".join(character if character.isprintable() else "?" for character in line)


@contextmanager
def sentence_on_error(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Turn the errors a user can fix (ValueError, OSError) and Ctrl-C into one line on stderr, with exit status 2 or
    130."""
    try:
        yield
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {masked(error)}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: stopped\n")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make an OSError name `path` instead of the temporary file beside it."""
    try:
        yield
    except OSError as error:
        if error.strerror:
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix, that replaces `path` once the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a path for a new folder; it replaces `folder` when the block ends without an error."""
    folder = Path(folder)
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        with naming(folder):
            yield new
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def python(*words) -> str:
    """A shell command, properly quoted, that runs this interpreter with `words`.

    It is called `python` if that name runs this interpreter, else by its path, relative to the current folder if it is
    inside.
    """
    here = Path(sys.executable)
    first = shutil.which("python")
    if first and Path(first).parent == here.parent and here.samefile(first):
        here = "python"
    elif here.is_relative_to(Path.cwd()):
        here = here.relative_to(Path.cwd())
    return shlex.join(map(str, [here, *words]))


def sha256(path: Path) -> str:
    """The hash of a file in hexadecimal; raises FileNotFoundError when it is missing."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_commit() -> str:
    """The current commit, with a + if tracked files differ from it; "" outside a repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    except OSError:  # git is not installed
        return ""
