"""The training loop: batch → loss → backward → clip → optimizer step → EMA, with logs, pictures and checkpoints."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from model import images, weights
from model.common import git_commit, python
from model.device import described, pick
from model.dit import DiT
from model.sampling import SamplingConfig, states
from training import checkpoint, data, distributed
from training.config import NETWORK, PRESETS, Config
from training.objective import compiled, learning_rate, make_loss, update_ema
from training.run_folder import CONFIG, HISTORY, KEPT, METRICS, WEIGHTS, RunFolder, quoted

PREVIEWED = 60  # most classes in a preview
NONFINITE_LIMIT = 10  # consecutive steps after which a run stops


class Trainer:
    """One training run: its state and the loop. Subclasses train other networks on other objectives."""

    config_class, presets, default_name = Config, PRESETS, ""

    def __init__(self, config: Config, folder: RunFolder, initial: weights.Weights | None = None):
        """`initial` holds the weights to start from, if any."""
        if config.tensorboard and find_spec("tensorboard") is None:
            raise ValueError(f"--tensorboard needs its package; run {python('-m', 'pip', 'install', 'tensorboard')}")
        self.config, self.folder, self.device = config, folder, pick(config.device)
        torch.manual_seed(config.seed)
        # Bit-exact reproducibility on a CPU. Filling uninitialized memory would only cost time.
        torch.use_deterministic_algorithms(self.device.type == "cpu")
        torch.utils.deterministic.fill_uninitialized_memory = False

        self.initialized_from = initial and initial.metrics.get("training")
        self.build(initial)
        self.network.to(self.device).train()
        self.ema = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), config.lr, (0.9, config.beta2), weight_decay=config.weight_decay, fused=True
        )
        self.step, self.seconds = 0, 0.0
        self.loss_sum = torch.zeros((), device=self.device)  # since the last log line
        self.summed_steps = 0  # since then, including the non-finite ones
        self.nonfinite_since_log = torch.zeros((), device=self.device)  # steps
        self.nonfinite_in_a_row = torch.zeros((), device=self.device)  # steps

        self.total = max(1, round(config.epochs * self.batches.steps_per_epoch))
        self.preview_steps = max(1, round(config.preview_every * self.batches.steps_per_epoch))
        self.stopped_by: int | None = None  # a signal
        parallel = (
            self.network
            if distributed.world_size() == 1
            else DistributedDataParallel(self.network, broadcast_buffers=False)
        )
        self.loss_of = self.make_loss(parallel)
        self.board = None
        if config.compile:
            self.loss_of = compiled(self.loss_of, self.device)

    # ---- network, data and loss

    def build(self, initial: weights.Weights | None) -> None:
        """Set the network, its sampling defaults, the batches, and the name and hash of the training data.

        If the `initial` weights have other classes, the class embedding is reinitialized.
        """
        config = self.config
        if self.folder.holds_run():
            self.folder.check_data(config.data)  # before other images are loaded
        pixels, labels, names = load_once(config)
        self.data, self.data_sha256 = config.data, data.fingerprint(pixels, labels, names)
        classes = {} if names == images.CLASSES else {"classes": len(names), "class_names": list(names)}
        self.network = DiT(**config.network(), **classes)
        if initial:
            same = initial.network.class_names == names
            kept = {k: v for k, v in initial.network.state_dict().items() if same or k != "embed_label.weight"}
            self.network.load_state_dict(kept, strict=same)
        self.batches = data.Batches(
            pixels,
            labels,
            config.batch,
            config.label_drop,
            self.network.null_label,
            config.seed,
            self.device,
            distributed.rank(),
            distributed.world_size(),
        )
        self.sampling = SamplingConfig(guidance=config.guidance, time_shift=config.time_shift)

    def check_source(self) -> None:
        """Raise ValueError if the run began with other training data."""
        self.folder.check_data(self.data, self.data_sha256)

    def make_loss(self, network: nn.Module) -> Callable:
        """The loss as a function of the fields of a batch."""
        return make_loss(network, self.config, self.device)

    @classmethod
    def fresh(cls, options: dict, folder: RunFolder, preset: str) -> Self:
        """A new run, from the weights of --init if given; writes nothing. Raises ValueError or OSError."""
        config = Config(**{**PRESETS[preset], **options})
        if not config.init:
            return cls(config, folder)
        loaded = weights.load(config.init, dtype=torch.float32)
        if loaded.network.kind != DiT.kind:
            raise ValueError(f"the weights in {config.init} are a {loaded.network.kind}; start from its teacher's")
        config = replace(config, **{name: getattr(loaded.network, name) for name in NETWORK})
        other = sorted(name for name in options if name in NETWORK and options[name] != getattr(config, name))
        if other:
            raise ValueError(f"the weights in {config.init} have a different {', '.join(other)}; leave it out")
        return cls(config, folder, loaded)

    # ---- the loop

    def train(self) -> None:
        """Train until the last step, or until a signal asks to stop."""
        config = self.config
        saved_at = started = time.monotonic()
        seconds_before = self.seconds
        bar = tqdm(
            total=self.total * config.batch,
            initial=self.step * config.batch,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not self.folder.writes,
        )
        if config.tensorboard and self.folder.writes:
            from torch.utils.tensorboard import SummaryWriter  # an optional package

            self.board = SummaryWriter(self.folder.path / "tensorboard", purge_step=self.step + 1)
        if self.step == 0:
            self.preview()
        while self.step < self.total and not self.must_stop():
            norm = self.advance()
            if self.folder.is_lost():
                raise OSError
            now = time.monotonic()
            self.seconds = seconds_before + now - started
            bar.update(config.batch)
            if self.step % config.log_every == 0:
                bar.set_postfix(loss=f"{self.log(norm):.4f}")
            if self.step % self.preview_steps == 0 and self.step < self.total:
                self.preview()
            # With several processes the sum of the losses is complete only after a log line.
            complete = distributed.world_size() == 1 or self.step % config.log_every == 0
            if now - saved_at > config.checkpoint_every and complete:
                self.save()
                saved_at = now
        bar.close()
        if self.board:
            self.board.close()
        self.loss_sum = distributed.sum_over_ranks(self.loss_sum) / distributed.world_size()
        self.save()
        if self.step == self.total:
            self.preview()
            self.folder.plot_run()
        distributed.barrier()

    def advance(self) -> torch.Tensor:
        """One training step; returns the gradient norm, still on the device."""
        loss = self.loss_of(*self.batches.at(self.step))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip, foreach=True)
        finite = norm.isfinite().to(norm.dtype)
        self.update(loss.detach(), finite)
        self.step += 1
        update_ema(self.ema, self.network, self.step * self.config.batch, self.config)
        return norm

    def update(self, loss: torch.Tensor, finite: torch.Tensor) -> None:
        """One optimizer step; if `finite` is 0, AdamW skips it on the device, without a synchronization."""
        nonfinite = 1 - finite
        self.optimizer.grad_scale, self.optimizer.found_inf = None, nonfinite.float()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.total, self.config)
        if self.device.type != "mps" or finite.item():  # fused AdamW ignored found_inf on MPS until mid-2026
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.nonfinite_in_a_row = (self.nonfinite_in_a_row + 1) * nonfinite
        self.nonfinite_since_log += nonfinite
        self.loss_sum += torch.where(finite > 0, loss, 0)
        self.summed_steps += 1

    def must_stop(self) -> bool:
        """Whether a signal arrived; all processes agree on it, so that they stop after the same step."""
        if distributed.world_size() > 1:
            self.stopped_by = int(distributed.max_over_ranks(torch.tensor(self.stopped_by or 0))) or None
        return self.stopped_by is not None

    def log(self, norm: torch.Tensor) -> float:
        """Append a line to metrics.jsonl; returns the mean loss of the finite steps since the last one (NaN if none).

        Raises ValueError after `NONFINITE_LIMIT` steps in a row without a finite gradient.
        """
        nonfinite, rate = int(self.nonfinite_since_log.item()), self.optimizer.param_groups[0]["lr"]
        steps = self.summed_steps - nonfinite
        loss = (
            distributed.sum_over_ranks(self.loss_sum).item() / steps / distributed.world_size() if steps else math.nan
        )
        self.loss_sum.zero_()
        self.summed_steps = 0
        self.nonfinite_since_log.zero_()
        if self.nonfinite_in_a_row.item() >= NONFINITE_LIMIT:
            raise ValueError(
                f"step {self.step}: the last {int(self.nonfinite_in_a_row.item())} gradients were not finite "
                f"at a learning rate of {rate:.1e}; start from the last good weights with "
                f"--init {quoted(self.folder.path / WEIGHTS)} and a lower --lr"
            )
        found = {
            name: value if math.isfinite(value) else None
            for name, value in (("loss", loss), ("grad_norm", norm.item()))
        }
        row = {"step": self.step, "images": self.step * self.config.batch, **found, "lr": rate, "nonfinite": nonfinite}
        self.folder.append_row(METRICS, {**row, "seconds": round(self.seconds, 1)})
        for name in ("loss", "grad_norm", "lr") if self.board else ():
            if row[name] is not None:
                self.board.add_scalar(name, row[name], self.step)
        return loss

    def preview(self) -> None:
        """Save a preview: every class drawn from the same noise with the EMA weights."""
        if self.folder.writes:
            labels = torch.arange(min(self.network.null_label, PREVIEWED))
            *_, last = states(self.ema, labels, [self.config.seed] * len(labels), self.sampling)
            pixels = images.to_pixels(last.x, self.network.pixel_mean, self.network.pixel_std)
            self.folder.save_preview(self.step, pixels)
            if self.config.keep_weights and 0 < self.step < self.total:
                kept = self.folder.path / KEPT / f"{self.step:07d}"
                weights.save(self.ema, kept, self.sampling, {"training": self.summary()})

    # ---- state

    def state(self) -> dict:
        """The content of a checkpoint."""
        return {
            "config": self.config.recipe(),
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "loss_sum": self.loss_sum,
            "summed_steps": self.summed_steps,
            "nonfinite_since_log": self.nonfinite_since_log,
            "nonfinite_in_a_row": self.nonfinite_in_a_row,
            "initialized_from": self.initialized_from,
        }

    def save(self) -> None:
        """Save the checkpoint, and the EMA weights for sampling."""
        if not self.folder.writes:
            return
        checkpoint.save(self.folder.path, self.state())
        # Saved weights of this step may already have metrics; those of step 0 may come from a killed start.
        if not self.step or self.folder.saved_weights_step() != self.step:
            self.save_weights(self.folder.path / WEIGHTS)

    def save_weights(self, folder: Path) -> None:
        weights.save(self.ema, folder, self.sampling, {"training": self.summary()})

    def restore(self) -> None:
        """Restore the newest intact checkpoint of this run, and clean its logs.

        Raises ValueError if all checkpoints are of another run or other images, OSError if there is none.
        """
        self.check_source()
        state, notice = checkpoint.load(self.folder.path, self.check_state)
        if notice:
            distributed.print_once(notice)
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        # Hyperparameters come from the configuration, moments from the checkpoint.
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state["optimizer"]["state"]})
        for name in ("step", "seconds", "summed_steps", "initialized_from"):
            setattr(self, name, state[name])
        for name in ("loss_sum", "nonfinite_since_log", "nonfinite_in_a_row"):
            getattr(self, name).copy_(state[name])
        self.folder.clean_logs(self.step)

    def check_state(self, state) -> None:
        """Raise ValueError unless `state` is a complete checkpoint of this run."""
        own, recipe = self.state(), self.config.recipe()
        whole = isinstance(state, dict) and state.keys() == own.keys() and isinstance(state["config"], dict)
        changed = sorted(
            name
            for name in recipe
            if whole and recipe[name] != state["config"].get(name, getattr(type(self.config), name))
        )
        if changed:
            raise ValueError(f"the checkpoint in {self.folder.path} is from a run with another {', '.join(changed)}")
        parts = [name for name in own if name not in ("config", "optimizer", "initialized_from")]
        moments = [{"step": torch.zeros(()), "exp_avg": p, "exp_avg_sq": p} for p in self.network.parameters()]
        fits = (
            whole
            and all(same_structure(state[name], own[name]) for name in parts)
            and 0 <= state["step"] <= self.total
            and isinstance(state["initialized_from"], dict | None)
            and isinstance(state["optimizer"], dict)
            and same_structure(state["optimizer"].get("state"), dict(enumerate(moments if state["step"] else ())))
        )
        if not fits:
            raise ValueError(f"the checkpoint in {self.folder.path} is from another network or incomplete")

    def record_start(self) -> None:
        """Log the commit, device, torch version and data of this start; a new run also saves its first checkpoint."""
        row = {"step": self.step, "commit": git_commit(), "device": device_name(self.device)}
        row |= {"torch": torch.__version__, "data": self.data, "data_sha256": self.data_sha256}
        self.folder.append_row(HISTORY, row)
        if not self.step:
            self.save()
        if self.folder.writes:
            self.config.save(self.folder.path / CONFIG)  # last: from now on the folder holds a run
        distributed.barrier()

    def summary(self) -> dict:
        """The training record saved with the weights; if the starts of a run differ, it lists all values."""
        starts = self.folder.rows(HISTORY)
        return {
            "data": self.data,
            "epochs": round(self.step / self.batches.steps_per_epoch, 2),
            "steps": self.step,
            "images": self.step * self.config.batch,
            "batch": self.config.batch,
            "lr": self.config.lr,
            "seed": self.config.seed,
            "hours": round(self.seconds / 3600, 2),
            **{
                name: ", then ".join(dict.fromkeys(start[name] for start in starts))
                for name in ("device", "torch", "commit")
            },
            "command": self.config.command(),
            **({"initialized_from": self.initialized_from} if self.initialized_from else {}),
        }


def same_structure(found, own) -> bool:
    """Whether two states have the same keys, types and shapes."""
    if isinstance(own, dict):
        same_keys = isinstance(found, dict) and found.keys() == own.keys()
        return same_keys and all(same_structure(found[k], own[k]) for k in own)
    if isinstance(own, torch.Tensor):
        return isinstance(found, torch.Tensor) and found.shape == own.shape
    return type(found) is type(own)


def load_once(config: Config) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """The training set and its class names; on each machine, the first process downloads it if necessary."""
    if distributed.local_rank() > 0:
        distributed.barrier()
    loaded = data.training_set(config.data, config.data_root, config.blank_images)
    if distributed.local_rank() == 0:
        distributed.barrier()
    return loaded


def device_name(device: torch.device) -> str:
    """The device of a run, with the number of processes if there are several."""
    world = distributed.world_size()
    return described(device) if world == 1 else f"{world} × {described(device)}"
