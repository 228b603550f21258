"""Guidance distillation: a network learns the velocity that it has under autoguidance, and from then on draws so with one forward a step.

    target    v = main + (scale − 1) · shape(main − weak)

main is the network that the run starts from. weak learned the same, but less of it: its errors are those of main, only larger, and the way
from it to main goes on towards the data (autoguidance, Karras et al., arXiv 2406.02507, §4). A share of weak's labels is the null class;
with all of them, and main in weak's place, this would be classifier-free guidance. `shape` leaves out what would only make the image
brighter or give it more contrast: guidance draws bold digits, and no class asks for their ink (after Sadat et al., arXiv 2410.02416, who
leave out what lies along the image). To learn a guided velocity is the idea of Meng et al., arXiv 2210.03142 (stage one).
"""

import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import nn

from model import flow, weights
from training.config import Config


def shape(change: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The part of `change` that alters neither the mean of `image` nor its contrast; both are `[B, 1, H, W]`.

    Each change loses its mean, and then what lies along the image less the image's mean.
    """
    change, image = (x.float() - x.float().mean((1, 2, 3), keepdim=True) for x in (change, image))
    along = (change * image).sum((1, 2, 3), keepdim=True) / image.square().sum((1, 2, 3), keepdim=True).clamp(min=1e-6)
    return change - along * image


class Teacher(nn.Module):
    """The guided velocity, from the weights that `config.init` and `config.guide` name.

    Raises ValueError or OSError, in one sentence, for weights that are no good, or that do not see the same pixels and classes.
    """

    def __init__(self, config: Config):
        super().__init__()
        main, weak = (weights.load(where, dtype=torch.float32) for where in (config.init, config.guide))
        for name in ("pixel_mean", "pixel_std", "null_label"):
            if getattr(main.network, name) != getattr(weak.network, name):
                raise ValueError(f"the weights in {config.guide} cannot guide those in {config.init}: they have another {name}")
        self.main, self.weak, self.weak_training = main.network, weak.network, weak.metrics.get("training")
        self.scale, self.null_share = config.guide_scale, config.guide_null
        self.null_label, self.time_shift = self.main.null_label, self.main.time_shift
        self.pixel_mean, self.pixel_std = self.main.pixel_mean, self.main.pixel_std
        tensors = [tensor.numpy().tobytes() for tensor in self.state_dict().values()]
        self.fingerprint = hashlib.sha256(b"".join(tensors)).hexdigest()  # a run goes on only with the same teacher

    @torch.no_grad()
    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
        """The velocity to learn at `x` `[B, 1, 28, 28]`; of weak's `labels` `[B]` those are dropped whose `chance` is below the share.

        The squared error averages over the drop, so one forward of weak does for both of its classes.
        """
        mixed = labels.masked_fill(chance < self.null_share, self.null_label)
        return self.guided(x, t.view(-1, 1, 1, 1), self.main(x, t, labels), self.weak(x, t, mixed))

    def guided(self, x: torch.Tensor, t: torch.Tensor | float, main: torch.Tensor, weak: torch.Tensor) -> torch.Tensor:
        """The target from the velocities of both; the image that `shape` asks for is the one that main predicts."""
        return main + (self.scale - 1) * shape(main - weak, x - t * main)

    @property
    def rotary(self) -> torch.Tensor:
        return self.main.rotary

    def along(self, times: Iterable[float]) -> Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]:
        """As `DiT.along`, so that whatever draws with a network draws with its target too; both classes of weak are asked for."""
        times = list(times)
        main, weak = self.main.along(times), self.weak.along(times)

        def velocity(x: torch.Tensor, t: float, labels: torch.Tensor) -> torch.Tensor:
            mixed = flow.guided(weak, labels, self.null_label, 1 - self.null_share)
            return self.guided(x, t, main(x, t, labels), mixed(x, t, 0))

        return velocity

    def summary(self) -> dict:
        """What the card says about the target."""
        return {"scale": self.scale, "null": self.null_share, "training": self.weak_training}
