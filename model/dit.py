"""The network: a Diffusion Transformer with one stream for the image and one for the class.

An MM-DiT (Esser et al., "Scaling Rectified Flow Transformers", arXiv 2403.03206, §4) at the scale of MNIST. The class
is a single token; each stream has its own weights, and the two meet in joint attention. Time modulates both streams
through adaLN-Zero (Peebles & Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748, §3.2). Read
`DiT.velocity` first: it is the forward pass from pixels to velocity.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from model import check, flow
from model.fused import linear
from model.images import CLASSES, SIZE

CHANNELS = 256  # sinusoidal features per number
# Far more than 28 × 28 pixels need, but still built in seconds and 2 GB: about 30 · MAX_SIZE parameters.
MAX_DEPTH, MAX_CLASSES, MAX_SIZE = 100, 1000, 2**24


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """LayerNorm of tokens `[B, S, D]`, then scale and shift, each `[B or 1, 1, D]`."""
    if len(scale) == 1:  # one time for the whole batch: layer_norm applies both in the same pass over memory
        return F.layer_norm(x, x.shape[-1:], scale.flatten(), shift.flatten(), eps=1e-6)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), scale)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary position embedding to `[B, S, H, d]`, with the cosines and sines of `rotary_table`.

    Uses the half-split (GPT-NeoX) layout: channel i pairs with i + d/2, which avoids strided access.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def rotary_table(side: int, head_dim: int) -> torch.Tensor:
    """Cosines and signed sines for 2-D rotary positions, `[2, side², 1, head_dim]`, tokens in row-major order.

    Half of the angles grow with the token's row, half with its column (RoFormer, Su et al., arXiv 2104.09864, with one
    axis per half as in FLUX). Frequency k of an axis is 100^(−4k / head_dim).
    """
    frequencies = 100 ** (-torch.arange(0, head_dim // 2, 2) / (head_dim // 2))  # [d/4]
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = torch.cat([axis.reshape(-1, 1, 1) * frequencies for axis in (row, column)], -1)  # [side², 1, d/2]
    return torch.stack([torch.cat([angles.cos(), angles.cos()], -1), torch.cat([-angles.sin(), angles.sin()], -1)])


class TimeEmbedder(nn.Module):
    """Numbers `[B]` → `[B, D]`: sinusoidal features of `scale` · number, then a two-layer MLP (DiT §3.2).

    Times in [0, 1] use the scale 1000.
    """

    def __init__(self, width: int, scale: float = 1000):
        super().__init__()
        self.scale = scale
        self.mlp = nn.Sequential(nn.Linear(CHANNELS, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        # Computed here in float32 rather than kept as a buffer: 1000·t needs more than the 8 bits of bfloat16.
        k = torch.arange(CHANNELS // 2, device=t.device) / (CHANNELS // 2)
        angles = t.float().unsqueeze(-1) * self.scale * torch.exp(-math.log(10_000) * k)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(self.mlp[0].weight.dtype))


class Stream(nn.Module):
    """One stream's half of a block: projections for the joint attention, then the attention and MLP residual branches.

    All query heads share one key and one value head (multi-query attention, Shazeer, arXiv 1911.02150). With `heads=0`
    the stream only provides keys and values: the class stream of the last block, whose output is unused.
    """

    def __init__(self, width: int, heads: int, head_dim: int, qk_norm: bool):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.modulations = 6 if heads else 2
        self.qkv = nn.Linear(width, (heads + 2) * head_dim)
        self.qk_scale = nn.Parameter(torch.ones(heads + 1, head_dim)) if qk_norm else None
        if heads:
            self.out = nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def project(
        self, x: torch.Tensor, rotary: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Modulated tokens `[B, S, D]` → q `[B, S, H, d]`, k and v `[B, S, 1, d]`, with QK-norm and rotation."""
        qk, v = linear(self.qkv, x).unflatten(-1, (-1, self.head_dim)).split([self.heads + 1, 1], -2)
        if self.qk_scale is not None:
            qk = F.normalize(qk, dim=-1) * (self.qk_scale * self.head_dim**0.5)  # RMSNorm in fewer passes
        if rotary is not None:
            qk = rotate(qk, *rotary)
        return qk[..., :-1, :], qk[..., -1:, :], v

    def merge(self, x: torch.Tensor, attended: torch.Tensor, gate, shift, scale, mlp_gate) -> torch.Tensor:
        """Tokens `[B, S, D]` plus the gated attention output `[B, S·H, d]`, then plus the gated MLP."""
        x = torch.addcmul(x, gate, linear(self.out, attended.reshape(x.shape).contiguous()))  # concatenate the heads
        hidden = linear(self.mlp[0], modulate(x, shift, scale), gelu=True)
        return torch.addcmul(x, mlp_gate, linear(self.mlp[2], hidden))


class Block(nn.Module):
    """Joint attention over image and class tokens, then each stream's own residual branches."""

    def __init__(self, width: int, heads: int, last: bool, qk_norm: bool):
        super().__init__()
        self.image = Stream(width, heads, width // heads, qk_norm)
        self.label = Stream(width, 0 if last else heads, width // heads, qk_norm)

    def forward(self, image, label, image_time, label_time, rotary):
        """Image tokens `[B, S, D]`, class token `[B, 1, D]` and each one's modulations `[B or 1, 1, D]` → both,
        updated."""
        label_q, *label_kv = self.label.project(modulate(label, *label_time[:2]))
        image_q, *image_kv = self.image.project(modulate(image, *image_time[:2]), rotary)
        k, v = (torch.cat(pair, 1).transpose(1, 2) for pair in zip(label_kv, image_kv, strict=True))  # [B, 1, S + 1, d]
        q = torch.cat([label_q, image_q], 1) if self.label.heads else image_q
        # With a single key head, the query heads fold into the sequence: no copies of k and v.
        attended = F.scaled_dot_product_attention(q.flatten(1, 2).unsqueeze(1), k, v).squeeze(1)  # [B, (S + 1)·H, d]
        to_label, to_image = attended.split([self.label.heads, image.shape[1] * self.image.heads], 1)
        if self.label.heads:
            label = self.label.merge(label, to_label, *label_time[2:])
        return self.image.merge(image, to_image, *image_time[2:]), label


class DiT(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="pytorch",
    license="mit",
    tags=["diffusion", "rectified-flow", "mnist"],
):
    """Velocity of the flow for 28 × 28 images, given their class.

    `classes` counts the real classes; the null class for classifier-free guidance has the label `classes`.
    `class_names` are their names, by default those in `images.CLASSES`, or numbers if there are more classes.
    `pixel_mean` and `pixel_std` describe the normalization of the pixels that the network was trained on.
    For ablations, `qk_norm` can be turned off, and with `predicts_image` the layers predict the image.
    Raises ValueError for an argument out of range.
    """

    kind = "velocity"  # what the network predicts, in config.json
    sampler = flow.SAMPLER  # recorded with every measurement

    def __init__(
        self,
        width: int = 256,
        depth: int = 3,
        heads: int = 4,
        patch: int = 2,
        classes: int = len(CLASSES),
        pixel_mean: float = 0.5,
        pixel_std: float = 0.3081,
        class_names: list[str] | None = None,
        qk_norm: bool = True,
        predicts_image: bool = False,
    ):
        super().__init__()
        width, depth, heads, patch, classes = check_config(width, depth, heads, patch, classes, pixel_mean, pixel_std)
        self.class_names = checked_names(class_names, classes)
        self.width, self.depth, self.heads = width, depth, heads
        self.patch, self.side, self.null_label = patch, SIZE // patch, classes
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std
        check.typed("qk_norm", qk_norm, bool)
        check.typed("predicts_image", predicts_image, bool)
        self.qk_norm, self.predicts_image = qk_norm, predicts_image

        self.embed_patch = nn.Linear(patch**2, width)
        self.embed_label = nn.Embedding(classes + 1, width)
        self.embed_time = TimeEmbedder(width)
        self.blocks = nn.ModuleList(Block(width, heads, i == depth - 1, qk_norm) for i in range(depth))
        self.parts = [n for block in self.blocks for n in (block.image.modulations, block.label.modulations)] + [2]
        self.modulation = nn.Linear(width, sum(self.parts) * width)
        self.unembed = nn.Linear(width, patch**2)
        is_scale = [0.0, 1, 0, 0, 1, 0]  # shift, scale, gate, shift, scale, gate
        scales = torch.cat([torch.tensor(is_scale[:n]) for n in self.parts])
        self.register_buffer("one_for_scales", scales.view(-1, 1, 1), persistent=False)
        self.register_buffer("rotary", rotary_table(self.side, width // heads), persistent=False)
        self.reset_parameters()

    def reset_parameters(self):
        """Initialize each block as the identity and the output as zero (adaLN-Zero, DiT §3.2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embed_label.weight, std=0.02)
        for layer in (self.modulation, self.unembed):
            nn.init.zeros_(layer.weight)

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Velocity `[B, 1, 28, 28]` at `x` `[B, 1, 28, 28]`, times `t` in [0, 1] `[B]` (or `[1]` for all), `labels`
        `[B]`.

        Computes in the dtype of the weights and returns the dtype of `x`.
        """
        return self.as_velocity(self.velocity(x, self.modulations(t), labels), x, t.view(-1, 1, 1, 1))

    def states(
        self,
        x: torch.Tensor,
        labels: torch.Tensor | flow.Labels,
        times: Sequence[float],
        guidance: float,
        turn: Callable = nullcontext,
        film: bool = False,
    ) -> Iterator[flow.State]:
        """Iterate over the sampler's states from noise `x` `[B, 1, 28, 28]` along `times`.

        `labels` is `[B]`, or a function of t that returns them. Each network call runs in `with turn()`. Every state
        has its velocity and predicted image; a flow map computes them only for a `film`.
        """
        velocity = flow.guided(self.with_cached_modulations(times[:-1]), labels, self.null_label, guidance)

        def in_turn(x: torch.Tensor, t: float, t_next: float) -> torch.Tensor:
            with turn():
                return velocity(x, t, t_next)

        return flow.sample(in_turn, x, times)

    @staticmethod
    def nearest_guidance(scale: float) -> float:
        """The guidance scale used when `scale` is requested."""
        return scale

    def with_cached_modulations(self, times: Sequence[float]) -> Callable:
        """The network as `(x, t, labels) → velocity` for these times only, with modulations computed in one batch."""
        modulations = self.modulations(torch.tensor(times, device=self.modulation.weight.device))
        at = dict(zip(times, modulations.unsqueeze(1), strict=True))
        return lambda x, t, labels: self.as_velocity(self.velocity(x, at[t], labels), x, t)

    def modulations(self, *moments: torch.Tensor) -> torch.Tensor:
        """All shifts, scales and gates at moments `[T]`, in one matrix product: `[T, parts, 1, D]`."""
        return self.modulation(F.silu(self.embed(*moments))).unflatten(-1, (-1, 1, self.width)) + self.one_for_scales

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        """The conditioning vector of all modulations, for times `[T]`: `[T, D]`."""
        return self.embed_time(t)

    def velocity(self, x: torch.Tensor, modulations: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The forward pass with given modulations, before `as_velocity`."""
        tokens = rearrange(x, "b 1 (h p) (w q) -> b (h w) (p q)", p=self.patch, q=self.patch)
        image = self.embed_patch(tokens.to(self.embed_patch.weight.dtype))  # [B, 196, D] with patch 2
        label = self.embed_label(labels).unsqueeze(1)  # [B, 1, D]
        *streams, (shift, scale) = (part.unbind(1) for part in modulations.split(self.parts, 1))
        for block, image_time, label_time in zip(self.blocks, streams[::2], streams[1::2], strict=True):
            image, label = block(image, label, image_time, label_time, self.rotary)
        v = self.unembed(modulate(image, shift, scale))  # [B, 196, p·q]
        return rearrange(v, "b (h w) (p q) -> b 1 (h p) (w q)", h=self.side, p=self.patch).to(x.dtype)

    def as_velocity(self, output: torch.Tensor, x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
        """Convert the output of the layers at `x` and time `t` (a number or `[B, 1, 1, 1]`) to a velocity.

        The output is the velocity itself, or a predicted image x̂ with the velocity (x − x̂) / t, where t is clamped to
        at least 0.05 (JiT, Li & He, arXiv 2511.13720, §4).
        """
        return (x - output) / torch.as_tensor(t).clamp(min=0.05) if self.predicts_image else output


def checked_names(names, classes: int) -> tuple[str, ...]:
    """The names of the classes; raises ValueError unless there are as many different plain names as classes."""
    if names is None:
        return CLASSES[:classes] if classes <= len(CLASSES) else tuple(map(str, range(classes)))
    if not isinstance(names, list | tuple) or len(names) != classes:
        raise ValueError(f"class_names must be a list of {classes} names, not {check.shown(names)}")
    if len({check.plain_name("a class", name) for name in names}) < classes:
        raise ValueError("two classes have the same name")
    return tuple(names)


def check_config(width, depth, heads, patch, classes, pixel_mean, pixel_std) -> tuple[int, ...]:
    """Width, depth, heads, patch and classes as int; raises ValueError for an invalid or oversized configuration."""
    width, heads, patch = check.whole("width", width, 1), check.whole("heads", heads, 1), check.whole("patch", patch, 1)
    depth, classes = check.whole("depth", depth, 1, MAX_DEPTH), check.whole("classes", classes, 1, MAX_CLASSES)
    if depth * width**2 > MAX_SIZE:
        raise ValueError(f"width {check.shown(width)} is too large: depth times width² may be at most {MAX_SIZE:,}")
    check.number("pixel_mean", pixel_mean, 0, 1)
    check.number("pixel_std", pixel_std, 1e-3, 1)
    if width % heads:
        raise ValueError(f"width {width} is not divisible by heads {heads}")
    if width // heads % 4:
        raise ValueError(f"width {width} / heads {heads} is not divisible by 4, as 2-D rotary positions require")
    if SIZE % patch:
        raise ValueError(f"patch {patch} does not divide {SIZE} pixels")
    return width, depth, heads, patch, classes
