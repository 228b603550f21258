"""`python -m model.export`: the exported files and the rejected inputs."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model import export, images, sampling, weights
from model.common import sha256
from model.dit import DiT
from model.flow_map import FlowMap
from model.page import html as words
from model.page.studio import START
from model.web import site


@pytest.fixture
def exported(small_weights, tmp_path) -> Path:
    site.export(str(small_weights), tmp_path / "site")
    return tmp_path / "site"


def part(folder: Path, prefix: str) -> Path:
    """The only folder whose name starts with `prefix`."""
    (found,) = folder.glob(f"{prefix}*")
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def index(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


def settings(folder: Path) -> dict:
    return json.loads(re.search(r'<script id="settings" [^>]*>(.*?)</script>', index(folder), re.DOTALL)[1])


def test_the_weights_are_the_same_ones_and_named_by_their_hash(exported, small_weights):
    kept = part(exported, "weights-")
    assert kept.name == f"weights-{sha256(small_weights / 'model.safetensors')[:12]}"
    assert (kept / "model.safetensors").read_bytes() == (small_weights / "model.safetensors").read_bytes()
    before, after = weights.load(str(small_weights)), weights.load(str(kept))
    assert (after.sampling, after.network.class_names) == (before.sampling, before.network.class_names)
    assert after.metrics == {"sha256": before.metrics["sha256"]}


def test_classes_ranges_and_defaults_come_from_python(tmp_path):
    network = DiT(width=32, depth=1, heads=2, class_names=[f"letter {name}" for name in "abcdefghijkl"])
    weights.save(network, tmp_path / "weights", sampling.SamplingConfig(steps=5, guidance=1.5, time_shift=2), {})
    site.export(str(tmp_path / "weights"), tmp_path / "site")
    found = settings(tmp_path / "site")
    assert found["kind"] == "velocity"
    assert found["classes"] == list(network.class_names)
    assert found["sampling"] == {"steps": 5, "guidance": 1.5, "time_shift": 2}
    assert found["start"] == START
    assert found["most"] == {"steps": 50, "guidance": 5, "seed": 2**31 - 1, "number": 16, "sheet": 400}
    assert tuple(found["stepCounts"]) == sampling.STEP_COUNTS
    assert found["weights"] == part(tmp_path / "site", "weights-").name


def test_a_flow_map_is_exported_as_one(small, tmp_path):
    weights.save(FlowMap.from_velocity(small), tmp_path / "map", sampling.SamplingConfig(steps=4), {})
    site.export(str(tmp_path / "map"), tmp_path / "site")
    assert settings(tmp_path / "site")["kind"] == "flow map"
    assert isinstance(weights.load(str(part(tmp_path / "site", "weights-"))).network, FlowMap)


def test_every_file_that_the_page_names_is_there_and_kept_for_the_next_visit(exported):
    text, script = index(exported), (exported / "sw.js").read_text(encoding="utf-8")
    assert "{{" not in text
    named = set(re.findall(r'(?:src|href|content)="([\w./-]+\.\w+)"', text))
    assert {"picture.png", "icon.png"} < named
    assert all((exported / name).is_file() for name in named)
    kept = set(json.loads(re.search(r"const FILES = (.*);", script)[1]))
    assert kept == set(contents(exported)) - {"index.html", "sw.js", "picture.png", "LICENSE"}


def test_the_words_are_those_of_the_gradio_page(exported):
    text = index(exported)
    for name, sentence in (words.STEPS, words.NUMBER, words.SHEET):
        assert f"<h2>{name}</h2><p>{sentence}</p>" in text
    assert f"<h1>{words.TITLE}</h1>" in text
    assert words.GUIDANCE in text


def test_the_address_is_in_the_picture_for_links(exported, small_weights, tmp_path):
    assert '<meta property="og:image" content="picture.png">' in index(exported)
    assert "og:url" not in index(exported)
    site.export(str(small_weights), tmp_path / "there", "https://me.example/digits")
    assert '<meta property="og:image" content="https://me.example/digits/picture.png">' in index(tmp_path / "there")
    assert '<meta property="og:url" content="https://me.example/digits/">' in index(tmp_path / "there")


def test_the_picture_runs_from_noise_to_the_digits(exported, small_weights):
    loaded = weights.load(str(small_weights))
    picture = np.array(Image.open(exported / "picture.png"))
    assert picture.shape == (630, 1200)
    config = loaded.sampling.updated(steps=8)
    first, *_, last = sampling.states(loaded.network, torch.arange(10), range(67, 77), config)
    for top, state in ((19, first), (499, last)):
        pixels = images.to_pixels(state.x, loaded.network.pixel_mean, loaded.network.pixel_std)
        for i in range(10):
            tile = picture[top : top + 112, 4 + 120 * i : 116 + 120 * i]
            np.testing.assert_array_equal(tile, images.enlarge(pixels[i], 4))


def test_the_icon_is_the_first_digit(exported, small_weights):
    loaded = weights.load(str(small_weights))
    digit = next(sampling.draw(loaded.network, torch.tensor([7]), 67, loaded.sampling))[0]
    np.testing.assert_array_equal(np.array(Image.open(exported / "icon.png")), images.enlarge(digit, 7))


def test_an_export_replaces_an_earlier_one_and_names_anew_only_what_is_new(exported, small, tmp_path):
    before = contents(exported)
    site.export(str(tmp_path / "weights"), exported)
    assert contents(exported) == before
    with torch.no_grad():
        small.embed_patch.bias.fill_(0.5)
    weights.save(small, tmp_path / "weights", sampling.SamplingConfig(), {})
    site.export(str(tmp_path / "weights"), exported)
    assert f"{part(exported, 'code-').name}/site.js" in before
    assert f"{part(exported, 'weights-').name}/config.json" not in before


def test_a_failure_leaves_the_earlier_export(exported, small_weights, monkeypatch):
    before = contents(exported)

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(site, "picture", fail)
    with pytest.raises(OSError, match="the disk is full"):
        site.export(str(small_weights), exported)
    assert contents(exported) == before
    assert sorted(path.name for path in exported.parent.iterdir()) == ["site", "weights"]


def refused(capsys, *arguments) -> str:
    """The one-line error of the command."""
    with pytest.raises(SystemExit) as stop:
        export.main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"python -m model\.export: [^\n]+\n", error)
    return error


@pytest.mark.parametrize("name", ["notes.txt", "index.html", ".git/config", "CNAME"])
def test_a_folder_with_something_else_in_it_is_left_alone(exported, small_weights, capsys, name):
    if name == "index.html":  # a foreign one
        shutil.rmtree(exported)
    (exported / name).parent.mkdir(parents=True, exist_ok=True)
    (exported / name).write_text("mine", encoding="utf-8")
    before = contents(exported)
    error = refused(capsys, "--weights", small_weights, "--out", exported)
    assert "contains files not from an exported page" in error
    assert contents(exported) == before


def test_a_file_is_not_replaced(small_weights, tmp_path, capsys):
    (tmp_path / "site").write_text("mine", encoding="utf-8")
    assert "choose another folder" in refused(capsys, "--weights", small_weights, "--out", tmp_path / "site")
    assert (tmp_path / "site").read_text(encoding="utf-8") == "mine"


def test_weights_in_float32_are_refused(small_weights, tmp_path, capsys):
    path = small_weights / "model.safetensors"
    save_file({name: tensor.float() for name, tensor in load_file(path).items()}, path)
    (small_weights / "metrics.json").unlink()
    error = refused(capsys, "--weights", small_weights, "--out", tmp_path / "site")
    assert "contains F32; the static page only supports float16" in error
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("changed", [{"qk_norm": False}, {"predicts_image": True}])
def test_networks_of_an_ablation_are_refused(tmp_path, capsys, changed):
    weights.save(DiT(width=32, depth=1, heads=2, **changed), tmp_path / "weights", sampling.SamplingConfig(), {})
    error = refused(capsys, "--weights", tmp_path / "weights", "--out", tmp_path / "site")
    assert "only supports networks with QK-norm that predict the velocity" in error
    assert not (tmp_path / "site").exists()


def test_damaged_and_missing_weights_are_refused(small_weights, tmp_path, capsys):
    path = small_weights / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "its sha256 differs" in refused(capsys, "--weights", small_weights, "--out", tmp_path / "site")
    assert "nowhere" in refused(capsys, "--weights", tmp_path / "nowhere", "--out", tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_an_address_without_https_is_refused(small_weights, tmp_path, capsys):
    arguments = ("--weights", small_weights, "--out", tmp_path / "site", "--address", "example")
    assert "must begin with https://" in refused(capsys, *arguments)


def test_the_command_says_how_to_look_at_it(small_weights, tmp_path, capsys):
    assert export.main(["--weights", str(small_weights), "--out", str(tmp_path / "a" / "site")]) == 0
    assert f" -m http.server -d {tmp_path / 'a' / 'site'}" in capsys.readouterr().out
    assert (tmp_path / "a" / "site" / "index.html").is_file()
