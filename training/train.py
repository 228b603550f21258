"""Command: train the network. `python -m training.train --preset quick --name first`

A run lives in `runs/NAME/`: config.json, history.jsonl (what each start ran on), metrics.jsonl, previews/, checkpoint.pt,
weights/ ready to draw with, and at its end previews.gif and loss.png. `torchrun --nproc_per_node=N -m training.train` shares the steps
among N processes.
"""

import argparse
import copy
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from model import flow, images, weights
from model.command import sentence_on_error
from model.device import described, has_bfloat16, pick
from model.dit import DiT
from model.files import replacing
from model.generate import states
from training import checkpoint, data, pictures, ranks
from training.config import ARCHITECTURE, PRESETS, RESUMABLE, Config, add_options
from training.distill import Teacher

NON_FINITE_LIMIT = 10  # steps in a row, after which a run is not worth going on


def make_loss(network: nn.Module, config: Config, device: torch.device, teacher: Teacher | None = None, bfloat16: bool = True) -> Callable:
    """The mean squared error on the velocity, a function of the fields of a `data.Draw`; in bfloat16 where the device has it.

    The velocity is that of the data, or what a `teacher` makes of the same point.
    """

    def loss(pixels, labels, noise, normal):
        image = images.to_model(pixels, config.pixel_mean, config.pixel_std)
        t = flow.logit_normal(normal, config.time_mean, config.time_std, config.time_shift)
        x, v = flow.path(image, noise, t)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16 and has_bfloat16(device)):
            predicted = network(x, t, labels)
            if teacher is not None:
                v = teacher(x, t, labels)
        return F.mse_loss(predicted, v)

    return loss


def compiled(function: Callable, device: torch.device) -> Callable:
    """`function` under torch.compile, or as it is, with a line that says so, where no compiler works.

    On one GPU it runs as CUDA graphs: its kernels are shorter than the time it takes to launch them.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # whatever a missing or broken compiler raises
        print(f"No working compiler here ({type(error).__name__}): training without torch.compile, more slowly.")
        return function
    return torch.compile(function, dynamic=False, mode="reduce-overhead" if device.type == "cuda" and ranks.world() == 1 else None)


def learning_rate(step: int, total: int, config: Config) -> float:
    """Linear warm-up from nothing, constant, and a linear fall to zero over the last `decay_share` of the steps."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = (total - step) / total
    return config.lr * min(warm, left / config.decay_share if config.decay_share else 1.0)


@torch.no_grad()
def update_ema(ema: nn.Module, network: nn.Module, images_seen: int, half_life: float, config: Config, finite: torch.Tensor) -> None:
    """Move the average towards the network, with a `half_life` in images that ramps up over a short run (EDM2, arXiv 2312.02696, §3).

    `finite` is 1 or, on the same device, 0 for a step that was skipped: it leaves the average alone, without the host looking.
    """
    half_life = min(half_life, config.ema_ramp * images_seen)
    average = list(ema.parameters())
    way = torch._foreach_sub(list(network.parameters()), average)
    torch._foreach_mul_(way, (1 - 0.5 ** (config.batch / half_life)) * finite)
    torch._foreach_add_(average, way)


class Run:
    """One training run: its state, its folder, and the loop."""

    def __init__(self, config: Config, folder: Path, network: DiT | None = None, before: dict | None = None):
        """`network` and `before` are those of a warm start: the weights, and what is known of their training."""
        torch.manual_seed(config.seed)
        self.config, self.folder, self.device = config, folder, pick(config.device)
        # On a CPU every repeat is then the same to the bit; filling fresh memory would only cost time.
        torch.use_deterministic_algorithms(self.device.type == "cpu")
        torch.utils.deterministic.fill_uninitialized_memory = False

        self.network = (network or DiT(**config.network())).to(self.device).train().requires_grad_(True)
        self.half_lives = config.half_lives()
        self.averages = {name: copy.deepcopy(self.network).eval().requires_grad_(False) for name in self.half_lives}
        self.ema = self.averages["weights"]  # the one that previews and publishing take
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay, fused=True
        )
        self.step, self.seconds = 0, 0.0
        self.loss_sum = torch.zeros((), device=self.device)  # since the last line of metrics.jsonl
        self.missed = torch.zeros((), device=self.device)  # steps since then that were not finite
        self.skipped = torch.zeros((), device=self.device)  # steps in a row that were not finite

        pixels, labels = data.with_blanks(*load_once(config), config.blank_images)
        self.draws = data.Draws(
            pixels, labels, config.batch, config.label_drop, self.network.null_label, config.seed, self.device, ranks.rank(), ranks.world()
        )
        self.total = max(1, round(config.epochs * self.draws.steps_per_epoch))
        self.preview_steps = max(1, round(config.preview_every * self.draws.steps_per_epoch))
        self.commit, self.before = commit(), before
        self.stopped_by: int | None = None
        shared = self.network if ranks.world() == 1 else DistributedDataParallel(self.network, broadcast_buffers=False)
        self.teacher = Teacher(config).to(self.device) if config.guide else None
        self.loss_of = make_loss(shared, config, self.device, self.teacher)
        if config.compile:
            self.loss_of = compiled(self.loss_of, self.device)

    @property
    def writes(self) -> bool:
        """Of several processes only the first leaves anything behind."""
        return ranks.rank() == 0

    # ---- the loop

    def train(self) -> None:
        """Go on until the last step, or until a signal asks to stop."""
        config = self.config
        saved_at = started = time.monotonic()
        seconds_before = self.seconds
        bar = tqdm(
            total=self.total * config.batch,
            initial=self.step * config.batch,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not self.writes,
        )
        if self.step == 0:
            self.preview()
        while self.step < self.total and not self.must_stop():
            norm, rate = self.advance()
            self.hold()
            now = time.monotonic()
            self.seconds = seconds_before + now - started
            bar.update(config.batch)
            if self.step % config.log_every == 0:
                bar.set_postfix(loss=f"{self.log(norm, rate):.4f}")
            if self.step % self.preview_steps == 0 and self.step < self.total:
                self.preview()
            # Of several processes the first knows the sum of the losses only when they log.
            if now - saved_at > config.checkpoint_every and (ranks.world() == 1 or self.step % config.log_every == 0):
                self.save()
                saved_at = now
        bar.close()
        self.loss_sum = ranks.total(self.loss_sum) / ranks.world()
        self.save()
        if self.step == self.total:
            self.preview()
            self.look_back()
        ranks.wait()

    def advance(self) -> tuple[torch.Tensor, float]:
        """One step; returns the norm of its gradient, still on the device, and its learning rate."""
        rate = learning_rate(self.step, self.total, self.config)
        loss = self.loss_of(*self.draws.at(self.step))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip, foreach=True)
        self.update(loss.detach(), norm, rate)
        self.step += 1
        images_seen, finite = self.step * self.config.batch, norm.isfinite().to(norm.dtype)
        for name, half_life in self.half_lives.items():
            update_ema(self.averages[name], self.network, images_seen, half_life, self.config, finite)
        return norm, rate

    def must_stop(self) -> bool:
        """Whether a signal came; several processes agree on it, so that all of them stop after the same step."""
        if ranks.world() > 1:
            self.stopped_by = int(ranks.most(torch.tensor(self.stopped_by or 0))) or None
        return self.stopped_by is not None

    def update(self, loss: torch.Tensor, norm: torch.Tensor, rate: float) -> None:
        """One optimizer step; a gradient that is not finite is skipped on the device, without the host looking."""
        not_finite = (~norm.isfinite()).float()
        self.optimizer.grad_scale, self.optimizer.found_inf = None, not_finite
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.device.type != "mps" or not not_finite.item():  # fused AdamW took no notice of found_inf on MPS until the middle of 2026
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.skipped = (self.skipped + 1) * not_finite
        self.missed += not_finite
        self.loss_sum += torch.where(not_finite > 0, 0, loss)

    # ---- what a run leaves behind

    def log(self, norm: torch.Tensor, rate: float) -> float:
        """Write a line of metrics.jsonl and return the mean loss of the finite steps since the last one (NaN, and null there, of none).

        Raises ValueError once nothing is finite any more.
        """
        missed = int(self.missed.item())
        steps = self.config.log_every - missed
        loss = ranks.total(self.loss_sum).item() / steps / ranks.world() if steps else math.nan
        self.loss_sum.zero_()
        self.missed.zero_()
        if self.skipped.item() >= NON_FINITE_LIMIT:
            raise ValueError(
                f"step {self.step}: the last {int(self.skipped.item())} gradients were not finite at a learning rate of {rate:.1e}; "
                f"the weights in {self.folder / 'weights'} are the last good ones, start from them with --init and a lower --lr"
            )
        found = {name: value if math.isfinite(value) else None for name, value in (("loss", loss), ("grad_norm", norm.item()))}
        row = {"step": self.step, "images": self.step * self.config.batch, **found, "lr": rate, "skipped": missed}
        self.note("metrics.jsonl", {**row, "seconds": round(self.seconds, 1)})
        return loss

    def note(self, name: str, row: dict) -> None:
        """Add a line to a file of the run."""
        if self.writes:
            with open(self.folder / name, "a") as file:
                file.write(json.dumps(row) + "\n")

    def preview(self) -> None:
        """A picture of every class from the same noise, drawn in 20 steps by the averaged weights."""
        if not self.writes:
            return
        config = self.config
        labels = torch.arange(len(images.CLASSES))
        *_, last = states(self.ema, labels, [config.seed] * len(labels), steps=20, guidance=config.default_guidance)
        pixels = images.to_pixels(last.x, config.pixel_mean, config.pixel_std)
        (self.folder / "previews").mkdir(exist_ok=True)
        with replacing(self.folder / "previews" / f"{self.step:07d}.png") as new:
            images.sheet(pixels, columns=6, scale=4).save(new)

    def look_back(self) -> None:
        """The whole run at a glance: its previews one after the other, and its loss."""
        if not self.writes:
            return
        pictures.growth(self.folder / "previews.gif", sorted((self.folder / "previews").glob("[0-9]*.png")))
        rows = [row for row in self.rows() if row["loss"] is not None]
        try:
            if rows:
                pictures.loss_curve(self.folder / "loss.png", rows)
        except ImportError:
            print("No loss.png: it needs matplotlib (requirements-dev.txt).")

    def rows(self) -> list[dict]:
        """The whole lines of metrics.jsonl."""
        log = self.folder / "metrics.jsonl"
        lines = log.read_text().splitlines(True) if log.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def save(self) -> None:
        """Write the checkpoint, and the averaged weights ready to draw with."""
        if not self.writes:
            return
        checkpoint.save(
            self.folder,
            {
                "network": self.network.state_dict(),
                "ema": self.ema.state_dict(),
                "ema_also": {name: average.state_dict() for name, average in self.averages.items() if average is not self.ema},
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "loss_sum": self.loss_sum,
                "missed": self.missed,
                "skipped": self.skipped,
                "before": self.before,
                "teacher": self.teacher and self.teacher.fingerprint,
            },
        )
        for name, average in self.averages.items():
            if self.saved_weights(name) != self.step:  # the same weights may have been measured meanwhile
                weights.save(average, self.folder / name, {"training": self.summary()})

    def saved_weights(self, name: str) -> int | None:
        """The step of the weights in a folder of the run."""
        try:
            return json.loads((self.folder / name / weights.METRICS).read_text())["training"]["steps"]
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def hold(self) -> None:
        """Raise OSError where the folder of the run is gone, or another run's that came after it."""
        if self.writes and inode(self.folder / ".lock") != self.lock_inode:
            raise OSError(f"{self.folder} is not this run's any more")

    def restore(self) -> None:
        """Go back to the newest whole checkpoint of the folder; lines of metrics.jsonl after it are dropped."""
        state, damage = checkpoint.load(self.folder)
        if damage:
            print(damage)
        self.network.load_state_dict(state["network"])
        for name, average in self.averages.items():
            average.load_state_dict(state["ema"] if average is self.ema else state["ema_also"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.before = state["step"], state["seconds"], state.get("before")
        if state.get("teacher") != (self.teacher and self.teacher.fingerprint):
            raise ValueError(f"the weights in {self.config.init} or {self.config.guide} are not those that {self.folder} began with")
        if self.step > self.total:
            raise ValueError(f"{self.folder} is at step {self.step} already, and {self.config.epochs:g} epochs end at step {self.total}")
        for name in ("loss_sum", "missed", "skipped"):
            setattr(self, name, state.get(name, torch.zeros(())).to(self.device))
        if self.writes:
            kept = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= self.step]
            with replacing(self.folder / "metrics.jsonl") as new:
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
            "device": device_name(self.device),
            "torch": torch.__version__,
            "commit": self.commit,
            "command": self.config.command(),
            **({"guide": self.teacher.summary()} if self.teacher else {}),
            **({"before": self.before} if self.before else {}),
        }


def load_once(config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """The data set; of the processes of a machine the first one downloads it where it is not there yet."""
    if ranks.local_rank() > 0:
        ranks.wait()
    loaded = data.load(config.data, config.data_root)
    if ranks.local_rank() == 0:
        ranks.wait()
    return loaded


def device_name(device: torch.device) -> str:
    """The device of a run, as often as it has processes."""
    return described(device) if ranks.world() == 1 else f"{ranks.world()} × {described(device)}"


def memory(device: torch.device) -> float:
    """GB that were held at most: of the GPU what was reserved, else by the process (on Windows 0, which does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 1e9
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


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
        run = Run(replace(config, **options), folder)
        claim(run)
        run.restore()
    else:
        not_taken(folder)
        run = fresh(options, folder, preset)
        folder.mkdir(parents=True, exist_ok=True)
        claim(run)
        not_taken(folder)
        run.save()  # so that a folder with a config.json always has something to go on from
    ranks.wait()
    if run.writes:
        run.config.save(folder / "config.json")
    run.note("history.jsonl", {"step": run.step, "commit": run.commit, "device": device_name(run.device), "torch": torch.__version__})
    return run


def not_taken(folder: Path) -> None:
    """Raise ValueError where a folder holds a run already."""
    if ranks.rank() == 0 and (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a run already; go on with --resume {folder}, or choose another --name")


def fresh(options: dict, folder: Path, preset: str) -> Run:
    """A run at its first step, nothing of which is on the disk yet; raises ValueError or OSError."""
    config = Config(**{**PRESETS[preset], **options})
    network = before = None
    if config.init:
        loaded = weights.load(config.init, dtype=torch.float32)
        before = loaded.metrics.get("training")
        config = replace(config, **{name: getattr(loaded.network, name) for name in ARCHITECTURE})
        other = sorted(name for name in options if name in ARCHITECTURE and options[name] != getattr(config, name))
        if other:
            raise ValueError(f"the weights in {config.init} have a {', '.join(other)} of their own; leave it out")
        network = DiT(**config.network())  # with the time shift of the training, whatever that of the sampler was tuned to
        network.load_state_dict(loaded.network.state_dict())
    return Run(config, folder, network, before)


def claim(run: Run) -> None:
    """Hold the folder of a run for as long as this process lives; raises ValueError where another one has it."""
    if run.writes:
        run.lock = FileLock(run.folder / ".lock", timeout=0)
        try:
            run.lock.acquire()
        except Timeout:
            raise ValueError(f"another process is training in {run.folder}; wait for it, or choose another --name") from None
        run.lock_inode = inode(run.folder / ".lock")


def inode(path: Path) -> int | None:
    """What tells a file from another one that came later under its name; None where there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def plan(run: Run) -> None:
    """Say what the run would do, and do one step of it; nothing of it is written."""
    say = print if run.writes else lambda *words: None
    parameters = sum(parameter.numel() for parameter in run.network.parameters())
    say(f"{run.config.command()}\n{run.total:,} steps of {run.config.batch}: {run.total * run.config.batch:,} images of {run.config.data}")
    say(f"{parameters:,} parameters on {device_name(run.device)}")
    started = time.monotonic()
    norm, rate = run.advance()
    loss, norm, taken = ranks.total(run.loss_sum).item() / ranks.world(), norm.item(), time.monotonic() - started
    say(f"One step, compiling included: {taken:.1f} s, loss {loss:.4f}, gradient norm {norm:.4f}, learning rate {rate:.1e}")
    say(f"Memory held at most: {memory(run.device):.1f} GB{' of the GPU' if run.device.type == 'cuda' else ', by the process'}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="reference", help="where the other flags start from")
    parser.add_argument("--name", default="", help="the run is runs/NAME (default: the preset's name)")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with the run in this folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what the run would do, and do one step of it; only the data set is fetched"
    )
    add_options(parser)
    options = vars(parser.parse_args(argv))
    preset, name, resume, dry = (options.pop(key) for key in ("preset", "name", "resume", "dry_run"))
    with sentence_on_error(parser):
        ranks.join(options.get("device", "auto"))
        folder = Path(resume) if resume else Path("runs") / (name or preset)
        if dry and resume:
            raise ValueError("--dry-run is for a run that has not begun; leave out --resume")
        if dry:
            plan(fresh(options, folder, preset))
            status = 0
        else:
            status = go(start(options, folder, preset, bool(resume)))
        ranks.leave()  # not after an error: the others would have to come here too
        return status


def go(run: Run) -> int:
    """Train until the end or a signal; returns the exit status."""
    say = print if run.writes else lambda *words: None
    say(f"{run.folder}: {run.total:,} steps of {run.config.batch} on {run.device}, {run.config.data}, from step {run.step}")

    def stop(number, frame):
        run.stopped_by = number

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        run.train()
    except OSError as error:
        if inode(run.folder / ".lock") != run.lock_inode:
            raise OSError(f"stopped at step {run.step}, because {run.folder} is gone, or another run's by now") from None
        reason = " ".join(str(error).split())
        raise OSError(f"stopped at step {run.step}, {reason}; mend that and go on with --resume {run.folder}") from None
    finally:
        for number, before in handlers.items():
            signal.signal(number, before)
        if run.writes:
            run.lock.release()
    if run.stopped_by and run.step < run.total:
        say(f"Stopped at step {run.step}. Go on with: {ranks.launcher()} -m training.train --resume {run.folder}")
        return 128 + run.stopped_by
    say(f"Done. Draw with it: python app.py --weights {run.folder / 'weights'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
