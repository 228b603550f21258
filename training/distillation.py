"""Distillation of a velocity network into a flow map, by consistency along its trajectories."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Self

import torch
from torch import nn

from model import common, weights
from model.device import has_bfloat16
from model.flow_map import FlowMap
from training import data, distributed
from training.config import DISTILL_PRESETS, Config, DistillConfig
from training.consistency import Consistency
from training.objective import compiled
from training.run_folder import WEIGHTS, RunFolder
from training.trainer import Trainer

ERROR_OFFSET = 0.01  # mean squared error below which the weight of an image barely grows


def make_loss(network: nn.Module, config: DistillConfig, device: torch.device) -> Callable:
    """The weighted squared error of the average velocity, as a function of the fields of `consistency.Jumps`.

    An image with mean squared error e has the weight 1 / (e + ERROR_OFFSET)^p; otherwise the long jumps, whose errors
    are much larger, would dominate the loss (adaptive weights, Geng et al., arXiv 2505.13447, §4.3).
    """
    bfloat16 = has_bfloat16(device)  # checked here: inside the loss it would break the compiled graph

    def loss(x, t, s, labels, guidance, u):
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            predicted = network(x, t, s, labels, guidance)
        error = (predicted.float() - u).square().mean((1, 2, 3))
        return (error / (error.detach() + ERROR_OFFSET) ** config.error_power).mean()

    return loss


class Distiller(Trainer):
    """A run that trains a `FlowMap` from the weights of its teacher and keeps a copy of the teacher."""

    config_class, presets, default_name = DistillConfig, DISTILL_PRESETS, "map-"

    @classmethod
    def fresh(cls, options: dict, folder: RunFolder, preset: str) -> Self:
        """A new run; writes nothing. Raises ValueError or OSError."""
        return cls(DistillConfig(**{**DISTILL_PRESETS[preset], **options}), folder)

    def build(self, initial: weights.Weights | None) -> None:
        config, kept = self.config, self.folder.path / WEIGHTS / weights.TEACHER
        where = str(kept) if self.folder.holds_run() and kept.is_dir() else config.teacher
        teacher = weights.load(where, dtype=torch.float32)
        self.teacher = teacher.folder
        self.network = FlowMap.from_velocity(teacher.network)
        self.sampling = replace(teacher.sampling, steps=config.steps, time_shift=config.time_shift)
        self.initialized_from = teacher.metrics.get("training")

        self.data = teacher.metrics.get("training", {}).get("data", "mnist")
        learned_from = pixels, labels, names = data.training_set(self.data, config.data_root, Config.blank_images)
        if names != teacher.network.class_names:
            raise ValueError(f"{self.data} does not have the teacher's classes; restore the images it was trained on")
        hashes = common.sha256(self.teacher / weights.TENSORS), data.fingerprint(*learned_from)
        self.data_sha256 = sha256("".join(hashes).encode()).hexdigest()
        dtype = torch.bfloat16 if has_bfloat16(self.device) else torch.float32
        drawing = copy.deepcopy(teacher.network).to(self.device, dtype)
        process = self.device, distributed.rank(), distributed.world_size()
        batches = data.Batches(
            pixels, labels, config.batch, config.label_drop, drawing.null_label, config.seed, *process
        )
        fast = [partial(compiled, device=self.device, graphs=False)] if config.compile else []
        self.batches = Consistency(self.network, drawing, teacher.sampling.time_shift, batches, *fast)

    def check_source(self) -> None:
        if not self.folder.began_with(self.data, self.data_sha256):
            raise ValueError(
                f"the run in {self.folder.path} began with another teacher than {self.teacher} or other images than "
                f"those in {self.data}; restore them, or start another run"
            )

    def make_loss(self, network: nn.Module) -> Callable:
        return make_loss(network, self.config, self.device)

    def save_weights(self, folder: Path) -> None:
        weights.save(self.ema, folder, self.sampling, {"training": self.summary()}, self.teacher)
