"""The configuration of a run: one frozen dataclass, and the command line made from its fields."""

import argparse
import json
import math
import shlex
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

from model.files import replacing


def option(default, help: str):
    """A field with its default and the sentence that `--help` prints for it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run does. The defaults are the reference's recipe with its defects mended."""

    data: str = option("mnist", "mnist, fashion or kmnist")
    data_root: str = option("data", "folder of the data sets, filled by torchvision where it is empty")
    blank_images: int = option(1000, "all black, and as many all white, images added to the data set")

    init: str = option("", "weights to start from: a folder, or USER/NAME[@revision]; their network is taken over")
    guide: str = option("", "weaker weights: what is learned is the velocity of --init guided by them, and not that of the data")
    guide_scale: float = option(2.0, "how far the target lies on the way from the guide to --init; 1 is --init itself")
    guide_null: float = option(0.15, "share of the null class in the guide's velocity")
    width: int = option(256, "width of the network")
    depth: int = option(3, "blocks")
    heads: int = option(4, "query heads, which share one key and value head")
    patch: int = option(2, "side of a patch, pixels")
    pixel_mean: float = option(0.5, "subtracted from pixels in [0, 1]")
    pixel_std: float = option(0.3081, "pixels are divided by it, so that the data has unit variance")
    default_guidance: float = option(1.0, "guidance scale that the page opens with")

    time_mean: float = option(0.0, "mean of the normal inside the logit-normal time")
    time_std: float = option(1.0, "standard deviation of that normal")
    time_shift: float = option(1.63206, "how far times are bent towards the noise, in training and in the sampler's grid")
    label_drop: float = option(0.1, "share of labels replaced by the null class, for guidance")

    epochs: float = option(300.0, "passes over the data set")
    batch: int = option(256, "images a step")
    lr: float = option(2e-4, "learning rate after the warm-up")
    beta2: float = option(0.999, "second moment decay of AdamW; the first is 0.9")
    weight_decay: float = option(0.01, "decoupled weight decay")
    warmup_steps: int = option(1000, "steps of linear warm-up")
    decay_share: float = option(0.0, "last share of the steps over which the rate falls linearly to zero")
    clip: float = option(2.0, "largest gradient norm")
    ema_images: float = option(500_000.0, "half-life of the weights' moving average, in images")
    ema_also: str = option("", "half-lives of further averages, as 50000,2000000: each becomes weights-IMAGES/ beside weights/")
    ema_ramp: float = option(0.05, "no half-life is ever more than this share of the images seen")
    seed: int = option(0, "names the initial weights and every draw of the run")

    device: str = option("auto", "auto, cpu, cuda or mps")
    compile: bool = option(True, "torch.compile the loss where a compiler is there")
    log_every: int = option(20, "steps between two lines of metrics.jsonl")
    preview_every: float = option(10.0, "epochs between two pictures of the classes")
    checkpoint_every: float = option(120.0, "seconds between two checkpoints")

    def __post_init__(self):
        if self.data not in ("mnist", "fashion", "kmnist"):
            raise ValueError(f"data must be mnist, fashion or kmnist, not {self.data!r}")
        for name in ("epochs", "batch", "lr", "clip", "ema_images", "ema_ramp", "log_every", "preview_every", "time_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)!r}")
        for name, value in asdict(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, not {value!r}")
        for name in ("label_drop", "guide_null", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, not {getattr(self, name)!r}")
        for name in ("blank_images", "warmup_steps", "weight_decay", "checkpoint_every", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)!r}")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2 must lie in 0..1, not {self.beta2!r}")
        if self.guide and not self.init:
            raise ValueError("guide needs init: the weights that it guides, which are also where the run starts from")
        self.half_lives()

    def network(self) -> dict:
        """The arguments of `DiT`."""
        return {name: getattr(self, name) for name in NETWORK}

    def half_lives(self) -> dict[str, float]:
        """The half-life in images of each moving average, by the folder that its weights go to; raises ValueError for one that is none."""
        try:
            also = [float(text) for text in self.ema_also.split(",") if text.strip()]
        except ValueError:
            also = [0.0]
        if not all(0 < images < math.inf for images in also):
            raise ValueError(f"ema_also must be numbers above 0 with commas between them, not {self.ema_also!r}")
        return {"weights": self.ema_images, **{f"weights-{images:.0f}": images for images in also}}

    def command(self) -> str:
        """The line that starts a run of this configuration, whatever presets it came from."""
        words = ["python", "-m", "training.train"]
        for name, value in asdict(self).items():
            if value != getattr(Config, name):
                words += ["--no-compile"] if name == "compile" else [f"--{name.replace('_', '-')}", str(value)]
        return shlex.join(words)

    def save(self, path: Path) -> None:
        with replacing(path) as new:
            new.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Raises ValueError for a file that is no configuration."""
        try:
            return cls(**json.loads(path.read_text()))
        except (TypeError, json.JSONDecodeError):
            raise ValueError(f"{path} is no configuration of this trainer") from None


ARCHITECTURE = ("width", "depth", "heads", "patch", "pixel_mean", "pixel_std")  # what a warm start takes over
NETWORK = (*ARCHITECTURE, "time_shift", "default_guidance")

# What a resumed run may change: how long it goes on, and what leaves every step as it was.
RESUMABLE = {"epochs", "decay_share", "device", "compile", "log_every", "preview_every", "checkpoint_every", "data_root"}

SHORT_RUN = {"batch": 128, "lr": 1e-3, "beta2": 0.99, "warmup_steps": 300, "decay_share": 0.4, "ema_images": 50_000.0}
PRESETS = {
    "reference": {},
    "cpu": {**SHORT_RUN, "epochs": 8.0, "preview_every": 0.5},
    "quick": {**SHORT_RUN, "epochs": 1.5, "warmup_steps": 100, "preview_every": 0.25},
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """A flag for every field; one that is not given stays out of the namespace."""
    for item in fields(Config):
        name = "--" + item.name.replace("_", "-")
        assert item.default is not MISSING
        shown = f"{item.metadata['help']} (default {item.default})"
        if item.type in (bool, "bool"):
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=shown)
        else:
            parser.add_argument(name, type=type(item.default), default=argparse.SUPPRESS, metavar="X", help=shown)
