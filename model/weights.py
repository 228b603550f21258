"""Load weights from a folder or a Hub repository into a network that is ready to draw, and save them to a folder.

A folder of weights holds `config.json` (the kind of network and its arguments), `model.safetensors` (float16),
`sampling.json` (the sampling defaults) and `metrics.json`, which records the sha256 of the first two: a flipped byte
would load silently. A flow map's folder may hold the velocity weights it was distilled from in `teacher/`.
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
FILES = (CONFIG, SAMPLING, METRICS, TENSORS)
KINDS = {network.kind: network for network in (DiT, FlowMap)}  # `kind` in config.json; a velocity network needs none
TEACHER = "teacher"  # in the folder of a flow map: the weights that it was distilled from
TEACHER_FROM = 9  # from this number of steps on, the teacher draws better
UNWRITTEN = {"qk_norm": True, "predicts_image": False}.items()  # left out of config.json: only ablations differ
LARGEST = 10_000_000  # bytes of a JSON file
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
OF_TEACHER = tuple(f"{TEACHER}/{name}" for name in FILES)

# The fields of metrics.json, as kinds of `check.typed`.
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
    """A network with its weights, sampling defaults and source.

    `source` is a description for people. `notice` is "", or says why the bundled weights replace the requested ones, or
    that the teacher could not be loaded. `teacher` holds the velocity weights that a flow map was distilled
    from, if available. `folder` is the one that they were read from.
    """

    network: DiT
    sampling: SamplingConfig
    source: str
    metrics: dict
    notice: str = ""
    teacher: "Weights | None" = None
    folder: Path | None = None

    def choose(self, sampling: SamplingConfig) -> tuple[DiT, SamplingConfig]:
        """The network that draws best in this number of steps (a flow map in few, its teacher in many), and its
        settings: with its own time shift, and a guidance that it supports."""
        chosen = self.teacher if self.teacher and sampling.steps >= TEACHER_FROM else self
        return chosen.network, chosen.shifted(sampling).for_network(chosen.network)

    def shifted(self, sampling: SamplingConfig) -> SamplingConfig:
        """A copy of the settings with the time shift of these weights."""
        return replace(sampling, time_shift=self.sampling.time_shift)

    def alone(self) -> "Weights":
        """A copy without the teacher, for the static page and evaluation; the map can draw its default steps."""
        if not self.teacher:
            return self
        steps = min(self.sampling.steps, TEACHER_FROM - 1)
        return replace(self, teacher=None, sampling=replace(self.sampling, steps=steps))


def load(where: str | None = None, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Weights:
    """Load the weights named by `where`, else by the variable `WEIGHTS`, else the bundled ones.

    `where` is a folder, or a Hub repository `USER/NAME` or `USER/NAME@revision`. The network computes in `dtype`; by
    default in bfloat16 if the device multiplies that in hardware, else in float32.
    Raises ValueError or OSError, with a one-sentence message, for missing, damaged or incompatible weights.
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
            hub.forget(folder, FILES)
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
    """Like `load`, but falls back to the bundled weights with a notice; raises only if those are unusable too.

    The reason goes to stderr; visitors only see the notice.
    """
    try:
        return load(where, device)
    except (ValueError, OSError) as error:
        with contextlib.suppress(ValueError, OSError):
            bundled = load(str(BUNDLED), device)
            print(f"Using the bundled weights instead: {masked(error)}", file=sys.stderr)
            asked = masked(where or os.environ.get("WEIGHTS"))[:60]
            notice = f"Drawn with the bundled weights, because {asked} could not be loaded."
            return replace(bundled, notice=notice)
        raise


def read(folder: Path) -> Weights:
    """Read a folder of weights; checks file names, types, hash, tensor shapes, and that all numbers are finite."""
    for name in (CONFIG, SAMPLING, TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}, so it is not a folder of weights")
    config, metrics = read_json(folder / CONFIG), read_metrics(folder / METRICS)
    expected = metrics.get("sha256", {}).get(TENSORS)
    if expected and sha256(folder / TENSORS) != expected:
        raise damaged(folder / TENSORS, f"damaged: its sha256 differs from the one in {METRICS}")
    try:
        sampling = SamplingConfig(**read_json(folder / SAMPLING))
    except TypeError:
        raise ValueError(f"{folder / SAMPLING} may contain only {', '.join(asdict(SamplingConfig()))}") from None
    if config.get("kind", DiT.kind) not in KINDS:
        raise ValueError(
            f"{folder / CONFIG}: kind must be one of {', '.join(KINDS)}, not {check.shown(config['kind'])}"
        )
    foreign = set(config) - set(inspect.signature(DiT).parameters) - {"kind"}
    if foreign:
        raise ValueError(
            f"{folder / CONFIG} is not for this network: unknown {check.shown(', '.join(sorted(foreign)))}"
        )
    try:
        network = build(folder / TENSORS, config)
        network.load_state_dict(load_file(folder / TENSORS))
    except SafetensorError:
        raise damaged(folder / TENSORS, "damaged or truncated") from None
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        raise ValueError(f"{folder / TENSORS} holds numbers that are not finite")
    if metrics.get("sha256", {}).get("config", digest(config)) != digest(config):
        raise ValueError(f"{folder / CONFIG} does not match its sha256 in {METRICS}; restore the original file")
    return Weights(network, sampling, str(folder), metrics, folder=folder)


def with_teacher(weights: Weights, folder: Path) -> Weights:
    """Add the teacher in the weights' folder, if there is one, or a notice if it cannot be used.

    A flow map can draw without its teacher. The reason goes to stderr.
    """
    if not isinstance(weights.network, FlowMap) or not (folder / TEACHER).is_dir():
        return weights
    try:
        return replace(weights, teacher=read_teacher(folder, weights.network))
    except (ValueError, OSError) as error:
        print(f"Drawing with the flow map alone, without its teacher: {masked(error)}", file=sys.stderr)
        return replace(weights, notice="The network that this one was distilled from could not be loaded.")


def read_teacher(folder: Path, network: FlowMap) -> Weights:
    """Read the velocity weights in the `teacher/` of a flow map's folder, with the same checks.

    Raises ValueError or OSError, also for another flow map, other classes or another pixel normalization.
    """
    teacher = read(folder / TEACHER)
    if isinstance(teacher.network, FlowMap):
        raise ValueError(f"{folder / TEACHER} must contain velocity weights, not a flow map")
    for name in ("class_names", "pixel_mean", "pixel_std"):
        if getattr(teacher.network, name) != getattr(network, name):
            raise ValueError(f"{folder / TEACHER} does not have the flow map's {name}; put its own teacher there")
    return teacher


def digest(config: dict) -> str:
    """The sha256 of a configuration, regardless of layout and line endings, which git may change."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict:
    """The object in a JSON file, or {} if there is no such file; raises ValueError for anything else."""
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise ValueError
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not valid JSON or is too large") from None
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
            return ValueError(f"{path} is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`")
    return ValueError(f"{path} is {how}; download or train it again")


def build(path: Path, config: dict) -> DiT:
    """Build the network of a config and check that its tensors are exactly those in the file's header, without loading
    them.

    Raises ValueError if they are not. No network is built if the file is too small for it: a block has more than
    10·width² parameters of two bytes.
    """
    with safe_open(path, "pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    width, depth = config.get("width", 256), config.get("depth", 3)
    numbers = isinstance(width, int | float) and isinstance(depth, int | float)
    if numbers and path.stat().st_size / 20 < depth * width * width <= MAX_SIZE:  # beyond, DiT says what is too large
        raise ValueError(f"{path} does not match the network in {CONFIG}")
    try:
        network = KINDS[config.get("kind", DiT.kind)](**{k: v for k, v in config.items() if k != "kind"})
    except ValueError as error:
        raise ValueError(f"{path.with_name(CONFIG)}: {error}") from None
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    prefix = min(found, default="").removesuffix(min(expected))
    if prefix and {name.removeprefix(prefix): shape for name, shape in found.items()} == expected:
        raise ValueError(
            f"the tensor names in {path} begin with {check.shown(prefix)}, which torch.compile or "
            "DistributedDataParallel added; save the state_dict of the unwrapped network"
        )
    if found != expected:
        raise ValueError(f"{path} does not match the network in {CONFIG}")
    return network


def save(network: DiT, folder: Path, sampling: SamplingConfig, metrics: dict, teacher: Path | None = None) -> None:
    """Write a folder of weights in float16, with `metrics`, the hashes and a copy of the `teacher`'s weights; replaces
    an older folder once the new one is complete.

    Raises OSError if it cannot be written.
    """
    with replacing_folder(folder) as new:
        try:
            kind = {} if network.kind == DiT.kind else {"kind": network.kind}
            config = {
                name: value for name, value in network._hub_mixin_config.items() if (name, value) not in UNWRITTEN
            }
            copy.deepcopy(network).cpu().half().save_pretrained(new, config={**config, **kind})
        except SafetensorError as error:
            raise OSError(f"cannot write weights to {folder}: {error}") from None
        (new / "README.md").unlink(missing_ok=True)  # the mixin's generic card
        (new / SAMPLING).write_text(json.dumps(asdict(sampling), indent=2) + "\n", encoding="utf-8")
        hashes = {TENSORS: sha256(new / TENSORS), "config": digest(read_json(new / CONFIG))}
        (new / METRICS).write_text(json.dumps({**metrics, "sha256": hashes}, indent=2) + "\n", encoding="utf-8")
        if teacher:
            (new / TEACHER).mkdir()
            for path in (teacher / name for name in FILES):
                if path.is_file():
                    shutil.copyfile(path, new / TEACHER / path.name)


def download(where: str) -> tuple[Path, str]:
    """Download a Hub repository `USER/NAME[@revision]`; returns the cached folder and `USER/NAME@commit`.

    Raises OSError with a one-sentence message.
    """
    return hub.download(where, FILES)


def download_teacher(source: str) -> None:
    """Download the teacher of the flow map `USER/NAME@commit` into its cached folder, if one is available."""
    with contextlib.suppress(OSError):
        hub.download(source, OF_TEACHER)
