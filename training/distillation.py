"""Distillation: a velocity network becomes a flow map, by regression on its own trajectories or by consistency."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import nn

from model import weights
from model.common import sha256
from model.device import has_bfloat16
from model.dit import DiT
from model.flow_map import FlowMap
from training import distributed
from training.config import DISTILL_PRESETS, Config, DistillConfig
from training.consistency import Consistency
from training.data import Batches, training_set
from training.objective import compiled
from training.run_folder import WEIGHTS, RunFolder
from training.trainer import Trainer
from training.trajectories import Trajectories

TRAJECTORIES = "trajectories"  # in the folder of a run
EASY = 0.01  # a mean squared error from which on the weight of an image grows no further


def make_loss(network: nn.Module, config: DistillConfig, device: torch.device) -> Callable:
    """The weighted squared error of the average velocity, as a function of the fields of `trajectories.Pairs`.

    An image with the mean squared error e has the weight 1 / (e + EASY)^p: otherwise the long jumps, whose errors are
    much larger, would be all that counts (the adaptive weights of Geng et al., arXiv 2505.13447, §4.3).
    """
    bfloat16 = has_bfloat16(device)  # asked here: inside the loss it would break the compiled graph

    def loss(x, t, s, labels, guidance, u):
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            predicted = network(x, t, s, labels, guidance)
        error = (predicted.float() - u).square().mean((1, 2, 3))
        return (error / (error.detach() + EASY) ** config.error_power).mean()

    return loss


class Distiller(Trainer):
    """A run that trains a `FlowMap` from the weights of its teacher, of which the run keeps a copy."""

    config_class, presets, default_name = DistillConfig, DISTILL_PRESETS, "map-"

    @classmethod
    def fresh(cls, options: dict, folder: RunFolder, preset: str) -> Self:
        """A run at its first step; writes nothing. Raises ValueError or OSError."""
        return cls(DistillConfig(**{**DISTILL_PRESETS[preset], **options}), folder)

    def build(self, initial: weights.Weights | None) -> None:
        kept = self.folder.path / WEIGHTS / weights.TEACHER
        where = str(kept) if self.folder.holds_run() and kept.is_dir() else self.config.teacher
        teacher = weights.load(where, dtype=torch.float32)
        self.teacher = Path(where) if Path(where).is_dir() else weights.download(where)[0]
        self.network = FlowMap.from_velocity(teacher.network)
        self.sampling = replace(teacher.sampling, steps=self.config.steps)
        self.initialized_from = teacher.metrics.get("training")
        self.data = teacher.metrics.get("training", {}).get("data", "mnist")
        self.data_sha256 = sha256(self.teacher / weights.TENSORS)
        drawing = weights.load(where, self.device).network
        if self.config.objective == "consistency":
            fast = partial(compiled, device=self.device, graphs=False) if self.config.compile else (lambda same: same)
            images = self.images(drawing)
            self.batches = Consistency(self.network, drawing, teacher.sampling.time_shift, images, fast)
        else:
            self.batches = Trajectories(
                drawing,
                teacher.sampling.time_shift,
                self.config.trajectories,
                self.config.batch,
                self.config.label_drop,
                self.config.seed,
            )

    def images(self, teacher: DiT) -> Batches:
        """Batches of the images that the teacher was trained on; raises ValueError for those of other classes."""
        config = self.config
        pixels, labels, names = training_set(self.data, config.data_root, Config.blank_images)
        if names != teacher.class_names:
            raise ValueError(
                f"{self.data} does not have the teacher's classes; --objective trajectories needs no images"
            )
        where = self.device, distributed.rank(), distributed.world_size()
        return Batches(pixels, labels, config.batch, config.label_drop, teacher.null_label, config.seed, *where)

    def check_source(self) -> None:
        if not self.folder.began_with(self.data, self.data_sha256):
            raise ValueError(
                f"{self.teacher} does not hold the teacher that the run in {self.folder.path} began with; put its "
                "weights back, or start another run"
            )

    def make_loss(self, network: nn.Module) -> Callable:
        return make_loss(network, self.config, self.device)

    def prepare(self, trial: bool = False) -> None:
        if isinstance(self.batches, Trajectories):
            self.batches.prepare(None if trial else self.folder.path / TRAJECTORIES, self.must_stop)

    def save_weights(self, folder: Path) -> None:
        weights.save(self.ema, folder, self.sampling, {"training": self.summary()}, self.teacher)
