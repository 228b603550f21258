"""The training objective: loss, learning-rate schedule and EMA of the weights."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from model import flow, images
from model.device import has_bfloat16
from training import distributed
from training.config import Config, RunConfig


def make_loss(network: nn.Module, config: Config, device: torch.device, bfloat16: bool = True) -> Callable:
    """The mean squared error of the velocity, as a function of the fields of a `data.Batch`.

    The network computes in bfloat16 if the device supports it.
    """
    bfloat16 = bfloat16 and has_bfloat16(device)  # checked here: inside the loss it would break the compiled graph

    assign = torch.compiler.disable(assign_noise) if config.immiscible else None  # its loop would be unrolled

    def loss(pixels, labels, noise, normal):
        image = images.to_model(pixels, config.pixel_mean, config.pixel_std)
        if config.offset_noise:
            noise = offset(noise, config.offset_noise)
        if assign:
            noise = assign(noise, image)
        t = times(normal, config)
        x, v = flow.path(image, noise, t)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            predicted = network(x, t, labels)
        return F.mse_loss(predicted, v)

    return loss


def times(normal: torch.Tensor, config: Config) -> torch.Tensor:
    """The times of a batch, from standard normal draws `[B]`."""
    if config.uniform_times:
        return flow.shifted(torch.special.ndtr(normal), config.time_shift)
    return flow.logit_normal(normal, config.time_shift)


def offset(noise: torch.Tensor, strength: float) -> torch.Tensor:
    """Offset noise (Guttenberg, "Diffusion with Offset Noise", 2023) from normal noise `[B, 1, H, W]`.

    By definition, it adds one independent `strength`·N(0, 1) to all pixels of an image. The sum is normal with
    covariance I + strength²·11ᵀ. Scaling the mean of the noise by √(1 + strength²·H·W) gives the same distribution
    without another draw.
    """
    scale = math.sqrt(1 + strength**2 * noise[0].numel())
    return noise + (scale - 1) * noise.mean((1, 2, 3), keepdim=True)


def assign_noise(noise: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The noise `[B, 1, H, W]` of a batch, reordered so that each sample is close to its image (immiscible diffusion,
    Li et al., arXiv 2406.12303, §4).

    Each pair of images is visited once and swaps noise if that reduces the sum of squared distances. The paper solves
    the assignment exactly on the host; this runs on the device, in B rounds of a few small kernels.
    """
    close = image.flatten(1) @ noise.flatten(1).T  # [image, noise]; the other terms of the distance sum to a constant
    own = torch.arange(len(noise), device=noise.device)
    chosen = own
    for i in range(len(own)):
        other = (i - own) % len(own)
        theirs = chosen[other]
        gain = (close[own, theirs] + close[other, chosen]) - (close[own, chosen] + close[other, theirs])
        chosen = torch.where(gain > 0, theirs, chosen)  # the gain is bit-identical on both sides of a pair
    return noise[chosen]


def compiled(function: Callable, device: torch.device, graphs: bool = True) -> Callable:
    """`function` under torch.compile; unchanged, with a message, if no compiler works.

    With `graphs`, it runs as CUDA graphs on a single GPU, because its kernels take less time than their launches.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # whatever a missing or broken compiler raises
        print(f"No working compiler ({type(error).__name__}); training without torch.compile, which is slower.")
        return function
    graphs = graphs and device.type == "cuda" and distributed.world_size() == 1
    return torch.compile(function, dynamic=False, mode="reduce-overhead" if graphs else None)


def learning_rate(step: int, total: int, config: RunConfig) -> float:
    """Linear warm-up from zero, constant, then linear decay to zero over the last `decay_share` of the steps."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = (total - step) / total
    return config.lr * min(warm, left / config.decay_share if config.decay_share else 1.0)


def update_ema(ema: nn.Module, network: nn.Module, images_seen: int, config: RunConfig) -> None:
    """Update the EMA, whose half-life grows with the images seen up to `ema_images` (EDM2, arXiv 2312.02696, §3).

    This takes one pass over memory. After a skipped step, the network is unchanged.
    """
    half_life = min(config.ema_images, config.ema_ramp * images_seen)
    update = get_ema_multi_avg_fn(0.5 ** (config.batch / half_life))
    update(list(ema.parameters()), list(network.parameters()), None)
