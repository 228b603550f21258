"""Untrusted weights, metrics and samples: each is loaded or rejected early with a one-sentence error."""

import ast
import json
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import model
from model import generate, hub, weights
from model.common import masked, replacing, replacing_folder, sha256
from model.dit import MAX_SIZE, DiT
from training.measure import extractor, reference
from training.measure.evaluation import Results
from training.measure.samples import read_samples
from training.own_images import MAX_BYTES
from training.release import upload
from training.release.card import card, results_table

HASH = "a" * 64
FIGURES = {"fd_ratio": 1.5, "fd_train_subset": 0.1}
ROW = {"settings": {"count": 300, "steps": 20, "guidance": 1.0, "sha256": HASH}, "drawn": FIGURES, "real": FIGURES}


def edit(folder: Path, name: str = "metrics.json", **parts) -> None:
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **parts}), encoding="utf-8")


def refused(call, *arguments, words: str = "") -> str:
    """The short error message with which a call rejects its arguments."""
    with pytest.raises((ValueError, OSError), match=words) as caught:
        call(*arguments)
    sentence = masked(caught.value)
    assert len(sentence) < 400
    return sentence


# ---- hashes


def test_only_the_tensors_are_hashed_whatever_metrics_say(small, small_weights, monkeypatch):
    hashes = json.loads((small_weights / "metrics.json").read_text(encoding="utf-8"))["sha256"]
    assert hashes.keys() == {"model.safetensors", "config"}
    assert hashes["model.safetensors"] == sha256(small_weights / "model.safetensors")
    foreign = {"/dev/zero": "x", "../../etc/passwd": "x", "config.json": "the hash of older folders"}
    edit(small_weights, sha256={**hashes, **foreign})
    read = []
    monkeypatch.setattr(weights, "sha256", lambda path: read.append(path) or sha256(path))
    assert weights.load(str(small_weights)).network.width == small.width
    assert read == [small_weights / "model.safetensors"]


def test_line_ends_that_git_has_changed_do_no_harm(small_weights):
    for path in small_weights.glob("*.json"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    weights.load(str(small_weights))


# ---- types


@pytest.mark.parametrize(
    "parts",
    [
        {"sha256": "abc"},
        {"sha256": ["abc"]},
        {"sha256": {"model.safetensors": 1}},
        {"training": "long"},
        {"training": {"epochs": "many"}},
        {"training": {"initialized_from": {"initialized_from": {"hours": None}}}},
        {"evaluation": []},
        {"evaluation": "good"},
        {"evaluation": {**ROW, "settings": None}},
        {"evaluation": {**ROW, "settings": {"sha256": 7}}},
        {"evaluation": {**ROW, "drawn": {"fd_ratio": None}}},
        {"evaluation": {**ROW, "drawn": {"fd_ratio": "1.5"}}},
        {"evaluation": {**ROW, "real": {"fd_ratio": float("nan")}}},
        {"evaluation": {**ROW, "real": {"fd_ratio": 10**400}}},
        {"evaluation": {**ROW, "blank": {"black": 3}}},
        {"sweeps": ROW},
        {"cas": [ROW, "row"]},
    ],
    ids=str,
)
def test_metrics_of_the_wrong_types_are_refused_everywhere(small_weights, monkeypatch, capsys, parts):
    samples = type("Samples", (), {"sha256": HASH, "metrics": {}})()
    (bundled := small_weights.with_name("bundled")).mkdir()
    for path in small_weights.iterdir():
        (bundled / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(weights, "BUNDLED", bundled)
    edit(small_weights, **parts)
    for read in (weights.load, card, upload.check, lambda folder: Results(folder / "metrics.json", samples)):
        refused(read, str(small_weights) if read is weights.load else small_weights, words="metrics.json: .* cannot be")
    assert weights.load_or_bundled(str(small_weights)).source == "bundled"


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' * 100_000, '"\ud800"', "[]", " " * 11_000_000, "\0"])
@pytest.mark.parametrize("name", ["config.json", "metrics.json", "sampling.json"])
def test_a_file_that_is_no_object_is_refused(small_weights, name, content):
    (small_weights / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    refused(weights.load, str(small_weights), words=f"{name} is not")


@pytest.mark.parametrize(
    "config",
    [
        {"width": None},
        {"width": "32"},
        {"width": [32]},
        {"width": 32.5},
        {"heads": 0},
        {"pixel_std": "wide"},
        {"classes": 10**12},
        {"depth": 10**9},
        {"width": 8192, "heads": 4},
        {"width": 10**9},
        {"width": 10**30},
        {"patch": 10**9},
        {"qk_norm": 1},
        {"predicts_image": "no"},
    ],
    ids=str,
)
def test_no_network_is_built_from_a_foreign_configuration(small_weights, monkeypatch, config):
    monkeypatch.setattr(torch.nn, "Linear", lambda *arguments, **options: pytest.fail("something is built"))
    edit(small_weights, "config.json", **config)
    refused(weights.load, str(small_weights), words="config.json: ")
    with pytest.raises(ValueError):  # noqa: PT011 - the same, without a folder
        DiT(**config)


def test_the_bound_is_far_from_what_is_used():
    used = DiT()
    assert 50 * used.depth * used.width**2 < MAX_SIZE
    assert DiT(width=32.0, depth=1.0, heads=2.0).embed_patch.weight.shape == (32, 4)


def test_a_foreign_key_is_not_echoed_at_length(small_weights):
    edit(small_weights, "config.json", **{f"<form>\n\x1b[31m{'x' * 5000}": 1})
    assert "\x1b" not in refused(weights.load, str(small_weights), words="config.json is not for this network")


def test_a_field_that_is_missing_is_named(small_weights, tmp_path):
    digest = sha256(small_weights / "model.safetensors")
    settings = {**ROW["settings"], "sha256": digest}
    for row, words in (
        ({"settings": settings}, "lacks 'drawn'"),
        ({"settings": settings, "drawn": FIGURES}, "lacks 'real'"),
        ({"settings": settings, "drawn": FIGURES, "real": {}}, "lacks 'fd_ratio'"),
    ):
        refused(results_table, {"evaluation": row}, words=words)
        edit(small_weights, evaluation=row)
        refused(card, small_weights, words="metrics.json lacks ")
        (small_weights / "README.md").touch()
        refused(upload.check, small_weights, words=words)
    edit(small_weights, evaluation={"drawn": FIGURES, "real": FIGURES})
    refused(upload.check, small_weights, words="results for other weights")
    edit(small_weights, evaluation={**ROW, "settings": settings}, training={"epochs": 1})
    refused(card, small_weights, words="metrics.json lacks ")


# ---- recognizable causes


def test_a_pointer_of_git_lfs_is_named(small_weights, tmp_path):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{HASH}\nsize 11723296\n"
    for path in (small_weights / "model.safetensors", tmp_path / "extractor.safetensors"):
        path.write_text(pointer, encoding="utf-8")
    refused(weights.load, str(small_weights), words="git lfs pull")
    (small_weights / "metrics.json").unlink()
    refused(weights.load, str(small_weights), words="git lfs pull")
    refused(lambda: extractor.load(path=tmp_path / "extractor.safetensors"), words="git lfs pull")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_prefix_of_a_wrapper_is_named(small_weights, prefix):
    path = small_weights / "model.safetensors"
    save_file({prefix + name: tensor for name, tensor in load_file(path).items()}, path)
    (small_weights / "metrics.json").unlink()
    assert f"'{prefix}'" in refused(weights.load, str(small_weights), words="unwrapped")


@pytest.mark.parametrize("token", ["“hf_abc”", "hf_añc", "hf_abc def", "hf_abc\x7f"])
def test_a_token_that_cannot_be_one_is_named_and_not_shown(monkeypatch, token):
    monkeypatch.setattr(hub, "get_token", lambda: token)
    sentence = refused(weights.load, "me/tiny", words="the token contains")
    assert "abc" not in sentence


def test_credentials_are_in_no_message(monkeypatch):
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://user:secret@127.0.0.1:9")

    def fail(*arguments, **options):
        raise ConnectionError("http://user:secret@127.0.0.1:9/api refuses hf_abcdefgh")

    monkeypatch.setattr(hub, "fetch", fail)
    with pytest.raises(OSError, match="no connection to") as caught:
        weights.load("me/tiny")
    assert not re.search("secret|hf_abc", str(caught.value))


def test_errors_name_the_final_file_and_no_number(tmp_path):
    def full(path):
        raise OSError(28, "No space left on device", str(path))

    for block in (replacing, replacing_folder):
        with pytest.raises(OSError, match="No space") as caught, block(tmp_path / "out.png") as new:
            full(new)
        assert masked(caught.value) == f"{tmp_path / 'out.png'}: No space left on device"
    (tmp_path / "out.png").mkdir()
    with pytest.raises(OSError, match="directory") as caught, replacing(tmp_path / "out.png") as new:
        new.touch()
    assert masked(caught.value) == f"{tmp_path / 'out.png'}: Is a directory"
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_ctrl_c_while_drawing_is_one_line_and_leaves_nothing(small_weights, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        yield torch.zeros(10, 28, 28, dtype=torch.uint8)
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "draw", interrupted)
    out = tmp_path / "out" / "digits.png"
    with pytest.raises(SystemExit) as stopped:
        generate.main(["--weights", str(small_weights), "--count", "5000", "--out", str(out)])
    assert stopped.value.code == 130
    assert capsys.readouterr().err.endswith("\npython -m model.generate: stopped\n")
    assert list(out.parent.iterdir()) == []


def test_an_older_python_is_told_so(monkeypatch):
    source = Path(model.__file__).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))
    exec(source, {})
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    with pytest.raises(SystemExit, match=r"Python 3\.11 or newer is required, not 3\.10"):
        exec(source, {})


# ---- samples


def bomb(path: Path, shape: tuple, dtype: str = "|u1", size: int = 0) -> Path:
    """An .npz whose images have a header of this shape and `size` zeros, which compress a thousandfold."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_2_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
            for _ in range(size // 2**20):
                file.write(bytes(2**20))
        with archive.open("labels.npy", "w") as file:
            np.save(file, np.zeros(300, dtype=np.int64))
    return path


def test_an_archive_is_not_unpacked_before_its_size_is_known(tmp_path, monkeypatch):
    assert MAX_BYTES > 784 * 1_000_000 + 8_000_000 + 1000  # the largest file of model.generate
    monkeypatch.setattr("training.own_images.MAX_BYTES", 2**21)
    path = bomb(tmp_path / "a.npz", (4096, 28, 28), size=4 * 2**20)
    monkeypatch.setattr(np, "load", lambda *arguments, **options: pytest.fail("it is read"))
    refused(read_samples, path, words=r"unpacks to .* bytes")


def test_an_archive_that_promises_more_than_it_holds_is_refused(tmp_path):
    refused(read_samples, bomb(tmp_path / "a.npz", (10**15, 28, 28)), words="is not an .npz")
    np.save(tmp_path / "b.npy", np.zeros(5))
    refused(read_samples, tmp_path / "b.npy", words="is not an .npz")


@pytest.mark.parametrize("distorted", [None, *reference.DISTORTIONS])
def test_a_distortion_is_named(monkeypatch, distorted):
    labels = torch.arange(300) % 10
    pixels = torch.zeros(300, 28, 28, dtype=torch.uint8)
    pixels[torch.arange(300), 2 * labels, 3] = 255
    back = {"to the left": "to the right", "to the right": "to the left"}
    monkeypatch.setattr(reference.extractor, "extract", lambda network, pixels: read(pixels))
    if distorted == "in the range 0 to 1 (they should be 0 to 255)":
        given = pixels // 255
    elif distorted:
        name = next((distorted.replace(a, b) for a, b in back.items() if a in distorted), distorted)
        given = reference.DISTORTIONS[name](pixels)
    else:
        given = pixels
    real = object.__new__(reference.Reference)
    real.extractor = None
    doubt = real.doubt(given, labels)
    assert (f"they look {distorted}" in doubt) if distorted else doubt == ""
    assert "they may not be digits" in real.doubt(pixels, labels.flip(0))


def read(pixels):
    """The result of an extractor: features, and the class from the position of one white pixel on black."""
    scores = torch.stack([pixels[:, 2 * k, 3] for k in range(10)], 1).int()
    sure = (pixels.flatten(1).float().mean(1) < 2) & (scores.max(1).values > 100)
    return pixels, torch.where(sure, scores.argmax(1), -1)


@pytest.mark.slow
def test_real_digits_that_were_distorted_are_named(reference):
    from training.measure.reference import DISTORTIONS

    pixels, labels = reference.test[:200], reference.test_labels[:200]
    assert reference.doubt(pixels, labels) == ""
    for name in ("inverted (white where it should be black)", "transposed (rows and columns exchanged)"):
        assert f"they look {name}" in reference.doubt(DISTORTIONS[name](pixels), labels)
    assert "they look in the range 0 to 1" in reference.doubt((pixels > 127).byte(), labels)
