"""The network: a Diffusion Transformer with one stream for the image and one for its class.

An MM-DiT (Esser et al., "Scaling Rectified Flow Transformers", arXiv 2403.03206, §4) at the size of MNIST: the class is one token,
each stream has weights of its own, and they meet in joint attention. Time modulates both streams through adaLN-Zero
(Peebles & Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748, §3.2). `DiT.velocity`, at the end, is the whole story.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from model import check
from model.images import CLASSES, SIZE

ONEDNN_TYPES = (torch.float32, torch.bfloat16) if hasattr(torch.ops.mkldnn, "_linear_pointwise") else ()
if ONEDNN_TYPES and not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # x86 without AVX-512
    ONEDNN_TYPES = (torch.float32,)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Normalised tokens `[B, S, D]`, scaled and shifted by the time `[B or 1, 1, D]`."""
    if len(scale) == 1:  # one time for all: the norm can do it on its way through memory
        return F.layer_norm(x, x.shape[-1:], scale.flatten(), shift.flatten(), eps=1e-6)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), scale)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the channel pairs of `[B, S, H, d]` by the angles of each token, with the table of `rotary_table`.

    The partner of channel i is channel i + d/2: the rotation of neighbouring pairs with the channels renamed, without strided access.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def rotary_table(side: int, head_dim: int, theta: float = 100.0) -> torch.Tensor:
    """Cosine and sine of each token's angles, `[2, side², 1, head_dim]`, tokens row by row, for both channels of each pair.

    The first half of the angles grows with the token's row, the second with its column (2-D rotary positions,
    Su et al., arXiv 2104.09864, one axis for each half as in FLUX); frequency k of an axis is theta^(−4k / head_dim).
    """
    frequencies = theta ** (-torch.arange(0, head_dim // 2, 2) / (head_dim // 2))  # [d/4]
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = torch.cat([axis.reshape(-1, 1, 1) * frequencies for axis in (row, column)], -1)  # [side², 1, d/2]
    return torch.stack([torch.cat([angles.cos(), angles.cos()], -1), torch.cat([-angles.sin(), angles.sin()], -1)])


def linear(layer: nn.Linear, x: torch.Tensor, gelu: bool = False) -> torch.Tensor:
    """`layer(x)`, and GELU of it if asked."""
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled() and x.is_cpu and x.dtype in ONEDNN_TYPES:
        # One product of oneDNN does it all, the one that Inductor uses; ATen goes twice more through memory, for the bias and for GELU.
        return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "gelu" if gelu else "none", [], "none")
    return F.gelu(layer(x)) if gelu else layer(x)


class TimeEmbedder(nn.Module):
    """Time in [0, 1] `[B]` → `[B, D]`: sinusoids of 1000·t, then a small MLP (DiT §3.2)."""

    def __init__(self, width: int, channels: int = 256):
        super().__init__()
        self.channels = channels
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        # Made here and not a buffer, which a cast to bfloat16 would round: 1000·t needs more than 8 bits.
        k = torch.arange(self.channels // 2, device=t.device) / (self.channels // 2)
        angles = t.float().unsqueeze(-1) * 1000 * torch.exp(-math.log(10_000) * k)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(self.mlp[0].weight.dtype))


class Stream(nn.Module):
    """One stream's part of a block: queries, keys and values for the joint attention, then two gated residual branches.

    All query heads share one key and one value head (multi-query attention, Shazeer, arXiv 1911.02150).
    A stream with `heads=0` is read by the other and never written, so it has neither queries nor branches.
    """

    def __init__(self, width: int, heads: int, head_dim: int):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.modulations = 6 if heads else 2
        self.qkv = nn.Linear(width, (heads + 2) * head_dim)
        self.qk_scale = nn.Parameter(torch.ones(heads + 1, head_dim))
        if heads:
            self.out = nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def project(self, x: torch.Tensor, rotary: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Modulated tokens `[B, S, D]` → q `[B, S, H, d]`, k and v `[B, S, 1, d]`; q and k normalised, then turned."""
        qk, v = linear(self.qkv, x).unflatten(-1, (-1, self.head_dim)).split([self.heads + 1, 1], -2)
        qk = F.normalize(qk, dim=-1) * (self.qk_scale * self.head_dim**0.5)  # an RMS norm, in fewer passes
        if rotary is not None:
            qk = rotate(qk, *rotary)
        return qk[..., :-1, :], qk[..., -1:, :], v

    def merge(self, x: torch.Tensor, attended: torch.Tensor, gate, shift, scale, mlp_gate) -> torch.Tensor:
        """Add what attention found `[B, S·H, d]`, and what the MLP makes of it, to the tokens `[B, S, D]`."""
        x = torch.addcmul(x, gate, linear(self.out, attended.reshape(x.shape).contiguous()))  # the heads side by side again
        hidden = linear(self.mlp[0], modulate(x, shift, scale), gelu=True)
        return torch.addcmul(x, mlp_gate, linear(self.mlp[2], hidden))


class Block(nn.Module):
    """Joint attention of image and class, then each stream's own branches; in the last block nobody reads the class any more."""

    def __init__(self, width: int, heads: int, last: bool):
        super().__init__()
        self.image = Stream(width, heads, width // heads)
        self.label = Stream(width, 0 if last else heads, width // heads)

    def forward(self, image, label, image_time, label_time, rotary):
        """Tokens `[B, S, D]` and `[B, 1, D]` with what the time does to each, a list of `[B or 1, 1, D]` → both, updated."""
        label_q, *label_kv = self.label.project(modulate(label, *label_time[:2]))
        image_q, *image_kv = self.image.project(modulate(image, *image_time[:2]), rotary)
        k, v = (torch.cat(pair, 1).transpose(1, 2) for pair in zip(label_kv, image_kv, strict=True))  # [B, 1, S + 1, d]
        q = torch.cat([label_q, image_q], 1) if self.label.heads else image_q
        # With one key head for all query heads, the heads fold into the sequence.
        attended = F.scaled_dot_product_attention(q.flatten(1, 2).unsqueeze(1), k, v).squeeze(1)  # [B, (S + 1)·H, d]
        to_label, to_image = attended.split([self.label.heads, image.shape[1] * self.image.heads], 1)
        if self.label.heads:
            label = self.label.merge(label, to_label, *label_time[2:])
        return self.image.merge(image, to_image, *image_time[2:]), label


class DiT(nn.Module, PyTorchModelHubMixin, library_name="pytorch", license="mit", tags=["diffusion", "rectified-flow", "mnist"]):
    """Velocity of the flow for images of 28 × 28 pixels and their class.

    `classes` counts the classes without the null class, whose label is `classes` itself. The last four arguments do not change
    the network: they are what anybody needs in order to draw with its weights, so they travel in the same `config.json`.
    Raises ValueError for an argument out of its range, with its value.
    """

    def __init__(
        self,
        width: int = 256,
        depth: int = 3,
        heads: int = 4,
        patch: int = 2,
        classes: int = len(CLASSES),
        pixel_mean: float = 0.5,
        pixel_std: float = 0.3081,
        time_shift: float = 1.63206,
        default_guidance: float = 1.0,
    ):
        super().__init__()
        check_config(width, depth, heads, patch, classes, pixel_mean, pixel_std, time_shift, default_guidance)
        self.width, self.depth, self.heads = width, depth, heads
        self.patch, self.side, self.null_label = patch, SIZE // patch, classes
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std
        self.time_shift, self.default_guidance = time_shift, default_guidance

        self.embed_patch = nn.Linear(patch**2, width)
        self.embed_label = nn.Embedding(classes + 1, width)
        self.embed_time = TimeEmbedder(width)
        self.blocks = nn.ModuleList(Block(width, heads, last=i == depth - 1) for i in range(depth))
        self.parts = [n for block in self.blocks for n in (block.image.modulations, block.label.modulations)] + [2]
        self.modulation = nn.Linear(width, sum(self.parts) * width)
        self.unembed = nn.Linear(width, patch**2)
        scales = torch.cat([torch.tensor([0.0, 1, 0, 0, 1, 0][:n]) for n in self.parts])  # shift, scale, gate, shift, scale, gate
        self.register_buffer("one_for_scales", scales.view(-1, 1, 1), persistent=False)
        self.register_buffer("rotary", rotary_table(self.side, width // heads), persistent=False)
        self.reset_parameters()

    def reset_parameters(self):
        """Each block starts as the identity and the network as zero (adaLN-Zero, DiT §3.2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embed_label.weight, std=0.02)
        for layer in (self.modulation, self.unembed):
            nn.init.zeros_(layer.weight)

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Velocity `[B, 1, 28, 28]` at images `x` `[B, 1, 28, 28]`, times `t` in [0, 1] `[B]` or one for all `[1]`, `labels` `[B]`.

        The inside has the type of the weights, what comes out that of `x`.
        """
        return self.velocity(x, self.modulations(t), labels)

    def along(self, times: Iterable[float]) -> Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]:
        """The network `(x, t, labels) → velocity` for drawing along `times`, with the modulations of all of them made at once."""
        times = list(times)
        made = self.modulations(torch.tensor(times, device=self.modulation.weight.device)).split(1)
        at = dict(zip(times, made, strict=True))
        return lambda x, t, labels: self.velocity(x, at[t], labels)

    def modulations(self, t: torch.Tensor) -> torch.Tensor:
        """All that the times `[T]` do anywhere in the network, in one product: `[T, parts, 1, D]`."""
        return self.modulation(F.silu(self.embed_time(t))).unflatten(-1, (-1, 1, self.width)) + self.one_for_scales

    def velocity(self, x: torch.Tensor, modulations: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """As `forward`, from the modulations of its times."""
        tokens = rearrange(x, "b 1 (h p) (w q) -> b (h w) (p q)", p=self.patch, q=self.patch)
        image = self.embed_patch(tokens.to(self.embed_patch.weight.dtype))  # [B, 196, D] with patches of two pixels
        label = self.embed_label(labels).unsqueeze(1)  # [B, 1, D]
        *streams, (shift, scale) = (part.unbind(1) for part in modulations.split(self.parts, 1))
        for block, image_time, label_time in zip(self.blocks, streams[::2], streams[1::2], strict=True):
            image, label = block(image, label, image_time, label_time, self.rotary)
        v = self.unembed(modulate(image, shift, scale))  # [B, 196, p·q]
        return rearrange(v, "b (h w) (p q) -> b 1 (h p) (w q)", h=self.side, p=self.patch).to(x.dtype)


def check_config(width, depth, heads, patch, classes, pixel_mean, pixel_std, time_shift, default_guidance):
    """Raise ValueError, with the value, for an argument that no network can be built from."""
    counts = {"width": width, "depth": depth, "heads": heads, "patch": patch, "classes": classes}
    for name, value in counts.items():
        check.whole(name, value, 1)
    check.number("pixel_mean", pixel_mean, 0, 1)
    check.number("pixel_std", pixel_std, 1e-3, 1)
    check.number("time_shift", time_shift, 1e-3, 1e3)
    check.number("default_guidance", default_guidance, 0, 5)
    if width % heads:
        raise ValueError(f"width {width} is not divisible by heads {heads}")
    if width // heads % 4:
        raise ValueError(f"width {width} / heads {heads} is not divisible by 4, which two rotary axes need")
    if SIZE % patch:
        raise ValueError(f"patch {patch} does not divide {SIZE} pixels")
