import json
import re
import shutil
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import weights
from model.dit import DiT
from model.sampling import SamplingConfig


def rewrite_tensors(folder, change):
    """Change the tensors and remove the hashes that would detect it."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    (folder / "metrics.json").unlink()


def flip_byte(folder, name="model.safetensors", place=-100):
    data = bytearray((folder / name).read_bytes())
    data[place] ^= 1
    (folder / name).write_bytes(data)


def edit_config(folder, **changed) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))


def test_saved_weights_load_equal_up_to_float16(small, small_weights):
    loaded = weights.load(str(small_weights), dtype=torch.float32)
    assert loaded.source == str(small_weights)
    assert loaded.metrics["training"] == {"epochs": 1}
    for name, tensor in small.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor.half().float()), name


def test_the_mixin_loads_them_too(small_weights):
    network = DiT.from_pretrained(str(small_weights), strict=True)
    assert network.embed_patch.weight.shape == (32, 4)


def test_saving_again_replaces_the_folder(small, small_weights):
    (small_weights / "stale").touch()
    with torch.no_grad():
        small.embed_patch.bias.fill_(0.5)
    weights.save(small, small_weights, SamplingConfig(steps=8), {})
    names = ["config.json", "metrics.json", "model.safetensors", "sampling.json"]
    assert sorted(path.name for path in small_weights.iterdir()) == names
    loaded = weights.load(str(small_weights))
    assert torch.all(loaded.network.embed_patch.bias == 0.5)
    assert (loaded.sampling, set(loaded.metrics)) == (SamplingConfig(steps=8), {"sha256"})
    assert [path.name for path in small_weights.parent.iterdir()] == ["weights"]


def test_only_what_ablations_change_is_added_to_the_configuration(tmp_path):
    usual = {"width", "depth", "heads", "patch", "classes", "pixel_mean", "pixel_std", "class_names"}
    for changed in ({}, {"qk_norm": False}, {"predicts_image": True}):
        network = DiT(width=32, depth=1, heads=2, **changed)
        weights.save(network, tmp_path / "w", SamplingConfig(), {})
        config = json.loads((tmp_path / "w/config.json").read_text())
        assert (config.keys() - usual, usual - config.keys()) == (changed.keys(), set())
        loaded = weights.load(str(tmp_path / "w"), dtype=torch.float32).network
        assert (loaded.qk_norm, loaded.predicts_image) == (network.qk_norm, network.predicts_image)


def test_a_failed_save_keeps_the_old_folder(small, small_weights, monkeypatch):
    before = {path.name: path.read_bytes() for path in small_weights.iterdir()}

    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(weights, "sha256", fail)
    with pytest.raises(OSError, match="the disk is full"):
        weights.save(small, small_weights, SamplingConfig(), {})
    assert {path.name: path.read_bytes() for path in small_weights.iterdir()} == before
    assert [path.name for path in small_weights.parent.iterdir()] == ["weights"]


# ---- sampling defaults


def test_saved_sampling_defaults_come_back(small, tmp_path):
    config = SamplingConfig(steps=8, guidance=1.5, time_shift=3.0)
    weights.save(small, tmp_path / "w", config, {})
    assert json.loads((tmp_path / "w/sampling.json").read_text()) == {"steps": 8, "guidance": 1.5, "time_shift": 3.0}
    assert weights.read(tmp_path / "w").sampling == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"steps": 8, "guidance": 2, "time_shift": 1.5}', SamplingConfig(8, 2.0, 1.5)),
        ('{"guidance": 2}', SamplingConfig(guidance=2.0)),
        ("{}", SamplingConfig()),
    ],
)
def test_sampling_defaults_edited_by_hand_take_effect(small_weights, text, expected):
    before = weights.load(str(small_weights))
    (small_weights / "sampling.json").write_text(text)
    after = weights.load(str(small_weights))
    assert after.sampling == expected
    assert after.metrics == before.metrics
    assert torch.equal(after.network.embed_patch.weight, before.network.embed_patch.weight)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"guidance": 9}', "guidance must be a number from 0 to 5, not 9"),
        ('{"time_shift": 0}', "time_shift must be a number"),
        ('{"steps": "many"}', "steps must be a whole number from 1 to 50, not 'many'"),
        ('{"step": 8}', "sampling.json may contain only steps, guidance, time_shift"),
        ("[20]", "sampling.json is not a JSON object"),
        ("{", "sampling.json is not valid JSON"),
    ],
)
def test_bad_sampling_defaults_are_refused_in_one_sentence(small_weights, text, words):
    (small_weights / "sampling.json").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        weights.load(str(small_weights))
    assert "\n" not in str(caught.value)


# ---- choice of weights


def test_the_argument_precedes_the_variable_and_that_the_bundle(small_weights, tmp_path, monkeypatch):
    other = shutil.copytree(small_weights, tmp_path / "other")
    monkeypatch.setattr(weights, "BUNDLED", small_weights)
    assert weights.load().source == "bundled"
    monkeypatch.setenv("WEIGHTS", str(other))
    assert weights.load().source == str(other)
    assert weights.load(str(small_weights)).source == "bundled"


# ---- damage


DAMAGE = {
    "a flipped byte": (lambda folder: flip_byte(folder), "damaged.*sha256"),
    "a truncated file": (
        lambda folder: [
            (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000]),
            (folder / "metrics.json").unlink(),
        ],
        "damaged or truncated",
    ),
    "a missing tensor": (
        lambda folder: rewrite_tensors(folder, lambda t: t.pop("unembed.bias")),
        "does not match the network",
    ),
    "a tensor too many": (
        lambda folder: rewrite_tensors(folder, lambda t: t.update(more=torch.zeros(1))),
        "does not match the network",
    ),
    "a number that is not finite": (
        lambda folder: rewrite_tensors(folder, lambda t: t["unembed.bias"].fill_(torch.nan)),
        "not finite",
    ),
    "a configuration of another width": (
        lambda folder: [
            (folder / "config.json").write_text('{"width": 64, "heads": 2}'),
            (folder / "metrics.json").unlink(),
        ],
        "does not match the network",
    ),
    "a foreign configuration": (
        lambda folder: [(folder / "config.json").write_text('{"hidden_size": 64}'), (folder / "metrics.json").unlink()],
        "not for this network: unknown 'hidden_size'",
    ),
    "another pixel mean": (
        lambda folder: edit_config(folder, pixel_mean=0.25),
        "config.json does not match its sha256",
    ),
    "another class name": (
        lambda folder: edit_config(folder, class_names=[*"012345678", "nine", "black", "white"]),
        "config.json does not match its sha256",
    ),
    "a configuration that is not JSON": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "no sampling defaults": (lambda folder: (folder / "sampling.json").unlink(), "has no sampling.json"),
    "no tensors": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_weights_are_refused_in_one_sentence(small_weights, name):
    damage, words = DAMAGE[name]
    damage(small_weights)
    with pytest.raises((ValueError, OSError), match=words) as caught:
        weights.load(str(small_weights))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["no/such/folder", "./nothing", "a b/c"])
def test_a_name_that_cannot_exist_is_refused_without_a_network(where):
    with pytest.raises(OSError, match="neither"):
        weights.load(where)


def test_damaged_weights_fall_back_to_the_bundled_ones(small_weights, tmp_path, monkeypatch, capsys):
    bundled = shutil.copytree(small_weights, tmp_path / "bundled")
    monkeypatch.setattr(weights, "BUNDLED", bundled)
    assert weights.load_or_bundled(str(small_weights)).notice == ""
    flip_byte(small_weights)
    loaded = weights.load_or_bundled(str(small_weights))
    assert loaded.source == "bundled"
    assert re.fullmatch(r"Drawn with the bundled weights, because .* could not be loaded\.", loaded.notice)
    assert "is damaged" in capsys.readouterr().err
    flip_byte(bundled)
    with pytest.raises(ValueError, match="damaged"):
        weights.load_or_bundled(str(small_weights))


def test_bundled_weights_are_those_of_their_metrics():
    loaded = weights.read(weights.BUNDLED)
    assert set(loaded.metrics["sha256"]) == {"model.safetensors", "config"}
    expected = {"velocity": 5_858_948, "flow map": 6_122_116}[loaded.network.kind]
    assert sum(parameter.numel() for parameter in loaded.network.parameters()) == expected
    assert loaded.network.null_label == 12
    assert json.loads((weights.BUNDLED / "sampling.json").read_text()) == asdict(loaded.sampling)
