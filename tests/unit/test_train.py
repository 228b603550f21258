"""The trainer: objective, batches, configuration, and full runs on a tiny network and data set."""

import argparse
import copy
import json
import shlex
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from PIL import Image
from torch import nn

from model import common, flow, images, weights
from model.dit import DiT
from model.sampling import MNIST_HISTOGRAM, SamplingConfig, draw_film, states
from tests.conftest import TINY
from tests.recovery.kills import equal, flat
from training import checkpoint, data, trainer
from training.command import start
from training.config import PRESETS, Config, add_options
from training.objective import assign_noise, learning_rate, make_loss, offset, times, update_ema
from training.run_folder import RunFolder
from training.trainer import Trainer

CPU = torch.device("cpu")
FULL, REFERENCE = (Config(**PRESETS[name]) for name in ("full", "reference"))


def rows(path) -> list[dict]:
    """The lines of a .jsonl file; fails for NaN and Infinity, which are not JSON."""
    return [json.loads(line, parse_constant=lambda word: pytest.fail(word)) for line in path.open()]


def parsed(command: str) -> Config:
    """The configuration of a training command."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "training.train"]
    parser = argparse.ArgumentParser()
    add_options(parser)
    return Config(**vars(parser.parse_args(words[3:])))


# ---- loss, batches, EMA, learning rate


def test_network_memorizes_eight_images():
    """Network, loss and sampler reproduce the training images after training."""
    config = Config(width=64, depth=2, heads=2, patch=7, batch=16, lr=4e-3, warmup_steps=2)
    pixels = torch.zeros(8, 28, 28, dtype=torch.uint8)
    for i in range(8):
        pixels[i, 3 * i : 3 * i + 4, 4:24] = 255  # a bar, lower for each further class
    network = DiT(**config.network())
    batches = data.Batches(pixels.repeat(2, 1, 1), torch.arange(8).repeat(2), 16, 0.1, network.null_label, 0, CPU)
    loss_of = make_loss(network, config, CPU)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, config.beta2))
    losses = []
    for step in range(steps := 250):
        loss = loss_of(*batches.at(step))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, config)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 < 0.15 * losses[0]
    *_, last = states(network, torch.arange(8), range(8), SamplingConfig())
    drawn = images.to_pixels(last.x, config.pixel_mean, config.pixel_std)
    distances = torch.cdist(drawn.flatten(1).float(), pixels.flatten(1).float())
    assert distances.argmin(1).tolist() == list(range(8))
    assert (drawn.float() - pixels).abs().mean() < 40


def test_loss_is_the_squared_error_of_the_velocity():
    config = Config(**TINY)
    white = torch.full((4, 28, 28), 255, dtype=torch.uint8)
    batch = data.Batch(white, torch.arange(4), torch.randn(4, 1, 28, 28), torch.zeros(4))
    image = (1 - config.pixel_mean) / config.pixel_std

    def exact(x, t, labels):  # the velocity depends only on x_t and t, since all images are white
        assert t.tolist() == pytest.approx([config.time_shift / (1 + config.time_shift)] * 4)
        return (x - image) / t.view(-1, 1, 1, 1)

    assert make_loss(exact, config, CPU)(*batch) < 1e-10
    of_zero = make_loss(lambda x, t, labels: torch.zeros_like(x), config, CPU)(*batch)
    torch.testing.assert_close(of_zero, (batch.noise - image).square().mean())


def test_loss_compiles_to_one_graph():
    """A graph break prevents fusion and, on a GPU, adds a launch for every part."""
    config = Config(**TINY)
    loss_of = make_loss(DiT(**config.network()), config, CPU)
    batch = data.Batch(torch.zeros(4, 28, 28).byte(), torch.arange(4), torch.randn(4, 1, 28, 28), torch.randn(4))
    whole = torch.compile(loss_of, backend="eager", fullgraph=True)  # raises at a break
    torch.testing.assert_close(whole(*batch), loss_of(*batch))


def test_offset_noise_is_normal_with_a_common_part():
    """Adding the same 0.5·N(0, 1) to all pixels adds 0.25 to every entry of the identity covariance."""
    noise = torch.randn(50_000, 1, 3, 3)
    found = torch.cov(offset(noise, 0.5).flatten(1).T)
    torch.testing.assert_close(found, torch.eye(9) + 0.25, rtol=0, atol=0.04)
    config = Config(**TINY, offset_noise=0.5, pixel_mean=0.0)
    black, noise = torch.zeros(64, 28, 28, dtype=torch.uint8), torch.randn(64, 1, 28, 28)
    loss = make_loss(lambda x, t, labels: torch.zeros_like(x), config, CPU)(black, None, noise, torch.zeros(64))
    torch.testing.assert_close(loss, offset(noise, 0.5).square().mean())


@pytest.mark.parametrize("count", [7, 8])
def test_immiscible_noise_is_a_closer_permutation(count):
    image, noise = torch.randn(count, 1, 28, 28), torch.randn(count, 1, 28, 28)
    found = assign_noise(noise, image)
    assert sorted(found[:, 0, 0, 0].tolist()) == sorted(noise[:, 0, 0, 0].tolist())
    assert (image - found).square().sum() < (image - noise).square().sum()
    again = assign_noise(found, image)  # a second pass can find further swaps
    assert (image - again).square().sum() <= (image - found).square().sum()


def test_immiscible_noise_of_a_pair_is_the_closer_of_two():
    image, noise = torch.eye(2).view(2, 1, 1, 2), torch.tensor([[0.1, 0.9], [0.8, 0.2]]).view(2, 1, 1, 2)
    assert torch.equal(assign_noise(noise, image), noise.flip(0))
    assert torch.equal(assign_noise(noise.flip(0), image), noise.flip(0))


def test_loss_assigns_the_noise_to_the_images():
    """Each image equals the noise of its neighbour in the batch."""
    config = Config(**TINY, immiscible=True)
    levels = torch.randint(0, 256, (4, 28, 28), dtype=torch.uint8)
    noise = images.to_model(levels, config.pixel_mean, config.pixel_std)
    batch = data.Batch(levels.roll(1, 0), torch.arange(4), noise, torch.zeros(4))
    assert make_loss(lambda x, t, labels: torch.zeros_like(x), config, CPU)(*batch) == 0


def test_uniform_times_are_uniform_before_the_shift():
    normal = torch.randn(20_000)
    t = times(normal, Config(uniform_times=True, time_shift=1.0)).sort().values
    assert (t - torch.linspace(0, 1, 20_000)).abs().max() < 0.02
    shifted = times(torch.zeros(1), Config(uniform_times=True, time_shift=3.0))
    assert shifted.item() == pytest.approx(0.75)
    assert torch.equal(times(normal, Config()), flow.logit_normal(normal, Config.time_shift))


def test_each_epoch_has_every_image_once_and_each_step_its_own_batch():
    pixels = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1).expand(-1, 28, 28)
    batches, again = (data.Batches(pixels, torch.zeros(40).long(), 10, 0.25, 12, 5, CPU) for _ in range(2))
    for epoch in range(2):
        seen = torch.cat([batches.at(4 * epoch + i).pixels[:, 0, 0] for i in range(4)])
        assert sorted(seen.tolist()) == list(range(40))
    assert not torch.equal(batches.at(0).pixels, batches.at(4).pixels)
    assert all(map(torch.equal, batches.at(6), again.at(6)))
    assert not torch.equal(batches.at(6).noise, batches.at(7).noise)
    dropped = sum((batches.at(i).labels == 12).sum().item() for i in range(200)) / 2000
    assert dropped == pytest.approx(0.25, abs=0.03)


def test_blank_images_have_classes_of_their_own():
    pixels, labels = data.with_blanks(torch.ones(3, 28, 28, dtype=torch.uint8), torch.tensor([1, 2, 3]), 2)
    assert labels.tolist() == [1, 2, 3, 10, 10, 11, 11]
    assert pixels[3:, 0, 0].tolist() == [0, 0, 255, 255]


@pytest.mark.slow
def test_real_mnist_with_blank_images(mnist_root):
    pixels, labels = data.with_blanks(*data.load("mnist", mnist_root), 1000)
    assert pixels.shape == (62_000, 28, 28)
    assert labels.bincount().tolist() == [*MNIST_HISTOGRAM, 1000, 1000]


@pytest.mark.parametrize(
    ("options", "steps", "remaining"),
    [
        ({"ema_images": 100.0, "ema_ramp": 1e9}, range(1, 11), 1 / 2),
        ({"ema_images": 100.0, "ema_ramp": 1e9}, range(1, 21), 1 / 4),
        ({"ema_images": 1e9, "ema_ramp": 1.0}, range(1, 5), 0.5 ** (1 + 1 / 2 + 1 / 3 + 1 / 4)),
        ({"ema_images": 1e9, "ema_ramp": 0.5}, range(101, 104), 0.25 ** (1 / 101 + 1 / 102 + 1 / 103)),
    ],
)
def test_moving_average_has_its_half_life(options, steps, remaining):
    """10 images per step; early in a run the half-life is a share of the images seen."""
    config = Config(batch=10, **options)
    average, network = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.zeros_(average.weight)
    nn.init.ones_(network.weight)
    for step in steps:
        update_ema(average, network, 10 * step, config)
    assert average.weight.item() == pytest.approx(1 - remaining, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (
            FULL,
            {0: 1e-6, 499: 5e-4, 999: 1e-3, 30_000: 1e-3, 36_300: 1e-3, 54_450: 5e-4, 72_599: 1e-3 * 2 / 72_600},
        ),
        (REFERENCE, {0: 2e-7, 499: 1e-4, 999: 2e-4, 30_000: 2e-4, 36_300: 2e-4, 54_450: 2e-4, 72_599: 2e-4}),
        (replace(FULL, warmup_steps=0, decay_share=1.0), {0: 1e-3, 18_150: 7.5e-4, 72_599: 1e-3 / 72_600}),
    ],
    ids=["full", "reference", "decay only"],
)
def test_learning_rate_warms_up_stays_and_decays(config, rates):
    assert {step: learning_rate(step, 72_600, config) for step in rates} == pytest.approx(rates)


# ---- the trainer


def test_steps_of_a_run_are_those_of_its_recipe(root, tmp_path):
    """The gradients are clipped to about the epsilon of AdamW, which is otherwise invariant to their scale."""
    recipe = {"clip": 1e-6, "beta2": 0.5, "weight_decay": 1.0, "label_drop": 1.0, "ema_ramp": 1.0}
    config = Config(**TINY, data_root=root, **recipe)
    run = Trainer(config, RunFolder(tmp_path))
    network, average = copy.deepcopy(run.network), copy.deepcopy(run.ema)
    loss_of = make_loss(network, config, CPU)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.5), weight_decay=1.0)
    for step in range(3):
        batch = run.batches.at(step)
        assert (batch.labels == network.null_label).all()
        loss_of(*batch).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1e-6)
        optimizer.param_groups[0]["lr"] = learning_rate(step, run.total, config)
        optimizer.step()
        optimizer.zero_grad()
        for old, new in zip(average.parameters(), network.parameters(), strict=True):
            old.data.lerp_(new.data, 1 - 0.5 ** (1 / (step + 1)))  # the half-life is all images seen
        run.advance()
    for found, expected in ((run.network, network), (run.ema, average)):
        torch.testing.assert_close(found.state_dict(), expected.state_dict())


def test_previews_and_kept_weights_are_of_the_average(root, tmp_path, monkeypatch):
    run, shown = Trainer(Config(**TINY, data_root=root, keep_weights=True), RunFolder(tmp_path)), []
    for parameter in run.ema.parameters():
        nn.init.normal_(parameter, std=0.1)
    monkeypatch.setattr(run.folder, "save_preview", lambda step, pixels: shown.append(pixels))
    run.record_start()
    run.step = 1
    run.preview()
    assert torch.equal(shown[0], draw_film(run.ema, torch.arange(12), [0] * 12, run.sampling).digits)
    kept, average = weights.read(tmp_path / "kept/0000001").network.state_dict(), run.ema.state_dict()
    assert all(torch.equal(tensor, average[name].half().float()) for name, tensor in kept.items())


# ---- the configuration


@pytest.mark.parametrize(
    "config",
    [
        *(Config(**options) for options in PRESETS.values()),
        Config(weight_decay=0.5, init="my runs/a", seed=2**31 - 1, data="fashion"),
    ],
)
def test_recorded_command_gives_the_same_recipe(config):
    elsewhere = replace(config, device="cpu", compile=False, log_every=7, checkpoint_every=1.0, data_root="there")
    assert elsewhere.command() == config.command()  # only the recipe, no settings of the machine
    assert parsed(config.command()).recipe() == config.recipe()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1}, "lr must be a number from 1e-09 to 1, not -1"),
        ({"lr": float("nan")}, "lr must be a number from 1e-09 to 1, not nan"),
        ({"lr": "fast"}, "lr must be a number from 1e-09 to 1, not 'fast'"),
        ({"batch": 2.5}, "batch must be a whole number from 1 to 1000000000, not 2.5"),
        ({"batch": True}, "batch must be a whole number from 1 to 1000000000, not True"),
        ({"seed": 2**31}, "seed must be a whole number from 0 to 2147483647, not 2147483648"),
        ({"seed": None}, "seed must be a whole number from 0 to 2147483647, not None"),
        ({"width": "256"}, "width must be a whole number from 1 to 4096, not '256'"),
        ({"warmup_steps": 10**400}, f"warmup_steps must be a whole number from 0 to 1000000000, not 1{'0' * 36}..."),
        ({"compile": 1}, "compile must be true or false, not 1"),
        ({"compile": "true"}, "compile must be true or false, not 'true'"),
        ({"init": None}, "init must be printable text of at most 1000 characters, not None"),
        ({"init": "a" * 5000}, f"init must be printable text of at most 1000 characters, not '{'a' * 36}..."),
        ({"data_root": "a\0b"}, r"data_root must be printable text of at most 1000 characters, not 'a\x00b'"),
        ({"device": ["cpu"]}, "device must be printable text of at most 1000 characters, not ['cpu']"),
        ({"data": "cats"}, "data must be mnist, fashion, kmnist, a folder or an .npz, not 'cats'"),
    ],
)
def test_configuration_names_the_field_and_its_range(options, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Config(**options)
    assert str(error.value) == words


def test_options_of_the_ablations_are_flags_without_help():
    parser = argparse.ArgumentParser()
    add_options(parser)
    text, hidden = parser.format_help(), ("qk_norm", "predicts_image", "uniform_times", "offset_noise", "immiscible")
    assert "--clip" in text
    assert not [name for name in (*hidden, "keep_weights") if name.replace("_", "-") in text]
    changed = Config(qk_norm=False, predicts_image=True, uniform_times=True, offset_noise=0.1, immiscible=True)
    assert parsed(changed.command()).recipe() == changed.recipe() != Config().recipe()


def test_released_weights_are_of_the_default_recipe():
    released = weights.load()
    released = released.teacher or released  # the velocity network, if the weights are a flow map with a teacher
    record = released.metrics["training"]
    assert (record["data"], record["seed"], record["batch"]) == (Config.data, Config.seed, Config.batch)
    assert (record["lr"], record["epochs"], record["steps"]) == (Config.lr, Config.epochs, 72_600)
    assert released.sampling == SamplingConfig(guidance=Config.guidance, time_shift=Config.time_shift)
    assert {name: getattr(released.network, name) for name in Config().network()} == Config().network()


# ---- full runs


def test_run_leaves_everything_it_promises(go, tmp_path):
    assert go("--name", "a", epochs=2, preview_every=1) == 0
    run = tmp_path / "runs/a"
    promised = (
        "checkpoint.previous.pt checkpoint.pt config.json history.jsonl loss.png metrics.jsonl previews previews.gif"
    )
    assert sorted(path.name for path in run.iterdir() if path.name != ".lock") == [*promised.split(), "weights"]
    log = rows(run / "metrics.jsonl")
    assert [(row["step"], row["images"], row["nonfinite"]) for row in log] == [
        (2, 64, 0),
        (4, 128, 0),
        (6, 192, 0),
        (8, 256, 0),
    ]
    assert [row["lr"] for row in log] == pytest.approx([1e-3, 1e-3, 7.5e-4, 2.5e-4])  # decay over the last four steps
    assert sorted(path.name for path in (run / "previews").iterdir()) == ["0000000.png", "0000004.png", "0000008.png"]
    with Image.open(run / "previews.gif") as film:
        assert film.n_frames == 3
    assert Config.load(run / "config.json").epochs == 2
    loaded = weights.load(str(run / "weights"), dtype=torch.float32)
    record = loaded.metrics["training"]
    assert (record["epochs"], record["steps"], record["images"]) == (2, 8, 256)
    assert parsed(record["command"]).recipe() == Config.load(run / "config.json").recipe()
    assert loaded.sampling == SamplingConfig(guidance=1.15, time_shift=1.63206)
    assert "guidance" not in (run / "weights/config.json").read_text()
    average = checkpoint.load(run)[0]["ema"]
    for name, tensor in loaded.network.state_dict().items():
        torch.testing.assert_close(tensor, average[name].half().float(), rtol=0, atol=0)


def test_resumed_run_equals_an_uninterrupted_one(go, tmp_path):
    """Stopped by a signal in mid-epoch and mid-log-interval; network, EMA, optimizer and log agree bit for bit."""
    assert go("--name", "whole", epochs=2.75) == 0
    assert go("--name", "parts", epochs=2.75, stop_after=5) == 128 + 15
    assert checkpoint.load(tmp_path / "runs/parts")[0]["step"] == 5
    assert go("--resume", "runs/parts") == 0
    whole, parts = (flat(checkpoint.load(tmp_path / "runs" / name)[0]) for name in ("whole", "parts"))
    assert whole["step"] == 11
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not equal(whole[name], parts[name])] == ["seconds"]
    whole, parts = (rows(tmp_path / "runs" / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert len(whole) == 5
    assert [{**row, "seconds": 0} for row in whole] == [{**row, "seconds": 0} for row in parts]


def test_options_of_the_ablations_survive_a_resume(go, tmp_path):
    """A run from before these options existed also resumes."""
    changed = {"qk_norm": False, "predicts_image": True, "immiscible": True, "offset_noise": 0.1, "keep_weights": True}
    assert go("--name", "a", epochs=2, preview_every=1, stop_after=3, **changed) == 128 + 15
    assert go("--resume", "runs/a") == 0
    config = Config.load(tmp_path / "runs/a/config.json")
    assert {name: getattr(config, name) for name in changed} == changed
    (kept,) = (tmp_path / "runs/a/kept").iterdir()
    assert (kept.name, weights.read(kept).metrics["training"]["images"]) == ("0000004", 128)
    assert not weights.read(tmp_path / "runs/a/weights").network.qk_norm

    assert go("--name", "b", epochs=1, stop_after=2) == 128 + 15
    state = checkpoint.load(tmp_path / "runs/b")[0]
    state["config"] = {name: value for name, value in state["config"].items() if name not in changed}
    checkpoint.save(tmp_path / "runs/b", state)
    assert go("--resume", "runs/b") == 0
    assert [row["step"] for row in rows(tmp_path / "runs/b/history.jsonl")] == [0, 2]


def test_interrupted_run_prints_how_to_continue(go, capsys):
    assert go("--name", "a", epochs=1, stop_after=2) == 128 + 15
    command = common.python("-m", "training.train", "--resume", "runs/a")
    assert f"Stopped at step 2. Continue with: {command}\n" in capsys.readouterr().out


def test_history_and_summary_name_every_commit_and_device_of_a_run(go, tmp_path, monkeypatch):
    run, recorded = tmp_path / "runs/a", []
    for arguments, commit, device, stop_after in (
        (["--name", "a"], "aaaa", "a laptop", 2),
        (["--resume", "runs/a"], "bbbb", "a server", 3),
        (["--resume", "runs/a"], "aaaa", "a laptop", None),
    ):
        monkeypatch.setattr(trainer, "git_commit", lambda commit=commit: commit)
        monkeypatch.setattr(trainer, "described", lambda device, name=device: name)
        assert go(*arguments, stop_after=stop_after, **({"epochs": 1.5} if "--name" in arguments else {})) in (0, 143)
        recorded.append(weights.read(run / "weights").metrics["training"])
    history = rows(run / "history.jsonl")
    same = {"torch": torch.__version__, "data": "mnist", "data_sha256": history[0]["data_sha256"]}
    assert history == [
        {"step": 0, "commit": "aaaa", "device": "a laptop", **same},
        {"step": 2, "commit": "bbbb", "device": "a server", **same},
        {"step": 3, "commit": "aaaa", "device": "a laptop", **same},
    ]
    both = ("aaaa, then bbbb", "a laptop, then a server")
    assert [(record["commit"], record["device"]) for record in recorded] == [("aaaa", "a laptop"), both, both]
    assert [record["steps"] for record in recorded] == [2, 3, 6]
    assert {record["torch"] for record in recorded} == {torch.__version__}


def test_partial_preview_of_a_killed_run_is_not_in_the_film(go, tmp_path):
    assert go("--name", "a", epochs=1, preview_every=1, stop_after=2) == 143
    (tmp_path / "runs/a/previews/.0000002.77.png").write_bytes(b"partial")
    assert go("--resume", "runs/a") == 0
    with Image.open(tmp_path / "runs/a/previews.gif") as film:
        assert film.n_frames == 2


def test_dry_run_takes_a_step_and_writes_nothing(go, tmp_path, capsys):
    assert go("--name", "a", "--dry-run", epochs=3) == 0
    shown = capsys.readouterr().out
    assert "12 steps of 32: 384 images of mnist" in shown
    assert "rate 5.0e-04" in shown
    assert not (tmp_path / "runs").exists()
    assert go("--resume", "runs/a", "--dry-run") == 2
    assert "leave out --resume" in capsys.readouterr().err


def test_resumed_run_keeps_its_recipe(go, tmp_path, capsys):
    assert go("--name", "a", epochs=2, stop_after=3) == 143
    before = {path: path.read_bytes() for path in (tmp_path / "runs/a").iterdir() if path.is_file()}
    assert go("--resume", "runs/a", epochs=5, lr=1e-4, batch=32) == 2  # only the batch is unchanged
    error = capsys.readouterr().err
    assert "a resumed run keeps its epochs, lr; " in error
    assert "--init runs/a/weights" in error
    assert {path: path.read_bytes() for path in before} == before
    assert go("--resume", "runs/a", log_every=4) == 0
    assert Config.load(tmp_path / "runs/a/config.json") == Config(
        **{**TINY, "epochs": 2, "log_every": 4, "data_root": str(tmp_path / "data")}
    )
    assert [row["step"] for row in rows(tmp_path / "runs/a/metrics.jsonl")] == [2, 4, 8]


def test_edited_configuration_is_refused_on_resume(go, tmp_path, capsys):
    assert go("--name", "a", epochs=2, stop_after=3) == 143
    run = tmp_path / "runs/a"
    original = (run / "config.json").read_text()
    for edited in ({"seed": 1}, {"batch": 16}, {"batch": 64, "seed": 3}, {"epochs": 3.0}):
        (run / "config.json").write_text(json.dumps({**json.loads(original), **edited}))
        before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
        capsys.readouterr()
        assert go("--resume", "runs/a") == 2
        sentence = f"the checkpoint in runs/a is from a run with another {', '.join(edited)}"
        assert capsys.readouterr().err == f"python -m training.train: {sentence}\n"
        assert {path: path.read_bytes() for path in before} == before
    (run / "config.json").write_text(original)
    assert go("--resume", "runs/a") == 0


def test_edited_data_is_refused_before_the_other_set_is_loaded(go, tmp_path, monkeypatch, capsys):
    assert go("--name", "a", epochs=2, stop_after=3) == 143
    config = tmp_path / "runs/a/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "data": "fashion"}))
    monkeypatch.setattr(data, "load", lambda *arguments: pytest.fail("it loads"))
    assert go("--resume", "runs/a") == 2
    assert "the run in runs/a began with other images than those in fashion" in capsys.readouterr().err


def test_finished_run_keeps_what_was_measured_when_resumed(go, tmp_path):
    assert go("--name", "a", epochs=1) == 0
    (tmp_path / "runs/a/weights/samples.png").write_bytes(b"measured for hours")
    log = (tmp_path / "runs/a/metrics.jsonl").read_bytes()
    assert go("--resume", "runs/a") == 0
    assert (tmp_path / "runs/a/weights/samples.png").read_bytes() == b"measured for hours"
    assert (tmp_path / "runs/a/metrics.jsonl").read_bytes() == log


def test_warm_start_begins_with_the_weights(go, root, tmp_path):
    assert go("--name", "a", epochs=1) == 0
    options = {name: value for name, value in TINY.items() if name not in ("width", "depth", "heads")}
    options = {**options, "data_root": root, "init": str(tmp_path / "runs/a/weights"), "epochs": 1.0}
    run = start(Trainer, options, tmp_path / "runs/b", "full")
    initial = weights.load(str(tmp_path / "runs/a/weights"), dtype=torch.float32).network.state_dict()
    for network in (run.network, run.ema):
        assert all(torch.equal(tensor, initial[name]) for name, tensor in network.state_dict().items())
    assert (run.step, run.config.width) == (0, TINY["width"])
    run.folder.release()
    assert go("--resume", "runs/b") == 0
    record = weights.load(str(tmp_path / "runs/b/weights")).metrics["training"]
    assert (record["epochs"], record["initialized_from"]["epochs"]) == (1, 1)
    assert record["initialized_from"]["command"] != record["command"]
    assert parsed(record["command"]).recipe() == Config.load(tmp_path / "runs/b/config.json").recipe()
    with pytest.raises(ValueError, match="have a different width; leave it out"):
        start(Trainer, {**options, "width": 64}, tmp_path / "runs/c", "full")
    assert not (tmp_path / "runs/c").exists()


@pytest.mark.parametrize("moment", [(trainer.checkpoint, "save"), (Config, "save")])
def test_start_that_was_killed_leaves_nothing_in_the_next_one(go, tmp_path, monkeypatch, moment):
    """Killed before config.json exists and started again: another commit, another network."""

    def kill(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "git_commit", lambda: "aaaa")
    with monkeypatch.context() as patch:
        patch.setattr(*moment, kill)
        assert go("--name", "a", epochs=1) == 130
    monkeypatch.setattr(trainer, "git_commit", lambda: "bbbb")
    options = {**TINY, "width": 16, "epochs": 1.0, "data_root": str(tmp_path / "data")}
    start(Trainer, options, tmp_path / "runs/a", "full").folder.release()
    assert [row["commit"] for row in rows(tmp_path / "runs/a/history.jsonl")] == ["bbbb"]
    assert weights.read(tmp_path / "runs/a/weights").network.width == 16
    assert weights.read(tmp_path / "runs/a/weights").metrics["training"]["commit"] == "bbbb"


def test_run_is_not_started_over_another(go, tmp_path, capsys):
    assert go("--name", "a", epochs=1) == 0
    before = (tmp_path / "runs/a/checkpoint.pt").read_bytes()
    assert go("--name", "a", epochs=1) == 2
    assert "runs/a already holds a run; continue it with --resume runs/a" in capsys.readouterr().err
    assert (tmp_path / "runs/a/checkpoint.pt").read_bytes() == before


# ---- non-finite gradients


def test_nonfinite_gradient_changes_no_parameter(root, tmp_path):
    run = Trainer(Config(**TINY, data_root=root), RunFolder(tmp_path))
    before = [parameter.detach().clone() for parameter in run.network.parameters()]
    for value, finite in ((float("nan"), 0.0), (float("nan"), 0.0), (0.01, 1.0)):
        for parameter in run.network.parameters():
            parameter.grad = torch.full_like(parameter, value)
        run.update(torch.tensor(value), torch.tensor(finite))
        assert all(map(torch.equal, before, run.network.parameters())) == (finite == 0)
    assert run.nonfinite_in_a_row.item() == 0
    assert run.nonfinite_since_log.item() == 2
    assert run.loss_sum.item() == pytest.approx(0.01)


def test_skipped_steps_leave_network_and_log_alone(go, tmp_path, monkeypatch):
    """The loss is the mean over finite steps; the others are counted, and the log contains no NaN."""
    networks, losses = [], []

    def advance(self, advance=Trainer.advance):
        honest = self.loss_of
        if self.step in (1, 2, 3):
            self.loss_of = lambda *batch: honest(*batch) * torch.nan
        else:
            self.loss_of = lambda *batch: losses.append(honest(*batch)) or losses[-1]
        norm = advance(self)
        self.loss_of = honest
        networks.append([parameter.clone() for parameter in self.network.parameters()])
        assert all(parameter.isfinite().all() for parameter in self.ema.parameters())
        return norm

    monkeypatch.setattr(Trainer, "advance", advance)
    assert go("--name", "a", epochs=1.5) == 0
    assert [all(map(torch.equal, before, after)) for before, after in pairwise(networks)] == [
        True,
        True,
        True,
        False,
        False,
    ]
    log = rows(tmp_path / "runs/a/metrics.jsonl")
    assert [row["nonfinite"] for row in log] == [1, 2, 0]
    assert [row["loss"] for row in log[:2]] == [pytest.approx(losses[0].item()), None]
    assert log[1]["grad_norm"] is None
    assert log[2]["loss"] == pytest.approx((losses[1] + losses[2]).item() / 2)


def test_diverged_run_stops_with_step_and_rate(go, monkeypatch, capsys):
    monkeypatch.setattr(
        trainer,
        "make_loss",
        lambda network, *rest: lambda *batch: sum(p.sum() for p in network.parameters()) * torch.nan,
    )
    assert go("--name", "a", epochs=20) == 2
    error = capsys.readouterr().err
    assert "step 10: the last 10 gradients were not finite at a learning rate of 1.0e-03" in error
    assert "--init runs/a/weights" in error
    assert "a lower --lr" in error


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (["--name", "a"], {"batch": 1000}, "batch 1000 is larger than the data set of 128"),
        (["--name", "a"], {"data_root": "nothing"}, "not in nothing/MNIST/raw and cannot be downloaded"),
        (["--name", "a"], {"width": 30, "heads": 4}, "width 30 is not divisible by heads 4"),
        (["--name", "a"], {"data": "cats"}, "data must be mnist, fashion, kmnist, a folder or an .npz, not 'cats'"),
        (["--name", "a"], {"lr": -1}, "lr must be a number from 1e-09 to 1, not -1"),
        (["--name", "a"], {"device": "abacus"}, "device 'abacus' is not available here"),
        (["--name", "a", "--init", "nowhere/at/all"], {}, "neither a folder"),
        (["--resume", "runs/none"], {}, "runs/none"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(go, capsys, monkeypatch, tmp_path, arguments, options, words):
    monkeypatch.setattr(data.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    assert go(*arguments, **options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("python -m training.train: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "runs").exists()


def test_unwritable_folder_is_one_sentence(go, tmp_path, capsys):
    (tmp_path / "runs").write_text("in the way")
    assert go("--name", "a") == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m training.train: ")
    assert "runs" in error
    assert error.count("\n") == 1
