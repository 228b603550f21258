"""Weights: from a folder or a Hub repository to a network that is ready to draw, and back into a folder.

A folder of weights holds `config.json` (the arguments of `DiT`), `model.safetensors` (float16) and `metrics.json`,
which keeps the sha256 of the other two: a flipped byte would load without a word.
"""

import contextlib
import copy
import hashlib
import inspect
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from model import hub
from model.device import has_bfloat16
from model.dit import DiT

BUNDLED = Path(__file__).parent.parent / "weights"
CONFIG, TENSORS, METRICS = "config.json", "model.safetensors", "metrics.json"
FILES = (CONFIG, METRICS, TENSORS)


@dataclass(frozen=True)
class Weights:
    """A network with weights, and where they came from: `source` is what a person may read.

    `notice` is "", or the sentence that says why these are the bundled weights and not those asked for.
    """

    network: DiT
    source: str
    metrics: dict
    notice: str = ""


def load(where: str | None = None, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Weights:
    """The network with the weights named by `where`, else by the variable `WEIGHTS`, else the bundled ones.

    `where` is a folder, or a Hub repository `USER/NAME` or `USER/NAME@revision`. It computes in `dtype`;
    by default in bfloat16 where the device multiplies that in hardware, else in float32.
    Raises ValueError or OSError, in one sentence, for weights that are missing, damaged or not this network's.
    """
    where = where or os.environ.get("WEIGHTS") or str(BUNDLED)
    if Path(where).is_dir():
        source = "bundled" if BUNDLED.is_dir() and BUNDLED.samefile(where) else where
        network, metrics = read(Path(where))
    else:
        folder, source = download(where)
        try:
            network, metrics = read(folder)
        except ValueError as error:
            hub.forget(folder, FILES)
            raise ValueError(str(error).replace(str(folder), where)) from None
    dtype = dtype or (torch.bfloat16 if has_bfloat16(torch.device(device)) else torch.float32)
    return Weights(network.to(device, dtype).requires_grad_(False), source, metrics)


def load_or_bundled(where: str | None = None, device: torch.device | str = "cpu") -> Weights:
    """As `load`, but the bundled weights and a notice in place of an error, which is raised only when those are no good either."""
    try:
        return load(where, device)
    except (ValueError, OSError) as error:
        with contextlib.suppress(ValueError, OSError):
            return replace(load(str(BUNDLED), device), notice=f"Drawn with the bundled weights: {' '.join(str(error).split())}.")
        raise


def read(folder: Path) -> tuple[DiT, dict]:
    """The network and `metrics.json` of a folder of weights, checked: names, hashes, every tensor, every number finite."""
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}, so there are no weights to draw with")
    try:
        metrics = json.loads((folder / METRICS).read_text()) if (folder / METRICS).is_file() else {}
        config = json.loads((folder / CONFIG).read_text())
    except ValueError:
        raise ValueError(f"{folder} holds a {CONFIG} or {METRICS} that is no JSON") from None
    if not isinstance(config, dict) or not isinstance(metrics, dict):
        raise ValueError(f"{folder} holds a {CONFIG} or {METRICS} that is no JSON object")
    for name, expected in metrics.get("sha256", {}).items():
        if sha256(folder / name) != expected:
            raise ValueError(f"{folder / name} is damaged: its sha256 is not the one kept in {METRICS}; fetch or train it again")
    foreign = set(config) - set(inspect.signature(DiT).parameters)
    if foreign:
        raise ValueError(f"{folder / CONFIG} is not this network's: it knows no {', '.join(sorted(foreign))}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it says on stdout that it loads
            network = DiT.from_pretrained(folder, strict=True)
    except SafetensorError:
        raise ValueError(f"{folder / TENSORS} is damaged or cut short; fetch or train it again") from None
    except RuntimeError:
        raise ValueError(f"{folder / TENSORS} does not hold the tensors of the network in {CONFIG}") from None
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        raise ValueError(f"{folder / TENSORS} holds numbers that are not finite")
    return network, metrics


def save(network: DiT, folder: Path, metrics: dict) -> None:
    """Write a folder of weights in float16, with `metrics` and the hashes; an older folder gives way once the new one is whole.

    Raises OSError where it cannot be written.
    """
    with replacing_folder(folder) as new:
        try:
            copy.deepcopy(network).cpu().half().save_pretrained(new)
        except SafetensorError as error:
            raise OSError(f"no weights can be written to {folder}: {error}") from None
        (new / "README.md").unlink(missing_ok=True)  # the mixin's own card says nothing about these weights
        hashes = {name: sha256(new / name) for name in (CONFIG, TENSORS)}
        (new / METRICS).write_text(json.dumps({**metrics, "sha256": hashes}, indent=2) + "\n")


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A path for a new folder, which takes the place of `folder` once the block has ended without an error."""
    folder = Path(folder)
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal; FileNotFoundError when it is missing."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(where: str) -> tuple[Path, str]:
    """The cached folder of a Hub repository `USER/NAME[@revision]`, and `USER/NAME@commit`; raises OSError, in one sentence."""
    return hub.download(where, FILES)
