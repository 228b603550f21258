"""Command: train the network. `python -m training.train --preset quick --name first`

A run lives in `runs/NAME/`: config.json, metrics.jsonl, previews/, checkpoint.pt, and weights/ ready to draw with.
"""

import argparse
import copy
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from model import flow, images, weights
from model.command import sentence_on_error
from model.device import has_bfloat16, pick
from model.dit import DiT
from model.files import replacing
from model.generate import states
from training import checkpoint, data
from training.config import NETWORK, PRESETS, RESUMABLE, Config, add_options

NON_FINITE_LIMIT = 10  # steps in a row, after which a run is not worth going on


def make_loss(network: nn.Module, config: Config, device: torch.device) -> Callable:
    """The mean squared error on the velocity, a function of the fields of a `data.Draw`."""

    def loss(pixels, labels, noise, normal):
        image = images.to_model(pixels, config.pixel_mean, config.pixel_std)
        t = flow.logit_normal(normal, config.time_mean, config.time_std, config.time_shift)
        x, v = flow.path(image, noise, t)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            predicted = network(x, t, labels)
        return F.mse_loss(predicted, v)

    return loss


def compiled(function: Callable, device: torch.device) -> Callable:
    """`function` under torch.compile, or as it is, with a line that says so, where no compiler works."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # whatever a missing or broken compiler raises
        print(f"No working compiler here ({type(error).__name__}): training without torch.compile, more slowly.")
        return function
    return torch.compile(function, dynamic=False)


def learning_rate(step: int, total: int, config: Config) -> float:
    """Linear warm-up from nothing, constant, and a linear fall to zero over the last `decay_share` of the steps."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = (total - step) / total
    return config.lr * min(warm, left / config.decay_share if config.decay_share else 1.0)


@torch.no_grad()
def update_ema(ema: nn.Module, network: nn.Module, images_seen: int, config: Config) -> None:
    """Move the average towards the network, with a half-life in images that ramps up over a short run (EDM2, arXiv 2312.02696, §3)."""
    half_life = min(config.ema_images, config.ema_ramp * images_seen)
    torch._foreach_lerp_(list(ema.parameters()), list(network.parameters()), 1 - 0.5 ** (config.batch / half_life))


class Run:
    """One training run: its state, its folder, and the loop."""

    def __init__(self, config: Config, folder: Path, network: DiT | None = None):
        torch.manual_seed(config.seed)
        self.config, self.folder, self.device = config, folder, pick(config.device)
        # On a CPU every repeat is then the same to the bit; filling fresh memory would only cost time.
        torch.use_deterministic_algorithms(self.device.type == "cpu")
        torch.utils.deterministic.fill_uninitialized_memory = False

        self.network = (network or DiT(**config.network())).to(self.device).train().requires_grad_(True)
        self.ema = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay, fused=True
        )
        self.step, self.seconds = 0, 0.0
        self.loss_sum = torch.zeros((), device=self.device)  # since the last line of metrics.jsonl
        self.skipped = torch.zeros((), device=self.device)  # steps in a row that were not finite

        pixels, labels = data.with_blanks(*data.load(config.data, config.data_root), config.blank_images)
        self.draws = data.Draws(pixels, labels, config.batch, config.label_drop, self.network.null_label, config.seed, self.device)
        self.total = max(1, round(config.epochs * self.draws.steps_per_epoch))
        self.preview_steps = max(1, round(config.preview_every * self.draws.steps_per_epoch))
        self.commit = commit()
        self.stopped_by: int | None = None

    # ---- the loop

    def train(self) -> None:
        """Go on until the last step, or until a signal asks to stop."""
        config = self.config
        loss_of = make_loss(self.network, config, self.device)
        if config.compile:
            loss_of = compiled(loss_of, self.device)
        saved_at = started = time.monotonic()
        seconds_before = self.seconds
        bar = tqdm(total=self.total * config.batch, initial=self.step * config.batch, unit="img", unit_scale=True, dynamic_ncols=True)
        while self.step < self.total and self.stopped_by is None:
            rate = learning_rate(self.step, self.total, config)
            loss = loss_of(*self.draws.at(self.step))
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.clip, foreach=True)
            self.update(loss.detach(), norm, rate)
            self.step += 1
            update_ema(self.ema, self.network, self.step * config.batch, config)

            now = time.monotonic()
            self.seconds = seconds_before + now - started
            bar.update(config.batch)
            if self.step % config.log_every == 0:
                bar.set_postfix(loss=f"{self.log(norm, rate):.4f}")
            if self.step % self.preview_steps == 0 and self.step < self.total:
                self.preview()
            if now - saved_at > config.checkpoint_every:
                self.save()
                saved_at = now
        bar.close()
        self.save()
        if self.stopped_by is None:
            self.preview()

    def update(self, loss: torch.Tensor, norm: torch.Tensor, rate: float) -> None:
        """One optimizer step; a gradient that is not finite is skipped on the device, without the host looking."""
        not_finite = (~norm.isfinite()).float()
        self.optimizer.grad_scale, self.optimizer.found_inf = None, not_finite
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.skipped = (self.skipped + 1) * not_finite
        self.loss_sum += loss.nan_to_num(0, 0, 0)

    # ---- what a run leaves behind

    def log(self, norm: torch.Tensor, rate: float) -> float:
        """Write a line of metrics.jsonl and return the mean loss since the last one; raises ValueError once nothing is finite."""
        loss = self.loss_sum.item() / self.config.log_every
        self.loss_sum.zero_()
        if self.skipped.item() >= NON_FINITE_LIMIT:
            raise ValueError(
                f"step {self.step}: the last {int(self.skipped.item())} gradients were not finite at a learning rate of {rate:.1e}; "
                f"the checkpoint in {self.folder} is the last good one, start from it with a lower --lr"
            )
        row = {"step": self.step, "images": self.step * self.config.batch, "loss": loss, "grad_norm": norm.item(), "lr": rate}
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({**row, "seconds": round(self.seconds, 1)}) + "\n")
        return loss

    def preview(self) -> None:
        """A picture of every class from the same noise, drawn in 20 steps by the averaged weights."""
        config = self.config
        labels = torch.arange(len(images.CLASSES))
        *_, last = states(self.ema, labels, [config.seed] * len(labels), steps=20, guidance=config.default_guidance)
        pixels = images.to_pixels(last.x, config.pixel_mean, config.pixel_std)
        (self.folder / "previews").mkdir(exist_ok=True)
        images.sheet(pixels, columns=6, scale=4).save(self.folder / "previews" / f"{self.step:07d}.png")

    def save(self) -> None:
        """Write the checkpoint, and the averaged weights ready to draw with."""
        checkpoint.save(
            self.folder,
            {
                "network": self.network.state_dict(),
                "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "loss_sum": self.loss_sum,
            },
        )
        weights.save(self.ema, self.folder / "weights", {"training": self.summary()})

    def restore(self) -> None:
        """Go back to the newest whole checkpoint of the folder; lines of metrics.jsonl after it are dropped."""
        state, damage = checkpoint.load(self.folder)
        if damage:
            print(damage)
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.loss_sum = state["loss_sum"].to(self.device)
        log = self.folder / "metrics.jsonl"
        if log.exists():
            kept = [line for line in log.read_text().splitlines(True) if line.endswith("\n") and json.loads(line)["step"] <= self.step]
            with replacing(log) as new:
                new.write_text("".join(kept))

    def summary(self) -> dict:
        """What the card of the weights says about their training."""
        return {
            "data": self.config.data,
            "epochs": round(self.step / self.draws.steps_per_epoch, 2),
            "steps": self.step,
            "images": self.step * self.config.batch,
            "batch": self.config.batch,
            "lr": self.config.lr,
            "seed": self.config.seed,
            "hours": round(self.seconds / 3600, 2),
            "device": torch.cuda.get_device_name()
            if self.device.type == "cuda"
            else f"{self.device.type}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "commit": self.commit,
            "command": self.config.command(),
        }


def device_name(device: torch.device) -> str:
    """What a reader of figures wants to know of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {torch.get_num_threads()} threads"


def commit() -> str:
    """The commit of the working tree, with a + where files differ from it, or "" outside a repository."""
    here = Path(__file__).parent
    try:
        run = subprocess.run(["git", "describe", "--always", "--dirty=+", "--abbrev=12"], cwd=here, capture_output=True, text=True)
    except OSError:
        return ""
    return run.stdout.strip()


def start(options: dict, folder: Path, preset: str, resume: bool) -> Run:
    """A fresh run, one warm from weights, or one that goes on; raises ValueError or OSError before anything is written."""
    if resume:
        config = Config.load(folder / "config.json")
        fixed = sorted(name for name, value in options.items() if name not in RESUMABLE and value != getattr(config, name))
        if fixed:
            raise ValueError(f"a resumed run keeps its {', '.join(fixed)}; start another run to change it")
        config = replace(config, **options)
        run = Run(config, folder)
        run.restore()
        config.save(folder / "config.json")
        return run
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a run already; go on with --resume {folder}, or choose another --name")
    config = Config(**{**PRESETS[preset], **options})
    network = None
    if config.init:
        network = weights.load(config.init, dtype=torch.float32).network
        config = replace(config, **{name: getattr(network, name) for name in NETWORK})
        other = sorted(name for name in options if name in NETWORK and options[name] != getattr(config, name))
        if other:
            raise ValueError(f"the weights in {config.init} have a {', '.join(other)} of their own; leave it out")
    run = Run(config, folder, network)
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / "config.json")
    return run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="reference", help="where the other flags start from")
    parser.add_argument("--name", default="", help="the run is runs/NAME (default: the preset's name)")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with the run in this folder")
    add_options(parser)
    options = vars(parser.parse_args(argv))
    preset, name, resume = (options.pop(key) for key in ("preset", "name", "resume"))
    with sentence_on_error(parser):
        folder = Path(resume) if resume else Path("runs") / (name or preset)
        run = start(options, folder, preset, bool(resume))
        print(f"{folder}: {run.total:,} steps of {run.config.batch} on {run.device}, {run.config.data}, from step {run.step}")

        def stop(number, frame):
            run.stopped_by = number

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        run.train()
    if run.stopped_by:
        print(f"Stopped at step {run.step}. Go on with: python -m training.train --resume {folder}")
        return 128 + run.stopped_by
    print(f"Done. Draw with it: python app.py --weights {folder / 'weights'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
