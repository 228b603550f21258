"""Consistency distillation: the training examples of a flow map.

The teacher takes a short leg from t to m, and the map jumps the rest of the way, from m to s. A single jump from t to s
should land at the same point (trajectory consistency, Kim et al., arXiv 2310.02279, §3.2; for the average velocity,
Geng et al., arXiv 2505.13447).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from model import flow, images
from model.device import has_bfloat16
from model.dit import DiT
from model.flow_map import FlowMap
from model.sampling import MAX_GUIDANCE
from training.data import Batches, seeded

LEG = 1 / 16  # longest leg of the teacher, in t
FROM_NOISE, TO_IMAGE, SHORT = 0.25, 0.25, 0.25  # shares of jumps with t = 1, with s = 0, and no longer than LEG
UNGUIDED = 0.1  # share of jumps at guidance 1; otherwise log-uniform from 1 to MAX_GUIDANCE


class Jumps(NamedTuple):
    """The input of one step: B jumps and their targets."""

    x: torch.Tensor  # [B, 1, 28, 28], the noised image at t
    t: torch.Tensor  # [B]
    s: torch.Tensor  # [B], at most t
    labels: torch.Tensor  # int64 [B]
    guidance: torch.Tensor  # [B], from 1 to MAX_GUIDANCE
    u: torch.Tensor  # [B, 1, 28, 28], average velocity from t to s


class Consistency:
    """The jumps of each step: noised images from `batches`, with targets from the teacher and the current map.

    `compile` is applied to the function that computes the targets.
    """

    def __init__(
        self,
        network: FlowMap,
        teacher: DiT,
        time_shift: float,
        batches: Batches,
        compile: Callable[[Callable], Callable] = lambda function: function,
    ):
        self.network, self.teacher, self.time_shift, self.batches = network, teacher, time_shift, batches
        self.bfloat16 = has_bfloat16(next(teacher.parameters()).device)  # checked here, outside the compiled graph
        self.target_of = compile(self.target)

    @property
    def steps_per_epoch(self) -> int:
        return self.batches.steps_per_epoch

    @torch.no_grad()
    def at(self, step: int) -> Jumps:
        """The jumps of a step.

        t and s are the larger and smaller of two shifted logit-normal times, except that t = 1 or s = 0 for some jumps.
        Two such times are rarely close, least of all near t = 1, so a further share of the jumps is made short.
        """
        batches, device, mine = self.batches, self.batches.device, self.batches.local_slice
        batch, generator = batches.at(step), seeded(device, batches.seed, "consistency", step)
        normal = torch.randn(batches.batch, generator=generator, device=device)[mine]
        a, b, c, d, e, f = torch.rand(6, batches.batch, generator=generator, device=device)[:, mine]
        times = flow.logit_normal(torch.stack([batch.normal, normal]), self.time_shift)
        t = times.amax(0).masked_fill(a < FROM_NOISE, 1)
        s = times.amin(0).masked_fill(c < TO_IMAGE, 0)
        s = torch.where(b < SHORT, (t - f * LEG).clamp(min=0), s)
        guidance = torch.exp(d * math.log(MAX_GUIDANCE)).masked_fill(e < UNGUIDED, 1)
        image = images.to_model(batch.pixels, self.teacher.pixel_mean, self.teacher.pixel_std)
        x, _ = flow.path(image, batch.noise, t)
        return Jumps(x, t, s, batch.labels, guidance, self.target_of(x, t, s, batch.labels, guidance))

    def target(self, x, t, s, labels, guidance) -> torch.Tensor:
        """The target average velocity from t to s: the teacher's leg, then the map's jump.

        The leg is a midpoint step whose first half is a jump of the map, so it calls the teacher only once.
        """

        def wide(number: torch.Tensor) -> torch.Tensor:
            return number.view(-1, 1, 1, 1)

        def jump(x, t, s):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16):
                return x + wide(s - t) * self.network(x, t, s, labels, guidance).float()

        m = torch.maximum(s, t - LEG)
        half = (t + m) / 2
        x_half = jump(x, t, half)
        null = torch.full_like(labels, self.teacher.null_label)
        both = self.teacher(torch.cat([x_half, x_half]), torch.cat([half, half]), torch.cat([null, labels]))
        v = torch.lerp(*both.chunk(2), wide(guidance))
        x_s = jump(x + wide(m - t) * v, m, s)
        return torch.where(wide(m > s), (x - x_s) / wide(t - s).clamp(min=LEG), v)
