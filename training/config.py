"""Run configurations: frozen dataclasses, and the command-line flags generated from their fields."""

import argparse
import json
import os
import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Self

from model import check
from model.common import replacing
from model.images import SIZE
from model.sampling import MAX_GUIDANCE, MAX_SEED, MAX_STEPS
from training.data import DATASETS

MANY = 10**9  # default upper bound of numbers
KINDS = {bool: "true or false", str: "printable text of at most 1000 characters"}


def option(default, help: str = "", low: float = 0, high: float = MANY):
    """A field with a default, a help text and, for numbers, a range; without a help text, `--help` omits it."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True)
class RunConfig:
    """Settings common to all runs: optimizer, schedule, EMA, device and logs.

    Raises ValueError for a value of the wrong type or out of range.
    """

    epochs: float = option(300.0, "passes over the data set", low=1e-6, high=1e6)
    batch: int = option(256, "images per step", low=1)
    label_drop: float = option(0.1, "share of labels replaced by the null class, for guidance", high=1)
    lr: float = option(1e-3, "peak learning rate", low=1e-9, high=1)
    beta2: float = option(0.99, "second-moment decay of AdamW; the first-moment decay is 0.9", high=0.999999)
    weight_decay: float = option(0.01, "decoupled weight decay", high=10)
    warmup_steps: int = option(1000, "steps of linear warm-up")
    decay_share: float = option(0.5, "share of the steps, at the end, in which lr decays linearly to zero", high=1)
    clip: float = option(2.0, "maximum gradient norm", low=1e-9)
    ema_images: float = option(500_000.0, "half-life of the weights' moving average, in images", low=1e-6)
    ema_ramp: float = option(0.05, "upper bound of the half-life, as a share of the images seen", low=1e-6)
    seed: int = option(0, "seed of the initial weights and of every batch", high=MAX_SEED)

    device: str = option("auto", "auto, cpu, cuda or mps")
    tensorboard: bool = option(False, "also log to TensorBoard, in runs/NAME/tensorboard")
    compile: bool = option(True, "use torch.compile if a working compiler is found")
    log_every: int = option(20, "steps between lines of metrics.jsonl", low=1)
    preview_every: float = option(10.0, "epochs between previews of the classes", low=1e-6, high=1e6)
    checkpoint_every: float = option(120.0, "seconds between checkpoints")
    keep_weights: bool = option(False)  # with every preview, in runs/NAME/kept; for `training.ablations`

    program = "training.train"  # the command that runs it

    def __post_init__(self):
        for item in fields(self):
            value, kind = getattr(self, item.name), type(item.default)
            if kind in (int, float):
                checked = check.whole if kind is int else check.number
                object.__setattr__(
                    self, item.name, checked(item.name, value, item.metadata["low"], item.metadata["high"])
                )
            elif not isinstance(value, kind) or (kind is str and not (value.isprintable() and len(value) <= 1000)):
                raise ValueError(f"{item.name} must be {KINDS[kind]}, not {check.shown(value)}")

    def recipe(self) -> dict:
        """The fields that determine the weights: all but those that may change on resume."""
        return {name: value for name, value in asdict(self).items() if name not in RESUMABLE}

    def flags(self) -> list[str]:
        """The command-line flags of every field that differs from its default."""
        words = []
        for name, value in asdict(self).items():
            if value != getattr(type(self), name):
                flag = name.replace("_", "-")
                words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
        return words

    def command(self, launcher: str = "python") -> str:
        """The command that trains the same weights, independent of the preset used."""
        return f"{launcher} {shlex.join(['-m', self.program, *type(self)(**self.recipe()).flags()])}"

    def save(self, path: Path) -> None:
        with replacing(path) as new:
            new.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load a configuration; raises ValueError if the file is not one."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict) or not values.keys() <= {item.name for item in fields(cls)}:
            raise ValueError(f"{path} is not a configuration of this trainer")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True)
class Config(RunConfig):
    """Configuration of a training run. The defaults are the recipe of the released weights."""

    data: str = option("mnist", "mnist, fashion, kmnist, a folder with one folder of images per class, or an .npz")
    data_root: str = option("data", "folder of the data sets, which are downloaded if missing")
    blank_images: int = option(
        1000, "all-black images, and as many all-white ones, added to a built-in set", high=100_000
    )

    init: str = option("", "weights to start from, with their network: a folder, or USER/NAME[@revision]")
    width: int = option(256, "width of the network", low=1, high=4096)
    depth: int = option(3, "blocks", low=1, high=100)
    heads: int = option(4, "query heads, which share one key and value head", low=1, high=1024)
    patch: int = option(2, "side of a patch, pixels", low=1, high=SIZE)
    pixel_mean: float = option(0.5, "subtracted from pixels in [0, 1]", high=1)
    pixel_std: float = option(0.3081, "divisor of the pixels, which gives the data unit variance", low=1e-3, high=1)

    time_shift: float = option(
        1.63206, "shift of times towards the noise, in training and sampling", low=1e-3, high=1e3
    )
    guidance: float = option(1.15, "guidance scale of the previews, and the default for the weights", high=MAX_GUIDANCE)

    # Only for `training.ablations`.
    qk_norm: bool = option(True)  # queries and keys are normalized
    predicts_image: bool = option(False)  # the network predicts the image; the loss is still on the velocity
    uniform_times: bool = option(False)  # before the shift, instead of logit-normal
    offset_noise: float = option(0.0, high=1)  # see `objective.offset`
    immiscible: bool = option(False)  # see `objective.assign_noise`

    def __post_init__(self):
        super().__post_init__()
        if self.data not in DATASETS and not os.path.exists(self.data):
            raise ValueError(f"data must be {', '.join(DATASETS)}, a folder or an .npz, not {check.shown(self.data)}")

    def network(self) -> dict:
        """The arguments of `DiT`."""
        return {name: getattr(self, name) for name in NETWORK}


@dataclass(frozen=True)
class DistillConfig(RunConfig):
    """Configuration of a distillation run. The defaults are for a GPU."""

    teacher: str = option("weights/teacher", "weights of a velocity network: a folder, or USER/NAME[@revision]")
    data_root: str = option("data", "folder of the data sets")
    steps: int = option(4, "sampling steps of the previews, and the default for the weights", low=1, high=MAX_STEPS)
    time_shift: float = option(2.5, "shift of the sampling steps towards the noise", low=1e-3, high=1e3)
    error_power: float = option(0.5, "images in a batch are weighted by 1 / error^X", high=1)

    epochs: float = option(248.0, "passes over the data set", low=1e-6, high=1e6)

    program = "training.distill"


# Fields copied from the weights of --init.
NETWORK = ("width", "depth", "heads", "patch", "pixel_mean", "pixel_std", "qk_norm", "predicts_image")

# Fields that may change on resume, because they do not affect the weights.
RESUMABLE = {"data_root", "device", "compile", "tensorboard", "log_every", "preview_every", "checkpoint_every"}
RESUMABLE |= {"keep_weights"}

SHORT_RUN = {"batch": 128, "warmup_steps": 300, "decay_share": 0.4, "ema_images": 50_000.0}
PRESETS = {
    "full": {},
    "reference": {"lr": 2e-4, "beta2": 0.999, "decay_share": 0.0, "guidance": 1.0},  # the study repository's recipe
    "cpu": {**SHORT_RUN, "epochs": 8.0, "preview_every": 0.5},
    "quick": {**SHORT_RUN, "epochs": 1.5, "warmup_steps": 100, "preview_every": 0.25},
}
DISTILL_PRESETS = {
    "full": {},
    "cpu": {**SHORT_RUN, "epochs": 3.0, "lr": 5e-4, "warmup_steps": 50, "preview_every": 0.5},
}


def add_options(parser: argparse.ArgumentParser, config: type[RunConfig] = Config) -> None:
    """Add a flag for every field, those of `RunConfig` last; flags not given are absent from the namespace."""
    for item in sorted(fields(config), key=lambda item: hasattr(RunConfig, item.name)):
        name = "--" + item.name.replace("_", "-")
        text = item.metadata["help"]
        default = "" if item.default == "" else f" (default {item.default})"
        shown = text + default if text else argparse.SUPPRESS
        if isinstance(item.default, bool):
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=shown)
        else:
            parser.add_argument(name, type=type(item.default), default=argparse.SUPPRESS, metavar="X", help=shown)
