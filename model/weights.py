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
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError

from model.dit import DiT

BUNDLED = Path(__file__).parent.parent / "weights"
CONFIG, TENSORS, METRICS = "config.json", "model.safetensors", "metrics.json"


@dataclass(frozen=True)
class Weights:
    """A network with weights, and where they came from: `source` is what a person may read."""

    network: DiT
    source: str
    metrics: dict


def load(where: str | None = None, device: torch.device | str = "cpu") -> Weights:
    """The network with the weights named by `where`, else by the variable `WEIGHTS`, else the bundled ones.

    `where` is a folder, or a Hub repository `USER/NAME` or `USER/NAME@revision`.
    Raises ValueError or OSError, in one sentence, for weights that are missing, damaged or not this network's.
    """
    where = where or os.environ.get("WEIGHTS") or str(BUNDLED)
    if Path(where).is_dir():
        folder, source = Path(where), "bundled" if Path(where).samefile(BUNDLED) else where
    else:
        folder, source = download(where)
    network, metrics = read(folder)
    return Weights(network.to(device).requires_grad_(False), source, metrics)


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
    """Write a folder of weights in float16, with `metrics` and the hashes; an older folder is replaced in one move."""
    folder = Path(folder)
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    copy.deepcopy(network).cpu().half().save_pretrained(new)
    (new / "README.md").unlink(missing_ok=True)  # the mixin's own card says nothing about these weights
    hashes = {name: sha256(new / name) for name in (CONFIG, TENSORS)}
    (new / METRICS).write_text(json.dumps({**metrics, "sha256": hashes}, indent=2) + "\n")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal; FileNotFoundError when it is missing."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(where: str) -> tuple[Path, str]:
    """The cached folder of a Hub repository `USER/NAME[@revision]`, and `USER/NAME@commit`.

    One bounded request turns the revision into a commit; without a network the cache answers. Raises OSError.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", where):
        raise FileNotFoundError(f"{where} is neither a folder nor a Hub repository USER/NAME[@revision]")
    repo, _, revision = where.partition("@")
    wanted = {"repo_id": repo, "allow_patterns": [CONFIG, TENSORS, METRICS]}
    try:
        commit = HfApi().model_info(repo, revision=revision or None, timeout=5).sha
        folder = snapshot_download(revision=commit, **wanted)
    except HfHubHTTPError as error:
        raise OSError(f"{where} is no folder here, and the Hub does not give it: {str(error).splitlines()[-1]}") from None
    except Exception as unreachable:  # no network: whatever the HTTP library raises for it
        try:
            folder = snapshot_download(revision=revision or None, local_files_only=True, **wanted)
            commit = Path(folder).name
        except LocalEntryNotFoundError:
            reason = type(unreachable).__name__
            raise OSError(f"{where} is no folder here, the Hub cannot be reached ({reason}), and no copy is cached") from None
    return Path(folder), f"{repo}@{commit[:12]}"
