import argparse
import json
import math
from itertools import pairwise

import pytest
import torch
from PIL import Image
from torch import nn

from model import flow, images, weights
from model.generate import MNIST_HISTOGRAM
from tests.conftest import TINY
from training import checkpoint, data, train
from training.config import PRESETS, Config, add_options
from training.defaults import set_defaults
from training.train import Run, learning_rate, main, make_loss, start, update_ema


def test_eight_images_are_learned_by_heart():
    """The network, the loss and the sampler together: what is drawn are the images of the classes."""
    config = Config(**{**TINY, "width": 64, "depth": 2, "patch": 4, "batch": 16, "lr": 2e-3})
    torch.manual_seed(0)
    pixels = torch.zeros(8, 28, 28, dtype=torch.uint8)
    for i in range(8):
        pixels[i, 3 * i : 3 * i + 4, 4:24] = 255  # a bar, lower for each class
    device = torch.device("cpu")
    network = train.DiT(**config.network())
    draws = data.Draws(pixels.repeat(2, 1, 1), torch.arange(8).repeat(2), 16, 0.1, network.null_label, 0, device)
    loss_of, optimizer = make_loss(network, config, device), torch.optim.AdamW(network.parameters(), lr=config.lr)
    losses = []
    for step in range(400):
        loss = loss_of(*draws.at(step))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 < 0.15 * losses[0]
    *_, last = train.states(network, torch.arange(8), range(8), steps=20, guidance=1.0)
    drawn = images.to_pixels(last.x, config.pixel_mean, config.pixel_std)
    distances = torch.cdist(drawn.flatten(1).float(), pixels.flatten(1).float())
    assert distances.argmin(1).tolist() == list(range(8))
    assert (drawn.float() - pixels).abs().mean() < 40


def test_loss_is_the_error_of_the_velocity():
    config = Config(**TINY)
    draw = data.Draw(
        torch.full((4, 28, 28), 255, dtype=torch.uint8), torch.arange(4), torch.randn(4, 1, 28, 28), torch.zeros(4)
    )
    image = (1 - config.pixel_mean) / config.pixel_std

    def exact(x, t, labels):  # from x_t and t alone, with all images white
        assert t.tolist() == pytest.approx([config.time_shift / (1 + config.time_shift)] * 4)
        return (x - image) / t.view(-1, 1, 1, 1)

    assert make_loss(exact, config, torch.device("cpu"))(*draw) < 1e-10
    zero = make_loss(lambda x, t, labels: torch.zeros_like(x), config, torch.device("cpu"))(*draw)
    torch.testing.assert_close(zero, (draw.noise - image).square().mean())


def test_every_image_once_an_epoch_and_the_same_draw_for_the_same_step():
    pixels = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1).expand(-1, 28, 28)
    draws, again = (data.Draws(pixels, torch.zeros(40).long(), 10, 0.25, 12, 5, torch.device("cpu")) for _ in range(2))
    for epoch in range(2):
        seen = torch.cat([draws.at(4 * epoch + i).pixels[:, 0, 0] for i in range(4)])
        assert sorted(seen.tolist()) == list(range(40))
    assert not torch.equal(draws.at(0).pixels, draws.at(4).pixels)
    for first, second in zip(draws.at(6), again.at(6), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(draws.at(6).noise, draws.at(7).noise)
    dropped = sum((draws.at(i).labels == 12).sum().item() for i in range(200)) / 2000
    assert dropped == pytest.approx(0.25, abs=0.03)


def test_blank_images_have_their_classes():
    pixels, labels = data.with_blanks(torch.ones(3, 28, 28, dtype=torch.uint8), torch.tensor([1, 2, 3]), 2)
    assert labels.tolist() == [1, 2, 3, 10, 10, 11, 11]
    assert pixels[3:, 0, 0].tolist() == [0, 0, 255, 255]


def test_real_mnist_with_its_blanks(mnist_root):
    pixels, labels = data.with_blanks(*data.load("mnist", mnist_root), 1000)
    assert pixels.shape == (62_000, 28, 28)
    assert labels.bincount().tolist() == [*MNIST_HISTOGRAM, 1000, 1000]


def test_average_has_its_half_life():
    config = Config(batch=10, ema_images=100.0, ema_ramp=1e9)
    average, network = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.zeros_(average.weight)
    nn.init.ones_(network.weight)
    for step in range(1, 11):
        update_ema(average, network, 10 * step, config.ema_images, config, torch.ones(()))
    assert average.weight.item() == pytest.approx(0.5)


def test_average_of_a_short_run_forgets_the_start():
    config = Config(batch=10, ema_images=1e9, ema_ramp=0.05)
    average, network = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.zeros_(average.weight)
    nn.init.ones_(network.weight)
    for step in range(1, 101):
        update_ema(average, network, 10 * step, config.ema_images, config, torch.ones(()))
    assert average.weight.item() > 0.999


def test_learning_rate_warms_up_stays_and_falls():
    config = Config(lr=1.0, warmup_steps=10, decay_share=0.4)
    assert [learning_rate(step, 100, config) for step in (0, 4, 9, 50, 60)] == pytest.approx([0.1, 0.5, 1, 1, 1])
    assert [learning_rate(step, 100, config) for step in (80, 99)] == pytest.approx([0.5, 0.025])


def test_a_run_leaves_all_that_it_promises(go, tmp_path, capsys):
    assert go("--name", "a", epochs=2, preview_every=1) == 0
    run = tmp_path / "runs/a"
    promised = "checkpoint.previous.pt checkpoint.pt config.json history.jsonl loss.png metrics.jsonl previews previews.gif weights"
    assert sorted(path.name for path in run.iterdir() if path.name != ".lock") == promised.split()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert sorted(path.name for path in (run / "previews").iterdir()) == ["0000000.png", "0000004.png", "0000008.png"]
    with Image.open(run / "previews.gif") as film:
        assert film.n_frames == 3
    assert [json.loads(line)["step"] for line in (run / "history.jsonl").open()] == [0]
    loaded = weights.load(str(run / "weights"))
    assert loaded.metrics["training"]["images"] == 256
    assert Config.load(run / "config.json").epochs == 2


def test_resuming_equals_not_stopping(go, tmp_path, monkeypatch):
    assert go("--name", "whole", epochs=2.75, ema_also="5") == 0
    calls = iter(range(100))

    def stop_after_five(self, loss, norm, rate, update=Run.update):
        update(self, loss, norm, rate)
        if next(calls) == 4:
            self.stopped_by = 15

    with monkeypatch.context() as patch:
        patch.setattr(Run, "update", stop_after_five)
        assert go("--name", "parts", epochs=2.75, ema_also="5") == 128 + 15
    assert main(["--resume", "runs/parts"]) == 0
    whole, parts = (checkpoint.load(tmp_path / "runs" / name)[0] for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 11
    for part in ("network", "ema"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, parts[part][name]), name
            if part == "ema":
                assert torch.equal(whole["ema_also"]["weights-5"][name], parts["ema_also"]["weights-5"][name]), name
    rows = [
        [json.loads(line)["loss"] for line in (tmp_path / "runs" / name / "metrics.jsonl").open()]
        for name in ("whole", "parts")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 5


def test_every_average_has_its_half_life_and_its_folder(go, tmp_path):
    assert go("--name", "a", epochs=2, ema_images=100, ema_also="400, 2", ema_ramp=1e9, lr=1e-2) == 0
    state, _ = checkpoint.load(tmp_path / "runs/a")
    behind = []  # how far each average is behind the network: the longer its half-life, the further
    for folder in ("weights-400", "weights", "weights-2"):
        drawn_with = weights.load(str(tmp_path / "runs/a" / folder), dtype=torch.float32).network.state_dict()
        kept = state["ema"] if folder == "weights" else state["ema_also"][folder]
        assert all(torch.allclose(drawn_with[name], tensor, atol=1e-3) for name, tensor in kept.items())
        behind.append(sum((kept[name] - tensor).abs().sum().item() for name, tensor in state["network"].items()))
    assert behind[0] > 1.2 * behind[1] > 20 * behind[2]


def test_a_preview_cut_by_a_kill_is_not_in_the_film(go, tmp_path):
    assert go("--name", "a", epochs=1) == 0
    (tmp_path / "runs/a/previews/.0000002.77.png").write_bytes(b"cut")
    assert main(["--resume", "runs/a", "--epochs", "2"]) == 0


def test_a_dry_run_writes_nothing(go, tmp_path, capsys):
    assert go("--name", "a", "--dry-run", epochs=3) == 0
    assert "12 steps of 32: 384 images of mnist" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert go("--resume", "runs/a", "--dry-run") == 2


def test_a_longer_run_goes_on_from_a_finished_one(go, tmp_path):
    assert go("--name", "a", epochs=1) == 0
    assert main(["--resume", "runs/a", "--epochs", "2"]) == 0
    assert Config.load(tmp_path / "runs/a/config.json").epochs == 2
    assert checkpoint.load(tmp_path / "runs/a")[0]["step"] == 8


def test_warm_start_begins_with_the_weights(go, root, tmp_path):
    assert go("--name", "a", epochs=1) == 0
    set_defaults(tmp_path / "runs/a/weights", time_shift=3.0)  # the sampler's, and not what it is trained with
    options = {"batch": 32, "data_root": root, "init": str(tmp_path / "runs/a/weights")}
    run = start(options, tmp_path / "runs/b", "reference", False)
    before = weights.load(str(tmp_path / "runs/a/weights"), dtype=torch.float32).network.state_dict()
    for name, tensor in run.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert (run.step, run.config.width, run.network.time_shift) == (0, TINY["width"], Config.time_shift)
    run.lock.release()
    assert (
        main(["--resume", "runs/b", "--epochs=1", "--no-compile"]) == 0
    )  # an older training is not forgotten on the way
    after = weights.load(str(tmp_path / "runs/b/weights")).metrics["training"]
    assert (after["epochs"], after["before"]["epochs"], after["before"]["lr"]) == (1, 1, TINY["lr"])
    with pytest.raises(ValueError, match="have a width of their own"):
        start({**options, "width": 64}, tmp_path / "runs/c", "reference", False)


def test_a_gradient_that_is_not_finite_changes_nothing(root, tmp_path):
    run = Run(Config(**TINY, data_root=root), tmp_path)
    before = [parameter.detach().clone() for parameter in run.network.parameters()]
    for value, same in ((float("nan"), True), (0.01, False)):
        for parameter in run.network.parameters():
            parameter.grad = torch.full_like(parameter, value)
        norm = nn.utils.clip_grad_norm_(run.network.parameters(), 2.0)
        run.update(torch.tensor(value), norm, 1e-3)
        assert all(torch.equal(*pair) for pair in zip(before, run.network.parameters(), strict=True)) == same
        assert run.skipped.item() == same


def test_skipped_steps_leave_average_and_log_alone(go, tmp_path, monkeypatch):
    """The loss is the mean of the finite steps, the others are counted, and no line has a NaN in it."""
    averages, losses = [], []

    def advance(self, advance=Run.advance):
        honest = self.loss_of
        if self.step in (1, 2, 3):
            self.loss_of = lambda *draw: honest(*draw) * torch.nan
        else:
            self.loss_of = lambda *draw: losses.append(honest(*draw)) or losses[-1]
        result = advance(self)
        self.loss_of = honest
        averages.append([parameter.clone() for parameter in self.ema.parameters()])
        return result

    monkeypatch.setattr(Run, "advance", advance)
    assert go("--name", "a", epochs=1.5) == 0
    same = [all(torch.equal(*pair) for pair in zip(before, after, strict=True)) for before, after in pairwise(averages)]
    assert same == [True, True, True, False, False]
    strict = {"parse_constant": lambda word: pytest.fail(word)}
    rows = [json.loads(line, **strict) for line in (tmp_path / "runs/a/metrics.jsonl").open()]
    assert [row["skipped"] for row in rows] == [1, 2, 0]
    assert [row["loss"] for row in rows[:2]] == [pytest.approx(losses[0].item()), None]
    assert rows[1]["grad_norm"] is None
    assert rows[2]["loss"] == pytest.approx((losses[1] + losses[2]).item() / 2)


def test_going_on_with_a_finished_run_keeps_what_was_measured(go, tmp_path, capsys):
    assert go("--name", "a", epochs=1) == 0
    (tmp_path / "runs/a/weights/samples.png").write_bytes(b"measured for hours")
    assert main(["--resume", "runs/a"]) == 0
    assert (tmp_path / "runs/a/weights/samples.png").read_bytes() == b"measured for hours"
    with pytest.raises(SystemExit):
        main(["--resume", "runs/a", "--epochs", "0.5"])
    assert "is at step 4 already, and 0.5 epochs end at step 2" in capsys.readouterr().err
    assert Config.load(tmp_path / "runs/a/config.json").epochs == 1


def test_a_run_that_diverges_stops_with_step_and_rate(go, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        train, "make_loss", lambda network, *rest: lambda *draw: sum(p.sum() for p in network.parameters()) * torch.nan
    )
    assert go("--name", "a", epochs=20) == 2
    error = capsys.readouterr().err
    assert "step 10: the last 10 gradients were not finite" in error
    assert "runs/a/weights" in error
    assert "--init and a lower --lr" in error


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (["--name", "a"], {"batch": 1000}, "batch 1000 is larger than the data set of 128"),
        (["--name", "a"], {"data_root": "nothing"}, "not in nothing/MNIST/raw and cannot be downloaded"),
        (["--name", "a"], {"width": 30, "heads": 4}, "width 30 is not divisible by heads 4"),
        (["--name", "a"], {"data": "cats"}, "data must be mnist, fashion or kmnist"),
        (["--name", "a"], {"lr": -1}, "lr must be above 0"),
        (
            ["--name", "a"],
            {"ema_also": "5000,-1"},
            "ema_also must be numbers above 0 with commas between them, not '5000,-1'",
        ),
        (["--name", "a"], {"ema_also": "many"}, "ema_also must be numbers above 0"),
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


def test_a_folder_that_cannot_be_written_is_one_sentence(go, tmp_path, capsys):
    (tmp_path / "runs").write_text("in the way")
    assert go("--name", "a") == 2
    assert "runs" in capsys.readouterr().err


def test_a_run_is_not_started_over_another(go, tmp_path, capsys):
    assert go("--name", "a", epochs=1) == 0
    before = (tmp_path / "runs/a/checkpoint.pt").read_bytes()
    assert go("--name", "a", epochs=1) == 2
    assert "--resume runs/a" in capsys.readouterr().err
    assert (tmp_path / "runs/a/checkpoint.pt").read_bytes() == before


def test_the_recorded_command_starts_the_same_run():
    config = Config(**PRESETS["quick"], compile=False)
    parser = argparse.ArgumentParser()
    add_options(parser)
    words = config.command().split()
    assert words[:3] == ["python", "-m", "training.train"]
    assert Config(**vars(parser.parse_args(words[3:]))) == config


def test_presets_are_configurations():
    for preset in PRESETS.values():
        Config(**preset)
    reference = Config()
    assert (reference.batch, reference.epochs, reference.lr, reference.clip, reference.warmup_steps) == (
        256,
        300,
        2e-4,
        2.0,
        1000,
    )
    assert flow.shifted(0.5, reference.time_shift) == pytest.approx(1 / (1 + math.exp(-0.48984)), abs=1e-5)
