"""A network learns what it draws under a guide."""

import pytest
import torch

from model import weights
from model.dit import DiT
from training import checkpoint, targets
from training.config import Config
from training.distill import Teacher, orthogonal
from training.train import main, start


@pytest.fixture
def pair(tmp_path):
    """Folders of two networks that are not the same, and what a run takes of them."""
    for name, seed in (("strong", 1), ("weak", 2)):
        torch.manual_seed(seed)
        network = DiT(width=32, depth=1, heads=2)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        weights.save(network, tmp_path / name, {"training": {"images": 10 * seed}})
    return {"init": str(tmp_path / "strong"), "guide": str(tmp_path / "weak")}


def point():
    return torch.randn(6, 1, 28, 28), torch.rand(6), torch.arange(6)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_the_target_goes_on_from_the_strong_network_away_from_the_weak_one(pair, scale):
    teacher = Teacher(Config(**pair, guide_scale=scale, guide_null=0.25))
    x, t, labels = point()
    strong, weak = (weights.load(where, dtype=torch.float32).network for where in pair.values())
    main, way = strong(x, t, labels), strong(x, t, labels) - 0.75 * weak(x, t, labels) - 0.25 * weak(x, t, torch.full((6,), 12))
    added = teacher(x, t, labels) - main
    torch.testing.assert_close(added, (scale - 1) * orthogonal(way, x - t.view(-1, 1, 1, 1) * main))


def test_guidance_changes_neither_brightness_nor_contrast():
    torch.manual_seed(0)
    image, shapely = torch.randn(3, 1, 28, 28) * 2 + 1, torch.randn(3, 1, 28, 28)
    image[..., 14:], shapely[..., :14] = image[0, 0, 0, 0], 0  # nothing to do with each other, but for the means
    shapely -= shapely.mean((1, 2, 3), keepdim=True) * (shapely != 0) * 2  # the right half is 14 columns of 28
    brighter, bolder = torch.full_like(image, 3.0), 0.7 * image
    torch.testing.assert_close(orthogonal(brighter, image), torch.zeros_like(image), atol=1e-5, rtol=0)
    torch.testing.assert_close(orthogonal(bolder, image), torch.zeros_like(image), atol=1e-5, rtol=0)
    torch.testing.assert_close(orthogonal(shapely + brighter + bolder, image), shapely, atol=1e-5, rtol=0)
    torch.testing.assert_close(orthogonal(shapely, torch.zeros_like(image)), shapely, atol=1e-5, rtol=0)  # an image without contrast


def test_the_sampler_sees_what_a_run_learns(pair):
    teacher = Teacher(Config(**pair, guide_scale=2.5, guide_null=0.25))
    x, labels = torch.randn(2, 1, 28, 28), torch.tensor([7, 3])
    learned = teacher(x, torch.full((2,), 0.3), labels)
    with torch.inference_mode():
        torch.testing.assert_close(teacher.along([0.5, 0.3])(x, 0.3, labels), learned)


def test_targets_are_measured_by_what_they_draw(pair, mnist_root, capsys):
    options = ["--init", pair["init"], "--guide", pair["guide"], "--data-root", mnist_root, "--count", "256", "--steps", "1"]
    assert targets.main([*options, "1,0", "2,0.5"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [[float(cell) for cell in row[:2]] for row in rows] == [[1, 0], [2, 0.5]]
    assert all(float(row[2]) > 10 for row in rows)  # noise is no digit
    with pytest.raises(SystemExit):
        targets.main([*options, "2"])
    assert "a target is SCALE,NULL such as 2.5,0.1, not" in capsys.readouterr().err


def test_a_run_learns_the_guided_velocity(go, pair, tmp_path):
    options = {**pair, "guide_scale": 2.5, "guide_null": 0.0, "label_drop": 0.0}
    assert go("--name", "a", epochs=75, ema_images=200, preview_every=1000, checkpoint_every=1000, lr=3e-3, **options) == 0
    teacher = Teacher(Config(**options))
    x, t, labels = point()
    target, before = teacher(x, t, labels), teacher.main(x, t, labels)
    loaded = weights.load(str(tmp_path / "runs/a/weights"), dtype=torch.float32)
    after = loaded.network(x, t, labels)
    assert (after - target).square().mean() < 0.3 * (before - target).square().mean()
    assert loaded.metrics["training"]["guide"] == {"scale": 2.5, "null": 0.0, "training": {"images": 20}}
    assert loaded.metrics["training"]["before"] == {"images": 10}


def test_a_distillation_that_was_stopped_ends_like_the_one_that_was_not(go, pair, tmp_path, capsys):
    assert go("--name", "whole", epochs=1, **pair) == 0
    assert go("--name", "parts", epochs=0.5, **pair) == 0
    assert main(["--resume", "runs/parts", "--epochs", "1"]) == 0
    whole, parts = (checkpoint.load(tmp_path / "runs" / name)[0]["network"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    weights.save(DiT(width=32, depth=1, heads=2), tmp_path / "weak", {})  # another guide has come in its place
    with pytest.raises(SystemExit):
        main(["--resume", "runs/parts", "--epochs", "2"])
    assert f"the weights in {pair['init']} or {pair['guide']} are not those that runs/parts began with" in capsys.readouterr().err


def test_a_guide_that_cannot_guide_is_one_sentence(pair, root, tmp_path):
    with pytest.raises(ValueError, match="guide needs init"):
        Config(guide=pair["guide"])
    weights.save(DiT(width=16, depth=1, heads=1, pixel_mean=0.1), tmp_path / "weak", {})
    with pytest.raises(ValueError, match=r"cannot guide those in .*strong: they have another pixel_mean"):
        start({**pair, "data_root": root}, tmp_path / "runs/a", "reference", False)
    assert not (tmp_path / "runs").exists()
