"""The ruler: real digits in their range, known failings caught; the command's files, its resuming, and its sentences."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model import flow, weights
from model.dit import DiT
from model.generate import MNIST_HISTOGRAM
from training import data, evaluate, extractor, figures
from training.defaults import set_defaults
from training.subject import FromFile, read_samples

pytest.importorskip("torchmetrics", reason="torchmetrics is a development package")
pytest.importorskip("matplotlib", reason="matplotlib is a development package")

ROOT = Path(__file__).parent.parent.parent
COUNT = 2000


@pytest.fixture(scope="module")
def real(ruler):
    """Held-back real digits as if somebody had drawn them: those of the test set that stand in no floor of 2,000."""
    return ruler.test[COUNT : 2 * COUNT], ruler.test_labels[COUNT : 2 * COUNT]


def seen(ruler, pixels, labels) -> dict:
    return ruler.compare(pixels, labels)[0]


# ---- known answers, on real digits


def test_every_beginning_of_the_real_sets_has_the_proportions_of_the_training_set(ruler):
    share = torch.tensor(MNIST_HISTOGRAM) / sum(MNIST_HISTOGRAM)
    for labels in (ruler.train_labels, ruler.test_labels):
        for count in (300, 2000, 9000):
            assert (labels[:count].bincount() - share * count).abs().max() <= 1
    assert ruler.train_labels.bincount().tolist() == list(MNIST_HISTOGRAM)


def test_the_bundled_extractor_is_as_good_as_it_says(ruler):
    right = extractor.accuracy(ruler.test_verdicts, ruler.test_labels)
    assert right == pytest.approx(ruler.notes["accuracy"], abs=1e-4)
    assert right >= extractor.NEEDED
    assert ruler.notes["sha256"] == weights.sha256(extractor.PATH)


def test_features_have_the_spread_of_the_training_set_as_their_unit(ruler):
    assert ruler.train_features.var(0).mean().item() == pytest.approx(1, rel=1e-2)


def test_an_extractor_that_has_lost_its_eyes_measures_nothing(ruler, monkeypatch):
    spoiled = extractor.Extractor().eval()
    monkeypatch.setattr(extractor, "load", lambda device: (spoiled, ruler.notes))
    with pytest.raises(ValueError, match=r"is damaged: it names .* once it was 99\.71%"):
        evaluate.Ruler(torch.device("cpu"), str(ROOT / "data"))


def test_torchmetrics_takes_the_extractor_itself(ruler):
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=ruler.extractor)
    metric.update(ruler.train[:500], real=True)
    metric.update(ruler.test[:500], real=False)
    assert metric.compute().item() == pytest.approx(
        figures.frechet(ruler.test_features[:500], ruler.train_features[:500]), rel=1e-3
    )


def test_real_digits_are_as_good_as_real_digits(ruler, real):
    drawn, floor, _ = ruler.compare(*real)
    assert 0.5 < drawn["fd_ratio"] < 2
    # two thousand digits of the training set's own hands are nearer to it than those of others, but not at 0
    assert 0.1 < floor["fd_train_subset"] < 0.75 * floor["fd_train"] < 0.75
    assert floor["fd_ratio"] == 1
    for name in ("precision", "recall", "coverage"):
        assert drawn[name] > 0.9
        assert drawn[name] == pytest.approx(floor[name], abs=0.03)
    assert drawn["density"] == pytest.approx(floor["density"], abs=0.1)
    assert min(drawn["accuracy"], floor["accuracy"]) > 0.99


def test_white_noise_is_far(ruler, real):
    noise = torch.randint(0, 256, (COUNT, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = seen(ruler, noise, real[1])
    assert found["fd_ratio"] > 100
    assert found["coverage"] < 0.01
    assert found["recall"] < 0.01
    assert found["accuracy"] < 0.3


def test_a_missing_class_loses_coverage_and_recall_and_nothing_else(ruler, real):
    pixels, labels = ruler.train[COUNT : 2 * COUNT], ruler.train_labels[COUNT : 2 * COUNT]
    whole, kept = seen(ruler, pixels, labels), labels != 4
    found = seen(ruler, pixels[kept], labels[kept])
    assert whole["coverage"] - found["coverage"] == pytest.approx(0.1, abs=0.03)
    assert whole["recall"] - found["recall"] == pytest.approx(0.1, abs=0.03)
    assert found["fd_ratio"] > 2 * whole["fd_ratio"]
    assert found["precision"] == pytest.approx(whole["precision"], abs=0.02)
    assert found["accuracy"] > 0.99


def test_shuffled_labels_lose_accuracy_and_nothing_else(ruler, real):
    pixels, labels = real
    found = seen(ruler, pixels, labels[torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))])
    assert found["accuracy"] == pytest.approx(0.1, abs=0.03)
    assert {**found, "accuracy": 0} == {**seen(ruler, pixels, labels), "accuracy": 0}


def test_copies_are_caught_and_held_back_digits_are_not(ruler, real):
    test_distance = figures.nearest(ruler.test[:COUNT], ruler.train)[0]
    held_back_distance = figures.nearest(real[0], ruler.train)[0]
    copied_distance, index = figures.nearest(ruler.train[:300], ruler.train)
    assert index.tolist() == list(range(300))
    copied, held_back = (
        figures.copies(copied_distance, test_distance),
        figures.copies(held_back_distance, test_distance),
    )
    assert copied["share"] == 1
    assert copied["z"] < -20
    assert held_back["share"] == pytest.approx(0.01, abs=0.01)
    assert held_back["real_share"] == pytest.approx(0.01, abs=0.005)
    assert abs(held_back["z"]) < 4


# ---- the command, on a small made-up data set


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A folder of untrained weights, and 1,500 training and 600 test images that stand for MNIST."""

    def load(name, root, train=True):
        chance = torch.Generator().manual_seed(int(train))
        size = 1500 if train else 600
        labels = torch.arange(size) % 10
        pixels = torch.randint(0, 80, (size, 28, 28), generator=chance, dtype=torch.uint8)
        pixels[torch.arange(size), 2 * labels + 4] = 255  # the class is the row of a white line
        return pixels, labels

    eyes, notes = extractor.load()
    pixels, labels = load("mnist", "", train=False)
    right = extractor.accuracy(extractor.look(eyes, pixels)[1], labels)
    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(
        extractor, "load", lambda device: (eyes, {**notes, "accuracy": right})
    )  # to its eyes these are no digits
    monkeypatch.setattr(evaluate, "STEPS", (1, 2))
    monkeypatch.setattr(evaluate, "SCALES", (1.0, 2.0))
    monkeypatch.setattr(evaluate, "SHIFTS", (3.0,))
    monkeypatch.setattr(evaluate, "SHIFT_STEPS", (2,))
    monkeypatch.setattr(evaluate, "CAS_COUNT", {"other": 300})
    monkeypatch.setattr(evaluate, "CAS_STEPS", 2)
    monkeypatch.setattr(figures, "KERNEL_SUBSETS", 3)
    torch.manual_seed(0)
    network = DiT(width=16, depth=1, heads=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # as it is born its velocity is 0, whatever the settings
    weights.save(network, tmp_path / "w", {"training": {"data": "mnist", "epochs": 1}})
    return tmp_path / "w"


def run(folder: Path, *options: str) -> int:
    return evaluate.main(["--weights", str(folder), "--count", "300", "--steps", "2", "--device", "cpu", *options])


def test_the_headline_row_goes_into_the_metrics_of_the_weights(toy):
    before = json.loads((toy / "metrics.json").read_text())
    assert run(toy) == 0
    metrics = json.loads((toy / "metrics.json").read_text())
    assert {name: metrics[name] for name in before} == before
    row = metrics["evaluation"]
    expected = {
        "count": 300,
        "steps": 2,
        "guidance": 1.0,
        "time_shift": 1.63206,
        "seed": 0,
        "sampler": flow.SAMPLER,
        "sha256": before["sha256"]["model.safetensors"],
    }
    assert row["settings"] == {**expected, "extractor": weights.sha256(extractor.PATH)}
    assert row["drawn"]["fd_ratio"] == pytest.approx(row["drawn"]["fd_train"] / row["real"]["fd_train"], rel=1e-3)
    assert set(row["drawn"]) >= {
        "fd_test",
        "kid",
        "precision",
        "recall",
        "density",
        "coverage",
        "accuracy",
        "copies",
        "copies_z",
    }
    assert {name: flat["count"] for name, flat in row["blank"].items()} == {"black": 50, "white": 50}
    assert {"extractor_accuracy", "device", "torch", "command", "commit", "seconds"} <= set(row)
    assert {path.name for path in toy.glob("*.png")} == {"samples.png", "neighbours.png"}
    weights.read(toy)  # still whole


def test_a_stopped_sweep_goes_on_where_it_was(toy, monkeypatch):
    measured, compare = [], evaluate.Ruler.compare

    def stopped(ruler, pixels, labels):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(pixels)
        return compare(ruler, pixels, labels)

    monkeypatch.setattr(evaluate.Ruler, "compare", stopped)
    assert run(toy, "--only", "steps,guidance") == 130
    first = json.loads((toy / "metrics.json").read_text())["sweeps"]
    assert [(row["settings"]["steps"], row["settings"]["guidance"]) for row in first] == [(1, 1.0), (2, 1.0)]

    monkeypatch.setattr(evaluate.Ruler, "compare", compare)
    assert run(toy, "--full") == 0
    metrics = json.loads((toy / "metrics.json").read_text())
    assert metrics["sweeps"][:2] == first  # not measured again, and the point that both sweeps share is one row
    rest = [[row["settings"][name] for name in ("steps", "guidance", "time_shift")] for row in metrics["sweeps"][2:]]
    assert rest == [[2, 2.0, 1.63206], [2, 1.0, 3.0]]
    assert metrics["sweeps"][3]["drawn"] != metrics["sweeps"][1]["drawn"]  # the shift reaches the sampler
    assert metrics["evaluation"]["settings"]["time_shift"] == 1.63206
    assert set(metrics["cas"][0]["drawn"]) == set(metrics["cas"][0]["real"]) == {"cas"}
    assert metrics["cas"][0]["settings"]["count"] == 300
    assert {path.name for path in toy.glob("*.png")} == {
        "samples.png",
        "neighbours.png",
        "steps.png",
        "guidance.png",
        "shift.png",
    }


def test_rows_of_other_weights_are_never_used(toy, capsys):
    assert run(toy, "--only", "steps") == 0
    metrics = json.loads((toy / "metrics.json").read_text())
    for row in metrics["sweeps"]:
        row["settings"]["sha256"], row["drawn"] = "0" * 64, "of others"
    (toy / "metrics.json").write_text(json.dumps({**metrics, "evaluation": metrics["sweeps"][0]}))
    assert run(toy, "--only", "steps") == 0
    metrics = json.loads((toy / "metrics.json").read_text())
    assert "evaluation" not in metrics
    assert len(metrics["sweeps"]) == 2
    assert "of others" not in json.dumps(metrics)

    other = toy.with_name("other")
    weights.save(DiT(width=16, depth=1, heads=1, patch=4), other, {})
    sentence(capsys, ["--weights", str(other), "--out", str(toy), "--count", "300"], "belongs to other weights")


def test_a_row_that_another_sampler_drew_is_measured_again(toy):
    assert run(toy, "--only", "steps") == 0
    metrics = json.loads((toy / "metrics.json").read_text())
    kept, stale = metrics["sweeps"]
    del stale["settings"]["sampler"]
    stale["drawn"] = "by another"
    (toy / "metrics.json").write_text(json.dumps(metrics))
    assert run(toy, "--only", "steps") == 0
    first, second = json.loads((toy / "metrics.json").read_text())["sweeps"]
    assert first == kept
    assert second["settings"] == {**stale["settings"], "sampler": flow.SAMPLER}
    assert second["drawn"] != "by another"


def test_defaults_that_are_set_while_the_weights_are_measured_stay(toy, monkeypatch):
    headline = evaluate.Evaluation.headline

    def meanwhile(self, pixels, labels):
        set_defaults(toy, default_guidance=1.5)
        return headline(self, pixels, labels)

    monkeypatch.setattr(evaluate.Evaluation, "headline", meanwhile)
    assert run(toy) == 0
    network, metrics = weights.read(toy)  # whole
    assert network.default_guidance == 1.5
    assert metrics["evaluation"]["settings"]["guidance"] == 1.0


def test_weights_that_change_while_they_are_measured_are_left_alone(toy, monkeypatch, capsys):
    headline = evaluate.Evaluation.headline

    def overtaken(self, pixels, labels):
        row = headline(self, pixels, labels)
        weights.save(DiT(width=16, depth=1, heads=1, patch=4), toy, {"training": {"data": "mnist", "epochs": 2}})
        return row

    monkeypatch.setattr(evaluate.Evaluation, "headline", overtaken)
    sentence(capsys, ["--weights", str(toy), "--count", "300", "--steps", "1"], "belongs to other weights")
    assert "evaluation" not in weights.read(toy)[1]


def test_the_headline_of_samples_lies_beside_them(toy, tmp_path, capsys):
    pixels, labels = data.load("mnist", "", train=False)
    blank = torch.zeros(3, 28, 28, dtype=torch.uint8)
    path = tmp_path / "theirs" / "digits.npz"
    path.parent.mkdir()
    np.savez(path, images=torch.cat([blank, pixels]), labels=torch.cat([torch.full((3,), 10), labels]))
    assert evaluate.main(["--samples", str(path), "--device", "cpu"]) == 0
    row = json.loads((path.parent / "metrics.json").read_text())["evaluation"]
    assert row["settings"] | {"count": 600, "steps": None, "guidance": None, "time_shift": None} == row["settings"]
    assert row["settings"]["sha256"] == weights.sha256(path)
    assert row["blank"] == {"black": {"count": 3, "mean": 0, "spread": 0, "worst": 0}}
    assert row["drawn"]["fd_test"] == pytest.approx(0, abs=1e-3)
    assert (path.parent / "samples.png").exists()
    before, others = (path.parent / "metrics.json").read_bytes(), path.with_name("others.npz")
    np.savez(others, images=pixels, labels=labels)
    sentence(capsys, ["--samples", str(others)], "holds figures of other digits than these; choose another --out")
    assert (path.parent / "metrics.json").read_bytes() == before


def test_a_sorted_file_is_measured_in_the_proportions_of_the_training_set(tmp_path):
    labels = torch.arange(10).repeat_interleave(100)
    pixels = labels.to(torch.uint8).view(-1, 1, 1).expand(-1, 28, 28)
    np.savez(tmp_path / "sorted.npz", images=pixels, labels=labels)
    chosen, their_labels = FromFile(tmp_path / "sorted.npz").digits(500, None, None, None, 0)
    share = torch.tensor(MNIST_HISTOGRAM) / sum(MNIST_HISTOGRAM)
    assert (their_labels.bincount() - share * 500).abs().max() <= 1
    assert (chosen[:, 0, 0] == their_labels).all()
    assert their_labels[:20].unique().numel() > 5


# ---- sentences


def sentence(capsys, options: list[str], part: str) -> None:
    """The command ends with exit status 2 and one line that holds `part`."""
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*options, "--device", "cpu"])
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert told.startswith("python -m training.evaluate: ")
    assert part in told


GOOD = {"images": np.zeros((300, 28, 28), np.uint8), "labels": np.zeros(300, np.int64)}
BAD = {
    "shape": ({"images": np.zeros((300, 32, 32), np.uint8)}, "uint8 [N, 28, 28], not uint8 [300, 32, 32]"),
    "channels": ({"images": np.zeros((300, 1, 28, 28), np.uint8)}, "not uint8 [300, 1, 28, 28]"),
    "dtype": ({"images": np.zeros((300, 28, 28), np.float32)}, "not float32 [300, 28, 28]"),
    "range": ({"labels": np.full(300, 12)}, "labels must lie in 0..11, not 12"),
    "negative": ({"labels": np.full(300, -1)}, "labels must lie in 0..11, not -1"),
    "fractions": ({"labels": np.zeros(300)}, "whole numbers [300]"),
    "unequal": ({"labels": np.zeros(299, np.int64)}, "whole numbers [300], one an image, not int64 [299]"),
    "empty": (
        {"images": np.zeros((0, 28, 28), np.uint8), "labels": np.zeros(0, np.int64)},
        "0 digits of the classes 0 to 9 are too few",
    ),
    "few": ({"images": np.zeros((200, 28, 28), np.uint8), "labels": np.zeros(200, np.int64)}, "200 digits"),
    "blanks": ({"labels": np.full(300, 10)}, "0 digits of the classes 0 to 9 are too few"),
    "scalar": ({"images": np.uint8(3)}, "not uint8 []"),
}


@pytest.mark.parametrize("kind", BAD)
def test_samples_that_cannot_be_measured_get_a_sentence(kind, tmp_path, capsys):
    changed, part = BAD[kind]
    np.savez(tmp_path / "digits.npz", **{**GOOD, **changed})
    sentence(capsys, ["--samples", str(tmp_path / "digits.npz")], part)
    assert not (tmp_path / "metrics.json").exists()


def test_files_that_are_no_samples_get_a_sentence(tmp_path, capsys):
    for name, content in {"empty.npz": b"", "text.npz": b"no archive", "cut.npz": b"PK\x03\x04 cut short"}.items():
        (tmp_path / name).write_bytes(content)
        sentence(capsys, ["--samples", str(tmp_path / name)], "is no .npz that holds images and labels")
    np.savez(tmp_path / "other.npz", pixels=GOOD["images"])
    np.save(tmp_path / "array.npy", GOOD["images"])
    for name in ("other.npz", "array.npy"):
        sentence(capsys, ["--samples", str(tmp_path / name)], "is no .npz that holds images and labels")
    sentence(capsys, ["--samples", str(tmp_path / "missing.npz")], "missing.npz")
    np.savez(tmp_path / "good.npz", **GOOD)
    assert read_samples(tmp_path / "good.npz")[1].dtype == torch.int64


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--count", "10"], "count must be a whole number from 256 to 10000, not 10"),
        (["--count", "20000"], "not 20000"),
        (["--steps", "0"], "steps must be a whole number from 1 to 50, not 0"),
        (["--guidance", "9"], "guidance must be a number from 0 to 5, not 9"),
        (["--only", "steps,fid"], "--only takes headline, steps, guidance, shift, cas, not fid"),
        (["--samples", "x.npz", "--only", "steps"], "nothing to sweep over"),
        (["--weights", "nowhere"], "nowhere"),
    ],
)
def test_options_out_of_range_get_a_sentence(options, part, capsys):
    sentence(capsys, options, part)


def test_weights_of_another_data_set_get_a_sentence(tmp_path, capsys):
    weights.save(DiT(width=16, depth=1, heads=1), tmp_path / "w", {"training": {"data": "fashion"}})
    sentence(capsys, ["--weights", str(tmp_path / "w")], "was trained on fashion")


def test_a_missing_or_damaged_extractor_gets_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="train it with"):
        extractor.load(path=tmp_path / "extractor.safetensors")
    whole = extractor.PATH.read_bytes()
    for damaged in (b"", whole[:-100], b"x" * 100):
        (tmp_path / "extractor.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match="train it again"):
            extractor.load(path=tmp_path / "extractor.safetensors")


def test_a_classifier_learns_and_a_seed_names_it():
    labels = torch.arange(200) % 10
    pixels = torch.zeros(200, 28, 28, dtype=torch.uint8)
    pixels[torch.arange(200), 2 * labels + 4] = 255
    learned = extractor.fit(pixels, labels, 30, move=False, device=torch.device("cpu"))
    assert extractor.accuracy(extractor.look(learned, pixels)[1], labels) > 0.9
    first, again, other = (
        extractor.fit(pixels, labels, 2, move=True, device=torch.device("cpu"), seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first(pixels), again(pixels))
    assert not torch.equal(first(pixels), other(pixels))
