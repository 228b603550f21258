"""Trajectories of a teacher: what distillation learns from.

Each is drawn once from noise to image by the teacher's own sampler under guidance, and all its states are kept. A pair
of states on one of them is an exact example of what a flow map should do: no bootstrapping, and no call of the teacher
during training.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from model import flow
from model.common import replacing
from model.dit import DiT
from model.images import SIZE
from model.sampling import CPU_BATCH, MAX_GUIDANCE
from training import distributed
from training.data import Order, seeded

SHARD = 100  # trajectories drawn and saved together, on a time grid of their own
LEGS = 16  # of a trajectory
PLAIN = 0.1  # share of trajectories at guidance 1; the others' is log-uniform up to MAX_GUIDANCE
FROM_NOISE, TO_IMAGE = 0.25, 0.25  # shares of pairs that start at t = 1, and that end at s = 0


class Pairs(NamedTuple):
    """The input of one step: pairs of states on B trajectories."""

    x: torch.Tensor  # [B, 1, 28, 28], the state at t
    t: torch.Tensor  # [B]
    s: torch.Tensor  # [B], at most t
    labels: torch.Tensor  # int64 [B]
    guidance: torch.Tensor  # [B], from 1 to MAX_GUIDANCE
    u: torch.Tensor  # [B, 1, 28, 28], average velocity from t to s; at s = t the velocity


def guidance_scales(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The guidance scales of examples, from two uniform numbers for each."""
    return torch.exp(a * math.log(MAX_GUIDANCE)).masked_fill(b < PLAIN, 1)


class Trajectories:
    """`count` trajectories of a teacher, shard by shard a function of the seed, and the pairs of every step.

    Of several processes each draws its share of the shards, and takes its slice of every batch of pairs.
    """

    def __init__(self, teacher: DiT, time_shift: float, count: int, batch: int, label_drop: float, seed: int):
        count = max(count, batch)
        self.teacher, self.time_shift, self.label_drop, self.seed = teacher, time_shift, label_drop, seed
        self.device = next(teacher.parameters()).device
        self.shards = -(-count // SHARD)
        rank, world = distributed.rank(), distributed.world_size()
        self.order = Order(self.shards * SHARD, batch, seed, self.device, rank, world)
        self.held: dict[str, torch.Tensor] = {}

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    def prepare(self, folder: Path | None, must_stop: Callable[[], bool] = lambda: False) -> None:
        """Draw the shards that are missing in `folder`, and load all of them; without a folder, just one, for a trial.

        Raises OSError where they cannot be written. Asked to stop, it leaves off after a whole shard.
        """
        if folder is None:
            self.hold([self.draw(0)])
            return
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{shard:05d}.safetensors" for shard in range(self.shards)]
        rank, world = distributed.rank(), distributed.world_size()
        rounds = range(-(-self.shards // world))  # as many in every process: `must_stop` has them agree
        for shard in tqdm([world * i + rank for i in rounds], "trajectories", unit_scale=SHARD, dynamic_ncols=True):
            if must_stop():
                return
            if shard >= self.shards or paths[shard].exists():
                continue
            with replacing(paths[shard]) as new:
                try:
                    save_file(self.draw(shard), new)
                except SafetensorError as error:
                    raise OSError(f"no trajectories can be written to {folder}: {error}") from None
        distributed.barrier()
        self.hold([load_file(path) for path in paths])

    def hold(self, shards: list[dict[str, torch.Tensor]]) -> None:
        """Keep these on the device."""
        self.held = {name: torch.cat([shard[name] for shard in shards]).to(self.device) for name in shards[0]}

    @torch.inference_mode()
    def draw(self, shard: int) -> dict[str, torch.Tensor]:
        """The trajectories of a shard: `x` `[SHARD, LEGS + 1, 28, 28]` and `v` `[SHARD, LEGS, 28, 28]` in float16, `t`
        `[SHARD, LEGS + 1]`, `labels` and `guidance` `[SHARD]`, on the CPU.

        Their times are those of the sampler's grid, each inner one moved by up to half a step, so that all shards
        together cover every time.
        """
        generator = seeded(torch.device("cpu"), self.seed, "trajectories", shard)

        def uniform(count: int) -> torch.Tensor:
            return torch.rand(count, generator=generator)

        noise = torch.randn(SHARD, 1, SIZE, SIZE, generator=generator)
        labels = torch.randint(self.teacher.null_label, (SHARD,), generator=generator)
        labels = labels.masked_fill(uniform(SHARD) < self.label_drop, self.teacher.null_label)
        guidance = guidance_scales(uniform(SHARD), uniform(SHARD))
        inner = (torch.arange(1, LEGS) + uniform(LEGS - 1) - 0.5) / LEGS
        times = [1.0, *flow.shifted(1 - inner, self.time_shift).tolist(), 0.0]
        network = self.teacher.with_cached_modulations(times[:-1])
        size = CPU_BATCH if self.device.type == "cpu" else SHARD
        x, v = [], []
        for start, of, scale in zip(
            *(whole.to(self.device).split(size) for whole in (noise, labels, guidance)), strict=True
        ):
            velocity = flow.guided(network, of, self.teacher.null_label, scale.view(-1, 1, 1, 1))
            path = list(flow.sample(velocity, start, times))
            x.append(torch.cat([state.x for state in path], 1).half().cpu())
            v.append(torch.cat([state.v for state in path[:-1]], 1).half().cpu())
        t = torch.tensor(times).expand(SHARD, -1).contiguous()
        return {"x": torch.cat(x), "v": torch.cat(v), "t": t, "labels": labels, "guidance": guidance}

    def at(self, step: int) -> Pairs:
        """The pairs of a step, one on each trajectory of its batch.

        A pair starts at the noise, or at any state but the image, and ends at the image, or anywhere from there on.
        """
        chosen, mine = self.order.at(step), self.order.local_slice
        chosen = chosen % len(self.held["labels"])  # all of them, but in a trial
        generator = seeded(self.device, self.seed, "pairs", step)
        a, b, c, d = torch.rand(4, len(chosen), generator=generator, device=self.device)
        i = (a * LEGS).long().masked_fill(b < FROM_NOISE, 0)
        j = (i + c * (LEGS + 1 - i)).long().masked_fill(d < TO_IMAGE, LEGS)
        chosen, i, j = chosen[mine], i[mine], j[mine]
        x, end = (self.held["x"][chosen, at].unsqueeze(1).float() for at in (i, j))
        v = self.held["v"][chosen, i].unsqueeze(1).float()
        t, s = (self.held["t"][chosen, at] for at in (i, j))
        step_size = (t - s).view(-1, 1, 1, 1)
        u = torch.where(step_size > 0, (x - end) / step_size, v)
        return Pairs(x, t, s, self.held["labels"][chosen], self.held["guidance"][chosen], u)
