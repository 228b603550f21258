"""Weights: from a folder or a Hub repository to a network that is ready to draw, and back into a folder.

A folder of weights holds `config.json` (the kind of network and its arguments), `model.safetensors` (float16),
`sampling.json` (the defaults to draw with) and `metrics.json`, which keeps the sha256 of the first two: a flipped byte
would load silently. That of a flow map may hold the velocity weights it was distilled from in the folder `teacher/`.
"""

import contextlib
import copy
import hashlib
import inspect
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from model import check, hub
from model.common import masked, replacing_folder, sha256
from model.device import has_bfloat16
from model.dit import MAX_SIZE, DiT
from model.flow_map import FlowMap
from model.sampling import SamplingConfig

BUNDLED = Path(__file__).parent.parent / "weights"
CONFIG, TENSORS, METRICS, SAMPLING = "config.json", "model.safetensors", "metrics.json", "sampling.json"
FILES = (CONFIG, METRICS, TENSORS)  # of every repository; `sampling.json` is optional
MOVED = {"time_shift": "time_shift", "default_guidance": "guidance"}  # in config.json before there was a sampling.json
KINDS = {network.kind: network for network in (DiT, FlowMap)}  # `kind` in config.json; a velocity network needs none
TEACHER = "teacher"  # in the folder of a flow map: the weights that it was distilled from
TEACHER_FROM = 9  # steps, from which on the teacher draws better
UNWRITTEN = {"qk_norm": True, "predicts_image": False}.items()  # not in config.json: only ablations differ
LARGEST = 10_000_000  # bytes of a JSON file
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
OF_TEACHER = tuple(f"{TEACHER}/{name}" for name in (*FILES, SAMPLING))

# What metrics.json may hold, by `check.typed`.
NUMBER, FIGURES = int | float, {...: int | float}
TRAINING = {
    **dict.fromkeys(("epochs", "steps", "images", "batch", "lr", "hours"), NUMBER),
    **dict.fromkeys(("data", "device", "torch", "commit", "command"), str),
}
TRAINING["initialized_from"] = TRAINING
ROW = {
    "settings": {
        "count": int,
        **dict.fromkeys(("steps", "guidance", "time_shift"), NUMBER | None),  # None for digits from a file
        "sampler": str | None,
        **dict.fromkeys(("sha256", "extractor"), str),
    },
    **dict.fromkeys(("drawn", "real"), FIGURES),
    "blank": {...: FIGURES},
    "extractor_accuracy": NUMBER,
    **dict.fromkeys(("device", "torch", "command", "commit"), str),
}
RECORDS = {"sha256": {...: str}, "training": TRAINING, "evaluation": ROW, "sweeps": [ROW], "cas": [ROW]}


@dataclass(frozen=True)
class Weights:
    """A network with its weights, how to draw with it, and where it came from.

    `source` is a description for people. `notice` is "", or says why these are the bundled weights and not those asked
    for, or are without their teacher. `teacher` are the velocity weights that a flow map was distilled from, where they
    are at hand.
    """

    network: DiT
    sampling: SamplingConfig
    source: str
    metrics: dict
    notice: str = ""
    teacher: "Weights | None" = None

    def network_for(self, steps: int) -> DiT:
        """The network that draws best in so many steps: a flow map in few of them, its teacher in many."""
        return self.teacher.network if self.teacher and steps >= TEACHER_FROM else self.network

    def alone(self) -> "Weights":
        """The same for a page that has no room for a teacher: by default it draws in few steps then."""
        if not self.teacher:
            return self
        steps = min(self.sampling.steps, TEACHER_FROM - 1)
        return replace(self, teacher=None, sampling=replace(self.sampling, steps=steps))


def load(where: str | None = None, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Weights:
    """The weights named by `where`, else by the variable `WEIGHTS`, else the bundled ones.

    `where` is a folder, or a Hub repository `USER/NAME` or `USER/NAME@revision`. The network computes in `dtype`;
    by default in bfloat16 where the device multiplies that in hardware, else in float32.
    Raises ValueError or OSError, in one sentence, for weights that are missing, damaged or of another network.
    """
    where = where or os.environ.get("WEIGHTS") or str(BUNDLED)
    if Path(where).is_dir():
        source = "bundled" if BUNDLED.is_dir() and BUNDLED.samefile(where) else where
        weights = with_teacher(read(Path(where)), Path(where))
    else:
        folder, source = download(where)
        try:
            weights = read(folder)
        except ValueError as error:
            hub.forget(folder, (*FILES, SAMPLING))
            raise ValueError(str(error).replace(str(folder), where)) from None
        if isinstance(weights.network, FlowMap):
            download_teacher(source)
            weights = with_teacher(weights, folder)
            if weights.notice:
                hub.forget(folder, OF_TEACHER)
    dtype = dtype or (torch.bfloat16 if has_bfloat16(torch.device(device)) else torch.float32)
    for each in filter(None, (weights, weights.teacher)):
        each.network.to(device, dtype).requires_grad_(False)
    return replace(weights, source=source)


def load_or_bundled(where: str | None = None, device: torch.device | str = "cpu") -> Weights:
    """As `load`, but falls back to the bundled weights with a notice; raises only when those are unusable too.

    The reason goes to stderr: visitors see the notice.
    """
    try:
        return load(where, device)
    except (ValueError, OSError) as error:
        with contextlib.suppress(ValueError, OSError):
            bundled = load(str(BUNDLED), device)
            print(f"The bundled weights are used: {masked(error)}", file=sys.stderr)
            asked = masked(where or os.environ.get("WEIGHTS"))[:60]
            notice = f"Drawn with the bundled weights, because {asked} could not be loaded."
            return replace(bundled, notice=notice)
        raise


def read(folder: Path) -> Weights:
    """A folder of weights, checked: file names, types, hash, the shape of every tensor, every number finite."""
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}, so there are no weights to draw with")
    config, metrics = read_json(folder / CONFIG), read_metrics(folder / METRICS)
    expected = metrics.get("sha256", {}).get(TENSORS)
    if expected and sha256(folder / TENSORS) != expected:
        raise damaged(folder / TENSORS, f"damaged: its sha256 differs from the one in {METRICS}")
    sampling = read_sampling(folder, {new: config.pop(old) for old, new in MOVED.items() if old in config})
    if config.get("kind", DiT.kind) not in KINDS:
        raise ValueError(
            f"{folder / CONFIG}: kind must be one of {', '.join(KINDS)}, not {check.shown(config['kind'])}"
        )
    foreign = set(config) - set(inspect.signature(DiT).parameters) - {"kind"}
    if foreign:
        raise ValueError(f"{folder / CONFIG} is not of this network: unknown {check.shown(', '.join(sorted(foreign)))}")
    try:
        network = build(folder / TENSORS, config)
        network.load_state_dict(load_file(folder / TENSORS))
    except SafetensorError:
        raise damaged(folder / TENSORS, "damaged or truncated") from None
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        raise ValueError(f"{folder / TENSORS} holds numbers that are not finite")
    if metrics.get("sha256", {}).get("config", digest(config)) != digest(config):
        raise ValueError(f"{folder / CONFIG} is not the configuration that {METRICS} names by sha256; put that back")
    return Weights(network, sampling, str(folder), metrics)


def with_teacher(weights: Weights, folder: Path) -> Weights:
    """The weights of a folder with their teacher, if it holds one, or with a notice where that cannot be used.

    A flow map draws without its teacher, which is there to be compared with. The reason goes to stderr.
    """
    if not isinstance(weights.network, FlowMap) or not (folder / TEACHER).is_dir():
        return weights
    try:
        return replace(weights, teacher=read_teacher(folder, weights.network))
    except (ValueError, OSError) as error:
        print(f"The flow map draws without its teacher: {masked(error)}", file=sys.stderr)
        return replace(weights, notice="The network that this one was distilled from could not be loaded.")


def read_teacher(folder: Path, network: FlowMap) -> Weights:
    """The velocity weights in the folder `teacher/` of a flow map's, checked as those.

    Raises ValueError or OSError, also for a network of another kind, other classes or other pixels.
    """
    teacher = read(folder / TEACHER)
    if isinstance(teacher.network, FlowMap):
        raise ValueError(f"{folder / TEACHER} holds a flow map itself, not velocity weights; put those there")
    for name in ("class_names", "pixel_mean", "pixel_std"):
        if getattr(teacher.network, name) != getattr(network, name):
            raise ValueError(f"{folder / TEACHER} has another {name} than the flow map; put its own teacher there")
    return teacher


def digest(config: dict) -> str:
    """The sha256 of a configuration whatever its layout and line ends, which git may change."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict:
    """The object in a JSON file, or {} if there is no such file; raises ValueError for anything else."""
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise ValueError
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not valid JSON, or too large") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object")
    return found


def read_metrics(path: Path) -> dict:
    """A metrics.json whose fields have the types of `RECORDS`; raises ValueError for anything else."""
    found = read_json(path)
    try:
        check.typed(f"{path}: ", found, RECORDS)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    return found


def damaged(path: Path, how: str) -> ValueError:
    """The error for a tensor file that cannot be used."""
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            return ValueError(f"{path} is a pointer of git-lfs, not the file itself; fetch that with `git lfs pull`")
    return ValueError(f"{path} is {how}; download or train it again")


def read_sampling(folder: Path, older: dict) -> SamplingConfig:
    """The sampling defaults of a folder; `older` holds those of a config.json from before there was a sampling.json."""
    path = folder / SAMPLING
    try:
        return SamplingConfig(**(read_json(path) if path.is_file() else older))
    except TypeError:
        raise ValueError(f"{path} may hold {', '.join(asdict(SamplingConfig()))}, and nothing else") from None


def build(path: Path, config: dict) -> DiT:
    """The network of a config, after a check that its tensors are exactly those in the header of the file; they are not
    loaded.

    Raises ValueError if they are not. No network is built for a file that is too small for it: a block has more than
    10·width² parameters of two bytes.
    """
    with safe_open(path, "pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    width, depth = config.get("width", 256), config.get("depth", 3)
    numbers = isinstance(width, int | float) and isinstance(depth, int | float)
    if numbers and path.stat().st_size / 20 < depth * width * width <= MAX_SIZE:  # beyond, DiT says what is too large
        raise ValueError(f"{path} does not hold the tensors of the network in {CONFIG}")
    try:
        network = KINDS[config.get("kind", DiT.kind)](**{k: v for k, v in config.items() if k != "kind"})
    except ValueError as error:
        raise ValueError(f"{path.with_name(CONFIG)}: {error}") from None
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    prefix = min(found, default="").removesuffix(min(expected))
    if prefix and {name.removeprefix(prefix): shape for name, shape in found.items()} == expected:
        raise ValueError(
            f"the names in {path} begin with {check.shown(prefix)}, as those of torch.compile and "
            "DistributedDataParallel do; save the state of the network that is wrapped"
        )
    if found != expected:
        raise ValueError(f"{path} does not hold the tensors of the network in {CONFIG}")
    return network


def save(network: DiT, folder: Path, sampling: SamplingConfig, metrics: dict, teacher: Path | None = None) -> None:
    """Write a folder of weights in float16, with `metrics`, the hashes and a copy of the `teacher`'s weights; replaces
    an older folder once the new one is whole.

    Raises OSError where it cannot be written.
    """
    with replacing_folder(folder) as new:
        try:
            kind = {} if network.kind == DiT.kind else {"kind": network.kind}
            config = {
                name: value for name, value in network._hub_mixin_config.items() if (name, value) not in UNWRITTEN
            }
            copy.deepcopy(network).cpu().half().save_pretrained(new, config={**config, **kind})
        except SafetensorError as error:
            raise OSError(f"no weights can be written to {folder}: {error}") from None
        (new / "README.md").unlink(missing_ok=True)  # the mixin's generic card
        (new / SAMPLING).write_text(json.dumps(asdict(sampling), indent=2) + "\n", encoding="utf-8")
        hashes = {TENSORS: sha256(new / TENSORS), "config": digest(read_json(new / CONFIG))}
        (new / METRICS).write_text(json.dumps({**metrics, "sha256": hashes}, indent=2) + "\n", encoding="utf-8")
        if teacher:
            (new / TEACHER).mkdir()
            for path in (teacher / name for name in (*FILES, SAMPLING)):
                if path.is_file():
                    shutil.copyfile(path, new / TEACHER / path.name)


def download(where: str) -> tuple[Path, str]:
    """The cached folder of a Hub repository `USER/NAME[@revision]`, and `USER/NAME@commit`; raises OSError in one
    sentence."""
    return hub.download(where, FILES, optional=(SAMPLING,))


def download_teacher(source: str) -> None:
    """Download the teacher of the flow map `USER/NAME@commit` into its cached folder, if it has one that can be had."""
    with contextlib.suppress(OSError):
        hub.download(source, OF_TEACHER[:-1], optional=OF_TEACHER[-1:])
