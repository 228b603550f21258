"""Guidance distillation: a network learns the velocity that it has under autoguidance, and from then on draws so with one forward a step.

    target    v = main + (scale − 1) · orthogonal(main − weak)

main is the network that the run starts from. weak learned the same, but less of it: its errors are those of main, only larger, and the way
from it to main goes on towards the data (autoguidance, Karras et al., arXiv 2406.02507, §4). To a share, weak's class is the null class;
with all of it, and main in weak's place, this would be classifier-free guidance. `orthogonal` leaves out what would only make the image
brighter or give it more contrast: guidance draws bold digits, and no class asks for their ink (after Sadat et al., arXiv 2410.02416, who
leave out what lies along the image). To learn a guided velocity is the idea of Meng et al., arXiv 2210.03142 (stage one).
"""

import hashlib
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from model import weights
from training.config import Config


def orthogonal(change: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
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
    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The velocity to learn at `x` `[B, 1, 28, 28]`, `t` and `labels` `[B]`."""
        return self.target(self.main, self.weak, x, t, labels)

    @property
    def rotary(self) -> torch.Tensor:
        return self.main.rotary

    def along(self, times: Iterable[float]) -> Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]:
        """As `DiT.along`, so that whatever draws with a network draws with its target too."""
        times = list(times)
        return partial(self.target, self.main.along(times), self.weak.along(times))

    def target(self, main: Callable, weak: Callable, x: torch.Tensor, t: torch.Tensor | float, labels: torch.Tensor) -> torch.Tensor:
        """The guided velocity from those of `main` and `weak`; the image that `orthogonal` asks for is the one that main predicts."""
        v = main(x, t, labels)
        guide = weak(x, t, labels)
        if self.null_share:
            guide = torch.lerp(guide, weak(x, t, torch.full_like(labels, self.null_label)), self.null_share)
        return v + (self.scale - 1) * orthogonal(v - guide, x - torch.as_tensor(t).view(-1, 1, 1, 1) * v)

    def summary(self) -> dict:
        """What the card says about the target."""
        return {"scale": self.scale, "null": self.null_share, "training": self.weak_training}
