"""The flow map: a network that jumps from time t to any earlier time s, with the guidance scale as an input.

Its output u(x, t, s, y, w) is the average velocity between t and s of the flow of class y under guidance w, so a step
of any length is exact: x + (s − t)·u. At s = t it is the velocity itself (Boffi et al., "Flow Map Matching", arXiv
2406.07507; Geng et al., "Mean Flows for One-step Generative Modeling", arXiv 2505.13447, §4.1; guidance as an input
after Meng et al., arXiv 2210.03142). `training.distill` distils one from a velocity network.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import nn

from model import flow
from model.dit import DiT, TimeEmbedder


class FlowMap(DiT):
    """Average velocity of the guided flow from t to s ≤ t; takes the arguments of `DiT`.

    Embeddings of the step t − s and of ln w are added to the time embedding. Their last layers start at zero, so a new
    map predicts exactly the conditional velocity of the `DiT` whose weights it takes, for every s and w.
    """

    kind = "flow map"
    sampler = "flow map"

    @functools.wraps(DiT.__init__)
    def __init__(self, *args, **config):
        super().__init__(*args, **config)
        self.embed_step, self.embed_guidance = (TimeEmbedder(self.width, scale=10) for _ in range(2))
        for embedder in (self.embed_step, self.embed_guidance):
            for layer, initialize in ((embedder.mlp[0], nn.init.xavier_uniform_), (embedder.mlp[2], nn.init.zeros_)):
                initialize(layer.weight)
                nn.init.zeros_(layer.bias)

    @classmethod
    def from_velocity(cls, network: DiT) -> "FlowMap":
        """A new map that starts as the conditional velocity of `network`.

        Raises ValueError for a network that is a flow map already, or predicts the image.
        """
        if isinstance(network, cls):
            raise ValueError("the teacher is a flow map itself; distil from weights of a velocity network")
        if network.predicts_image:
            raise ValueError("the teacher predicts the image; distil from weights of a velocity network")
        new = cls(**network._hub_mixin_config).to(next(network.parameters()))
        new.load_state_dict(network.state_dict(), strict=False)
        return new

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, s: torch.Tensor, labels: torch.Tensor, guidance: torch.Tensor
    ) -> torch.Tensor:
        """Average velocity `[B, 1, 28, 28]` from times `t` to `s` ≤ `t` at `x`, all other arguments `[B]` (`t`, `s` and
        `guidance` ≥ 1 also `[1]`, for all)."""
        return self.velocity(x, self.modulations(t, s, guidance), labels)

    def embed(self, t: torch.Tensor, s: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
        """The conditioning vector of all modulations, `[T, D]`."""
        return self.embed_time(t) + self.embed_step(t - s) + self.embed_guidance(guidance.log())

    def states(
        self,
        x: torch.Tensor,
        labels: torch.Tensor | flow.Labels,
        times: Sequence[float],
        guidance: float,
        turn=nullcontext,
        film: bool = False,
    ) -> Iterator[flow.State]:
        """The states of `flow.jump` along `times`, with one forward pass per step; see `DiT.states`.

        For a film, a pass has up to three rows per digit: the jump, the velocity and the predicted image.
        """
        guidance = self.nearest_guidance(guidance)
        w, conditional = guidance or 1.0, guidance > 0
        # `ends[t]`: the target times of the call at t, one row each; `found[t]`: the results of the last call.
        ends = {t: (s, t, 0.0) if film and s else (s, t) if film else (s,) for t, s in pairwise(times)}
        moments = torch.tensor([(t, s, w) for t in ends for s in ends[t]], device=x.device).view(-1, 3)
        modulations = self.modulations(*moments.unbind(1)).split([len(ends[t]) for t in ends])
        at, found = dict(zip(ends, modulations, strict=True)), {}

        def in_turn(x: torch.Tensor, t: float, s: float) -> torch.Tensor:
            if t not in found:
                real = labels(t) if callable(labels) else labels
                real, rows = real if conditional else torch.full_like(real, self.null_label), len(ends[t])
                each = at[t] if rows == 1 else at[t].repeat_interleave(len(x), 0)
                with turn():
                    u = self.velocity(x.repeat(rows, 1, 1, 1), each, real.repeat(rows))
                found.clear()
                found[t] = dict(zip(ends[t], u.chunk(rows), strict=True))
            return found[t][s]

        return flow.jump(in_turn, x, times, film)

    @staticmethod
    def nearest_guidance(scale: float) -> float:
        """A scale that the map was trained for: 0 (the null class) or at least 1; values in between become 1."""
        return max(scale, 1.0) if scale else 0.0
