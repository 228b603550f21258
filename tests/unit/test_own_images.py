"""Custom images: how they are read, and their class names from the trainer to the page."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from model import generate, images, weights
from model.common import python
from model.dit import DiT
from model.page.studio import from_link
from model.sampling import SamplingConfig, label, parse_labels
from tests.conftest import TINY, flags
from training import own_images, trainer
from training.release.card import card
from training.train import main


def grey(path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)


@pytest.fixture
def pets(tmp_path):
    """A folder of two classes with 20 images each, and entries that are not images."""
    for i in range(20):
        grey(tmp_path / f"pets/cat/{i}.png", np.full((28, 28), i))
        grey(tmp_path / f"pets/my dog/more/{i}.PNG", np.full((40, 30, 3), 200 + i))
    grey(tmp_path / "pets/.trash/0.png", np.zeros((28, 28)))
    (tmp_path / "pets/cat/notes.txt").write_text("no image")
    (tmp_path / "pets/cat/folder.png").mkdir()
    (tmp_path / "pets/cat/.hidden.png").write_bytes(b"no image")
    return tmp_path / "pets"


# ---- reading


def test_images_keep_their_shape_and_take_the_colour_of_their_corner():
    exact = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    assert (own_images.fitted(Image.fromarray(exact)) == exact).all()
    halves = np.full((100, 200), 50, dtype=np.uint8)  # a wide image, its right half bright
    halves[:, 100:] = 250
    fitted = own_images.fitted(Image.fromarray(halves))
    assert (fitted[:7] == 50).all()
    assert (fitted[21:] == 50).all()
    assert (fitted[7:21, :12] == 50).all()
    assert (fitted[7:21, 16:] == 250).all()
    transparent = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    transparent.putpixel((3, 5), (0, 0, 0, 255))
    fitted = own_images.fitted(transparent)
    assert fitted[5, 3] == 0
    assert (fitted == 255).sum() == 28 * 28 - 1


def test_folder_of_folders(pets):
    pixels, labels, names = own_images.read(pets)
    assert (pixels.shape, pixels.dtype) == ((40, 28, 28), torch.uint8)
    assert names == ("cat", "my dog")
    assert labels.tolist() == [0] * 20 + [1] * 20
    assert sorted(pixels[:20, 0, 0].tolist()) == list(range(20))
    assert sorted(pixels[20:, 14, 14].tolist()) == list(range(200, 220))


def test_npz_with_and_without_names(tmp_path):
    path, pixels = tmp_path / "letters.npz", np.arange(3 * 28 * 28).reshape(3, 28, 28).astype(np.uint8)
    np.savez(path, images=pixels, labels=np.array([26, 1, 26]))
    read, labels, names = own_images.read(path)
    assert (read.numpy() == pixels).all()
    assert (labels.tolist(), names) == ([1, 0, 1], ("1", "26"))
    np.savez(path, images=np.full((2, 5, 9), 7, dtype=np.uint8), labels=np.array([1, 0]), classes=["a", "b"])
    read, labels, names = own_images.read(path)
    assert (read == 7).all()
    assert read.shape == (2, 28, 28)
    assert (labels.tolist(), names) == ([1, 0], ("a", "b"))


@pytest.mark.filterwarnings("ignore:Image size")  # Pillow's own warning
def test_images_that_cannot_be_read_are_named(pets, monkeypatch):
    path = pets / "cat/0.png"
    good = path.read_bytes()
    for broken in (b"no image", good[: len(good) // 2], b"GIF89a" + bytes(7)):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"cat/0\.png is not an intact image"):
            own_images.read(pets)
    Image.fromarray(np.full((28, 28), 40_000, dtype=np.uint16)).save(path)  # Pillow would make it white
    with pytest.raises(ValueError, match=r"cat/0\.png is not an intact image with 8 bits"):
        own_images.read(pets)
    path.write_bytes(good)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 800)
    with pytest.raises(ValueError, match=r"my dog/more/0\.PNG is not an intact image .* at most 800 pixels"):
        own_images.read(pets)


def test_folders_that_are_no_classes_are_one_sentence(pets, monkeypatch):
    monkeypatch.setattr(own_images, "MAX_IMAGES", 39)
    with pytest.raises(ValueError, match=r"holds 40 images; it needs .* at most 39 images"):
        own_images.read(pets)
    with pytest.raises(ValueError, match="holds 0 images; it needs one folder of images for each class"):
        own_images.read(pets / "cat")
    monkeypatch.undo()
    (pets / "empty").mkdir()
    with pytest.raises(ValueError, match=r"the class empty in .* has no images"):
        own_images.read(pets)
    (pets / "empty").rename(pets / "<b>")
    with pytest.raises(ValueError, match=r"a class in .* must be a plain name .* not '<b>'"):
        own_images.read(pets)


GOOD = {"images": np.zeros((4, 28, 28), np.uint8), "labels": np.array([0, 1, 0, 1]), "classes": np.array(["a", "b"])}
FOREIGN = {
    "no labels": {"labels": None},
    "floats": {"images": np.zeros((4, 28, 28))},
    "colour": {"images": np.zeros((4, 28, 28, 3), np.uint8)},
    "none": {"images": np.zeros((0, 28, 28), np.uint8), "labels": np.zeros(0, int)},
    "fewer labels": {"labels": np.array([0, 1])},
    "texts": {"labels": np.array(["a", "b", "a", "b"])},
    "outside": {"labels": np.array([0, 1, 2, 0])},
    "negative": {"labels": np.array([0, 1, -1, 0])},
    "names of another kind": {"classes": np.array([1, 2])},
    "one name for all": {"classes": np.array("ab")},
    "objects": {"labels": np.array([None] * 4)},
    "no image of a class": {"classes": np.array(["a", "b", "c"])},
}


def test_foreign_archives_are_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "own.npz"
    for change in FOREIGN.values():
        np.savez(path, **{name: value for name, value in {**GOOD, **change}.items() if value is not None})
        with pytest.raises(ValueError, match=r"^[^\n]{10,200}$"):
            own_images.read(path)
    for content in (b"", b"no archive", path.read_bytes()[:100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is not an \.npz with images and labels"):
            own_images.read(path)
    np.savez_compressed(path, **GOOD)
    monkeypatch.setattr(own_images, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="at most 1,000 are read"):
        own_images.read(path)


# ---- the names of the classes


def test_classes_are_named_or_counted():
    names = ("cat", "t-shirt", "dog")
    assert [label(name, names) for name in ("dog", "t-shirt", "0", "2")] == [2, 1, 0, 2]
    assert parse_labels("dog,t-shirt", 3, names=names).tolist() == [2, 1, 2]
    assert parse_labels("0-2", 3, names=names).tolist() == [0, 1, 2]
    assert parse_labels("cat-dog", 3, names=names).tolist() == [0, 1, 2]
    assert parse_labels("7,3", 2, names=("3", "7")).tolist() == [1, 0]  # names that are numbers are not positions
    for text in ("3", "bird", "mnist", "0", "9" * 900):
        with pytest.raises(ValueError, match=r"^class must be one of"):
            parse_labels(text, 3, names=names if text != "0" else ("3", "7"))


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "<b>"], ["a", 1], "ab", {"a": 1, "b": 2}])
def test_foreign_names_are_refused(names):
    with pytest.raises(ValueError, match="class"):
        DiT(width=16, depth=1, heads=1, classes=2, class_names=names)


def test_weights_without_names_have_those_of_mnist(tmp_path):
    assert DiT(width=16, depth=1, heads=1).class_names == images.CLASSES
    assert DiT(width=16, depth=1, heads=1, classes=10).class_names == images.CLASSES[:10]
    assert DiT(width=16, depth=1, heads=1, classes=26).class_names[25] == "25"


@pytest.mark.parametrize(("name", "folder", "nine"), [("fashion", "FashionMNIST", "boot"), ("kmnist", "KMNIST", "wo")])
def test_built_in_sets_have_the_names_of_their_classes(go, root, tmp_path, name, folder, nine):
    (tmp_path / "data/MNIST").rename(tmp_path / "data" / folder)
    assert go("--name", "a", data=name, epochs=0.25) == 0
    loaded = weights.load(str(tmp_path / "runs/a/weights"), dtype=torch.float32)
    names = loaded.network.class_names
    assert (len(set(names)), names[9:], loaded.network.null_label) == (12, (nine, "black", "white"), 12)
    assert parse_labels(f"{nine},0-2", 4, names=names).tolist() == [9, 0, 1, 2]
    assert f"ask for one of {names[0]}, {names[1]}, " in str(card(tmp_path / "runs/a/weights"))


def train(*words) -> int:
    try:
        return main([*map(str, words), *flags({**TINY, "batch": 8, "epochs": 1, "log_every": 1})])
    except SystemExit as stop:
        return stop.code


def test_own_images_train_and_draw_from_one_command_each(pets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train("--data", "pets", "--name", "own") == 0
    assert "5 steps of 8 on cpu, pets" in capsys.readouterr().out
    folder = tmp_path / "runs/own/weights"
    network = weights.load(str(folder), dtype=torch.float32).network
    assert (network.null_label, network.class_names) == (2, ("cat", "my dog"))
    with Image.open(tmp_path / "runs/own/previews/0000005.png") as preview:
        assert preview.width > preview.height  # two classes side by side
    for labels, expected in ((["--labels", "my dog,cat"], [1, 0, 1]), (["--labels", "1"], [1, 1, 1]), ([], [0, 1, 0])):
        draw = ["--weights", str(folder), "--count", "3", "--steps", "1", "--out", "d.npz", "--device", "cpu", *labels]
        assert generate.main(draw) == 0
        assert np.load("d.npz")["labels"].tolist() == expected
    text = str(card(folder))
    assert "ask for one of cat, my dog." in text
    assert "--labels 'cat,my dog' --count" in text
    assert "mnist" not in text.lower()
    # Other images with these weights: the network is kept, the class embedding is new.
    (pets / "cat").rename(pets / "bird")
    assert train("--data", "pets", "--name", "next", "--init", folder) == 0
    assert weights.read(tmp_path / "runs/next/weights").network.class_names == ("bird", "my dog")
    (pets / "bird").rename(pets / "cat")
    assert train("--data", "nowhere") == 2
    assert "data must be mnist, fashion, kmnist, a folder or an .npz, not 'nowhere'" in capsys.readouterr().err


def test_images_that_changed_since_the_start_are_refused(pets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train("--data", "pets", "--name", "own") == 0
    sentence = (
        "python -m training.train: the run in runs/own began with other images than those in pets; restore them, "
        "or start another run with --init runs/own/weights\n"
    )
    again, cat = ["--resume", "runs/own"], pets / "cat/0.png"
    whole = cat.read_bytes()
    assert main(again) == 0

    def another_pixel():
        grey(cat, np.full((28, 28), 100))

    for change in (another_pixel, cat.unlink, lambda: (pets / "cat").rename(pets / "bird")):
        change()
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(again)
        assert capsys.readouterr().err.endswith(sentence)
        (pets / "bird").rename(pets / "cat") if (pets / "bird").exists() else cat.write_bytes(whole)
    assert main(again) == 0


def test_page_offers_the_classes_of_the_weights(tmp_path):
    app = pytest.importorskip("app")
    network = DiT(width=16, depth=1, heads=1, classes=2, class_names=["cat", "my dog"])
    weights.save(network, tmp_path / "w", SamplingConfig(steps=1), {})
    studio = app.Studio(weights.load(str(tmp_path / "w")))
    assert studio.start["digit"] == "cat"
    config = SamplingConfig(steps=1)
    assert studio.draw_one("my dog", 1, config).digits.shape == (1, 28, 28)
    assert studio.labels("my dog", 2).tolist() == [1, 1]
    assert [len(column[1]) for column in studio.compare_steps("all", 1, config)] == [2] * 6
    *_, (sheet, problem) = studio.sheet_tab(["my dog", 3], ["cat", 1, 1, 1.0])
    assert (sheet["digits"], sheet["labels"], problem) == (["my dog"] * 3, [1] * 3, None)
    assert from_link({"digit": "my dog"}, studio.start, studio.classes)["digit"] == "my dog"
    forms = [block.props["content"] for block in app.build(studio).blocks.values() if getattr(block, "props", {})]
    offered = [re.findall(r'(?:value="|<option[^>]*>)(cat|my dog)', content) for content in forms]
    assert [names for names in offered if names] == [["cat", "my dog"]] * 3  # the panel, the sheet, another class


# ---- TensorBoard


def test_tensorboard_has_the_rows_of_the_log(pets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainer, "find_spec", lambda name: None)
    assert train("--data", "pets", "--tensorboard") == 2
    install = python("-m", "pip", "install", "tensorboard")
    assert capsys.readouterr().err == f"python -m training.train: --tensorboard needs its package; run {install}\n"
    assert not (tmp_path / "runs").exists()
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((str(folder), purge_step))

        def add_scalar(self, *point):
            written.append(point)

        def close(self):
            written.append("closed")

    monkeypatch.setattr(trainer, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    assert train("--data", "pets", "--tensorboard") == 0
    assert (written[0], written[-1]) == (("runs/full/tensorboard", 1), "closed")
    assert [point[::2] for point in written[1:-1]] == [
        (name, step) for step in range(1, 6) for name in ("loss", "grad_norm", "lr")
    ]
