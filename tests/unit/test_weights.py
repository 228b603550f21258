import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import weights
from model.dit import DiT


def rewrite_tensors(folder, change):
    """Change the tensors as somebody would who keeps the hashes right."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    (folder / "metrics.json").unlink()


def flip_byte(folder, name="model.safetensors", place=-100):
    data = bytearray((folder / name).read_bytes())
    data[place] ^= 1
    (folder / name).write_bytes(data)


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
    weights.save(small, small_weights, {})
    assert sorted(path.name for path in small_weights.iterdir()) == ["config.json", "metrics.json", "model.safetensors"]
    assert torch.all(weights.load(str(small_weights)).network.embed_patch.bias == 0.5)
    assert [path.name for path in small_weights.parent.iterdir()] == ["weights"]


def test_the_argument_comes_before_the_variable_before_the_bundle(small_weights, tmp_path, monkeypatch):
    other = shutil.copytree(small_weights, tmp_path / "other")
    monkeypatch.setattr(weights, "BUNDLED", small_weights)
    assert weights.load().source == "bundled"
    monkeypatch.setenv("WEIGHTS", str(other))
    assert weights.load().source == str(other)
    assert weights.load(str(small_weights)).source == "bundled"


DAMAGE = {
    "a flipped byte": (lambda folder: flip_byte(folder), "damaged.*sha256"),
    "a flipped byte in the configuration": (lambda folder: flip_byte(folder, "config.json", 30), "damaged.*sha256"),
    "a truncated file": (
        lambda folder: [
            (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000]),
            (folder / "metrics.json").unlink(),
        ],
        "damaged or cut short",
    ),
    "a missing tensor": (
        lambda folder: rewrite_tensors(folder, lambda t: t.pop("unembed.bias")),
        "does not hold the tensors",
    ),
    "a tensor too many": (
        lambda folder: rewrite_tensors(folder, lambda t: t.update(more=torch.zeros(1))),
        "does not hold the tensors",
    ),
    "a number that is none": (
        lambda folder: rewrite_tensors(folder, lambda t: t["unembed.bias"].fill_(torch.nan)),
        "not finite",
    ),
    "a configuration of another width": (
        lambda folder: [
            (folder / "config.json").write_text('{"width": 64, "heads": 2}'),
            (folder / "metrics.json").unlink(),
        ],
        "does not hold the tensors",
    ),
    "a foreign configuration": (
        lambda folder: [(folder / "config.json").write_text('{"hidden_size": 64}'), (folder / "metrics.json").unlink()],
        "knows no hidden_size",
    ),
    "a configuration that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "no JSON"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    "no tensors": (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_weights_are_refused_in_one_sentence(small_weights, name):
    damage, words = DAMAGE[name]
    damage(small_weights)
    with pytest.raises((ValueError, OSError), match=words) as caught:
        weights.load(str(small_weights))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["no/such/folder", "./nothing", "a b/c"])
def test_a_name_that_is_nothing_is_refused_without_a_network(where):
    with pytest.raises(OSError, match="neither"):
        weights.load(where)


def test_bundled_weights_are_what_their_metrics_say():
    if not (weights.BUNDLED / "config.json").is_file():
        pytest.skip("no bundled weights yet")
    network, metrics = weights.read(weights.BUNDLED)
    assert set(metrics["sha256"]) == {"config.json", "model.safetensors"}
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_858_948
    assert json.loads((weights.BUNDLED / "config.json").read_text())["classes"] == 12
