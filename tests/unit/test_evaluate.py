"""Evaluation: metrics of real digits and known failures; the command's files, resuming and errors."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from model import flow, weights
from model.common import sha256
from model.dit import DiT
from model.sampling import MNIST_HISTOGRAM, SamplingConfig
from training import data, evaluate
from training.measure import evaluation, extractor, metrics, plots
from training.measure import reference as references
from training.measure.evaluation import PARTS, Evaluation, Results, drawing_of
from training.measure.reference import Reference
from training.measure.samples import FileSamples, GeneratedSamples, read_samples

for package in ("torchmetrics", "matplotlib"):
    pytest.importorskip(package, reason=f"{package} is a development package")

CPU = torch.device("cpu")
COUNT = 2000


# ---- known answers, on real digits


@pytest.fixture(scope="module")
def real(reference):
    """Real digits in place of drawn ones: test digits not among the 2,000 they are compared with."""
    return reference.test[COUNT : 2 * COUNT], reference.test_labels[COUNT : 2 * COUNT]


def drawn_metrics(reference, pixels, labels) -> dict:
    return reference.compare(pixels, labels)[0]


def test_every_prefix_of_the_real_sets_has_the_proportions_of_the_training_set(reference):
    share = torch.tensor(MNIST_HISTOGRAM) / sum(MNIST_HISTOGRAM)
    for labels in (reference.train_labels, reference.test_labels):
        for count in (300, 2000, 9000):
            assert (labels[:count].bincount() - share * count).abs().max() <= 1
    assert reference.train_labels.bincount().tolist() == list(MNIST_HISTOGRAM)


def test_the_bundled_extractor_has_its_recorded_accuracy(reference):
    right = extractor.accuracy(reference.test_predictions, reference.test_labels)
    assert right == pytest.approx(reference.notes["accuracy"], abs=1e-4)
    assert right >= extractor.MIN_ACCURACY
    assert reference.notes["sha256"] == sha256(extractor.PATH)


def test_the_unit_of_the_features_is_their_spread_over_the_training_set(reference):
    assert reference.train_features.var(0).mean().item() == pytest.approx(1, rel=1e-2)


def test_real_digits_measure_like_real_digits(reference, real):
    drawn, floor = reference.compare(*real)
    assert 0.5 < drawn["fd_ratio"] < 2
    # 2,000 training digits are closer to the training set than test digits, but not at distance 0
    assert 0.1 < floor["fd_train_subset"] < 0.75 * floor["fd_train"] < 0.75
    assert floor["fd_ratio"] == 1
    for name in ("precision", "recall", "coverage"):
        assert drawn[name] > 0.9
        assert drawn[name] == pytest.approx(floor[name], abs=0.03)
    assert drawn["density"] == pytest.approx(floor["density"], abs=0.1)
    assert min(drawn["accuracy"], floor["accuracy"]) > 0.99


def test_white_noise_is_far_away(reference, real):
    noise = torch.randint(0, 256, (COUNT, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = drawn_metrics(reference, noise, real[1])
    assert found["fd_ratio"] > 100
    assert found["coverage"] < 0.01
    assert found["recall"] < 0.01
    assert found["accuracy"] < 0.3


def test_a_missing_class_lowers_coverage_and_recall_and_nothing_else(reference):
    pixels, labels = reference.train[COUNT : 2 * COUNT], reference.train_labels[COUNT : 2 * COUNT]
    whole, kept = drawn_metrics(reference, pixels, labels), labels != 4
    found = drawn_metrics(reference, pixels[kept], labels[kept])
    assert whole["coverage"] - found["coverage"] == pytest.approx(0.1, abs=0.03)
    assert whole["recall"] - found["recall"] == pytest.approx(0.1, abs=0.03)
    assert found["fd_ratio"] > 2 * whole["fd_ratio"]
    assert found["precision"] == pytest.approx(whole["precision"], abs=0.02)
    assert found["accuracy"] > 0.99


def test_shuffled_labels_lower_accuracy_and_nothing_else(reference, real):
    pixels, labels = real
    shuffled = labels[torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))]
    found = drawn_metrics(reference, pixels, shuffled)
    assert found["accuracy"] == pytest.approx(0.1, abs=0.03)
    assert {**found, "accuracy": 0} == {**drawn_metrics(reference, pixels, labels), "accuracy": 0}


def test_copies_are_found_and_real_test_digits_are_not_copies(reference, real):
    test_distance = metrics.nearest(reference.test[:COUNT], reference.train)[0]
    held_out_distance = metrics.nearest(real[0], reference.train)[0]
    copied_distance, index = metrics.nearest(reference.train[:300], reference.train)
    assert index.tolist() == list(range(300))
    assert metrics.copies(copied_distance, test_distance)["share"] == 1
    held_out = metrics.copies(held_out_distance, test_distance)
    assert held_out["share"] == pytest.approx(0.01, abs=0.01)
    assert held_out["real_share"] == pytest.approx(0.01, abs=0.005)


# ---- the command, on a small made-up data set


class TinyExtractor(nn.Module):
    """A substitute for the extractor where features need no meaning."""

    def __init__(self):
        super().__init__()
        self.project, self.head = nn.Linear(28 * 28, 128), nn.Linear(128, 10)

    def features_and_logits(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.project(pixels.flatten(1).float() / 255).relu()
        return x, self.head(x)


def toy_load(name: str, root: str, train: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a white line whose row encodes the class: 400 training and 300 test images."""
    size = 400 if train else 300
    labels = torch.arange(size) % 10
    generator = torch.Generator().manual_seed(int(train))
    pixels = torch.randint(0, 80, (size, 28, 28), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(size), 2 * labels + 4] = 255
    return pixels, labels


@pytest.fixture
def toy(monkeypatch, tmp_path) -> Path:
    """A folder of untrained weights; data set, extractor, sweeps and plots are replaced by small or fast ones."""
    tiny, (pixels, labels) = TinyExtractor().requires_grad_(False), toy_load("mnist", "", train=False)
    notes = {"sha256": "e" * 64, "accuracy": extractor.accuracy(extractor.extract(tiny, pixels)[1], labels)}
    for module, name, value in (
        (data, "load", toy_load),
        (extractor, "Extractor", TinyExtractor),
        (extractor, "load", lambda device: (tiny, notes)),
        (references, "CAS_STEPS", 2),
        (evaluation, "STEPS", (1, 2)),
        (evaluation, "SCALES", (1.0, 2.0)),
        (evaluation, "SHIFTS", (3.0,)),
        (evaluation, "SHIFT_STEPS", (2,)),
        (evaluation, "git_commit", lambda: "0123456789ab"),
        (plots, "neighbours", lambda path, *arguments: path.touch()),
        (plots, "sweep", lambda path, *arguments: path.touch()),
    ):
        monkeypatch.setattr(module, name, value)
    save_toy(tmp_path / "w", steps=2)
    return tmp_path / "w"


def save_toy(folder: Path, patch: int = 7, **sampling) -> None:
    torch.manual_seed(0)
    network = DiT(width=16, depth=1, heads=1, patch=patch)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # a fresh network has velocity 0 for all settings
    weights.save(network, folder, SamplingConfig(**sampling), {"training": {"data": "mnist", "epochs": 1}})


def run(folder: Path, *options: str) -> int:
    return evaluate.main(["--weights", str(folder), "--count", "256", "--device", "cpu", *options])


def read(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def points(rows: list[dict]) -> list[tuple]:
    return [tuple(row["settings"][name] for name in ("steps", "guidance", "time_shift")) for row in rows]


def counted(monkeypatch, stop_after: int | None = None) -> list[int]:
    """The sizes of the sets compared from now on; raises KeyboardInterrupt after `stop_after` of them."""
    sizes, compare = [], Reference.compare

    def counting(self, pixels, labels):
        if len(sizes) == stop_after:
            raise KeyboardInterrupt
        sizes.append(len(pixels))
        return compare(self, pixels, labels)

    monkeypatch.setattr(Reference, "compare", counting)
    return sizes


def test_the_headline_row_is_added_to_the_metrics_of_the_weights(toy):
    before = read(toy)
    assert run(toy) == 0
    found = read(toy)
    assert {name: found[name] for name in before} == before
    assert set(found) == {*before, "evaluation"}
    row = found["evaluation"]
    assert row["settings"] == {
        "count": 256,
        "steps": 2,
        "guidance": 1.0,
        "time_shift": 1.63206,
        "seed": 0,
        "sampler": flow.SAMPLER,
        "sha256": before["sha256"]["model.safetensors"],
        "extractor": "e" * 64,
    }
    assert row["drawn"]["fd_ratio"] == pytest.approx(row["drawn"]["fd_train"] / row["real"]["fd_train"], rel=1e-3)
    names = {"fd_test", "precision", "recall", "density", "coverage", "accuracy", "copies"}
    assert names <= set(row["drawn"]) & set(row["real"])
    assert {name: blank["count"] for name, blank in row["blank"].items()} == {"black": 50, "white": 50}
    assert {"extractor_accuracy", "device", "torch", "command", "commit", "seconds"} <= set(row)
    assert {path.name for path in toy.glob("*.png")} == {"samples.png", "neighbours.png"}
    weights.read(toy)  # still valid


def test_what_is_not_asked_for_is_that_of_the_weights(toy):
    save_toy(toy, steps=3, guidance=1.5, time_shift=4.0)
    assert run(toy, "--guidance", "0", "--seed", "7") == 0
    row = read(toy)["evaluation"]
    assert points([row]) == [(3, 0.0, 4.0)]
    assert row["settings"]["seed"] == 7


def test_a_stopped_sweep_continues_where_it_was(toy, monkeypatch):
    with monkeypatch.context() as patch:
        counted(patch, stop_after=2)
        assert run(toy, "--only", "steps,guidance") == 130
    first = read(toy)["sweeps"]
    assert points(first) == [(1, 1.0, 1.63206), (2, 1.0, 1.63206)]

    sizes = counted(monkeypatch)
    assert run(toy, "--full") == 0
    found = read(toy)
    assert found["sweeps"][:2] == first  # reused
    assert points(found["sweeps"][2:]) == [(2, 2.0, 1.63206), (2, 1.0, 3.0)]
    assert found["sweeps"][3]["drawn"] != found["sweeps"][1]["drawn"]  # the shift reaches the sampler
    assert points([found["evaluation"]]) == [(2, 1.0, 1.63206)]
    assert sizes == [256] * 3  # the headline and the two new points
    assert set(found["cas"][0]["drawn"]) == set(found["cas"][0]["real"]) == {"cas"}
    assert found["cas"][0]["settings"] == found["evaluation"]["settings"]
    pictures = {"samples.png", "neighbours.png", "steps.png", "guidance.png", "shift.png"}
    assert {path.name for path in toy.glob("*.png")} == pictures


def test_a_sweep_uses_the_headline_row_of_the_same_settings(toy, monkeypatch):
    plotted = {}
    monkeypatch.setattr(plots, "sweep", lambda path, over, rows: plotted.update({path.name: rows}))
    sizes = counted(monkeypatch)
    assert run(toy, "--only", "headline,steps") == 0
    found = read(toy)
    assert sizes == [256, 256]
    assert points(found["sweeps"]) == [(1, 1.0, 1.63206)]
    assert plotted["steps.png"] == [*found["sweeps"], found["evaluation"]]


def test_the_headline_is_measured_again_unless_the_command_continues(toy, monkeypatch):
    sizes = counted(monkeypatch)
    assert run(toy, "--only", "headline") == run(toy, "--only", "headline") == 0
    assert sizes == [256]
    assert run(toy) == 0
    assert sizes == [256, 256]


def test_rows_of_other_weights_are_never_used(toy, capsys):
    assert run(toy, "--only", "steps") == 0
    found = read(toy)
    for row in found["sweeps"]:
        row["settings"]["sha256"], row["drawn"] = "0" * 64, {"of others": 1}
    (toy / "metrics.json").write_text(json.dumps({**found, "evaluation": found["sweeps"][0]}))
    assert run(toy, "--only", "steps") == 0
    found = read(toy)
    assert "evaluation" not in found
    assert len(found["sweeps"]) == 2
    assert "of others" not in json.dumps(found)

    save_toy(toy.with_name("other"), patch=14)
    sentence(capsys, ["--weights", str(toy.with_name("other")), "--out", str(toy)], "belongs to other weights")


def test_a_row_drawn_by_another_sampler_is_not_used(toy):
    assert run(toy, "--only", "steps") == 0
    found = read(toy)
    other = found["sweeps"][1]
    other["settings"]["sampler"], other["drawn"] = "another", {"by another": 1}
    (toy / "metrics.json").write_text(json.dumps(found))
    assert run(toy, "--only", "steps") == 0
    *kept, new = read(toy)["sweeps"]
    assert kept == found["sweeps"]
    assert new["settings"] == {**other["settings"], "sampler": flow.SAMPLER}
    assert "by another" not in new["drawn"]


def test_measuring_leaves_the_sampling_defaults_alone(toy):
    """After a sweep over the time shift, the headline still uses the shift of the weights."""
    samples = GeneratedSamples(str(toy), CPU)
    drawing = drawing_of(samples, 256)
    before = samples.digits(**drawing)[0]
    measuring = Evaluation(samples, Reference(CPU, ""), Results(toy / "metrics.json", samples), drawing, "a command")
    measuring.drawn = NoCache()
    measuring.run(["shift"], 256)
    assert samples.sampling == SamplingConfig(steps=2)
    assert drawing_of(samples, 256) == drawing
    assert torch.equal(samples.digits(**drawing)[0], before)
    measuring.run(["headline"], 256)
    found = read(toy)
    assert points(found["sweeps"]) == [(2, 1.0, 1.63206), (2, 1.0, 3.0)]
    assert found["evaluation"]["settings"] == found["sweeps"][0]["settings"]
    assert found["evaluation"]["drawn"]["fd_train"] == found["sweeps"][0]["drawn"]["fd_train"]
    assert weights.read(toy).sampling == SamplingConfig(steps=2)


class NoCache(dict):
    """A cache that never hits, so that every row is drawn again."""

    def __contains__(self, key) -> bool:
        return False


def test_sampling_defaults_edited_while_the_weights_are_measured_stay(toy, monkeypatch):
    measure = Evaluation.all_metrics

    def meanwhile(self, pixels, labels):
        (toy / "sampling.json").write_text('{"guidance": 1.5}')
        return measure(self, pixels, labels)

    monkeypatch.setattr(Evaluation, "all_metrics", meanwhile)
    assert run(toy) == 0
    loaded = weights.read(toy)  # valid
    assert loaded.sampling == SamplingConfig(guidance=1.5)
    assert points([loaded.metrics["evaluation"]]) == [(2, 1.0, 1.63206)]


def test_weights_that_change_while_they_are_measured_are_left_alone(toy, monkeypatch, capsys):
    measure = Evaluation.all_metrics

    def meanwhile(self, pixels, labels):
        row = measure(self, pixels, labels)
        save_toy(toy, patch=14)
        return row

    monkeypatch.setattr(Evaluation, "all_metrics", meanwhile)
    sentence(capsys, ["--weights", str(toy), "--count", "256"], "belongs to other weights")
    assert "evaluation" not in weights.read(toy).metrics


@pytest.mark.parametrize(("count", "expected"), [(300, [300] * 5), (None, [10_000, 10_000, 2000, 2000, 2000])])
def test_a_count_holds_for_every_row_and_without_one_a_cpu_sweeps_with_fewer(toy, monkeypatch, count, expected):
    counts = {}

    def row(self, part, measure, fresh=False, **changed):
        over = part if part != "sweeps" else f"sweep of {len(counts)}"
        counts[over] = {**self.drawing, **changed}["count"]

    monkeypatch.setattr(Evaluation, "row", row)
    monkeypatch.setattr(plots, "sweep", lambda path, over, rows: None)
    for name in ("STEPS", "SCALES", "SHIFTS"):
        monkeypatch.setattr(evaluation, name, (2,))
    samples = GeneratedSamples(str(toy), CPU)
    drawing = drawing_of(samples, count or evaluation.MAX_COUNT)
    drawing["time_shift"] = 2
    Evaluation(samples, Reference(CPU, ""), Results(toy / "metrics.json", samples), drawing, "").run(PARTS, count)
    assert list(counts)[:2] == ["evaluation", "cas"]
    assert list(counts.values()) == expected


def test_an_extractor_without_its_recorded_accuracy_is_refused(toy, monkeypatch):
    tiny, notes = extractor.load(CPU)
    monkeypatch.setattr(extractor, "load", lambda device: (tiny, {**notes, "accuracy": notes["accuracy"] + 0.5}))
    with pytest.raises(ValueError, match=r"is damaged: its accuracy on the real test digits is .*, not"):
        Reference(CPU, "")


def test_the_figures_of_samples_are_written_beside_them(toy, tmp_path, capsys):
    pixels, labels = data.load("mnist", "", train=False)
    blank = torch.zeros(3, 28, 28, dtype=torch.uint8)
    path = tmp_path / "theirs" / "digits.npz"
    path.parent.mkdir()
    np.savez(path, images=torch.cat([blank, pixels]), labels=torch.cat([torch.full((3,), 10), labels]))
    assert evaluate.main(["--samples", str(path), "--device", "cpu"]) == 0
    row = read(path.parent)["evaluation"]
    expected = {"count": 300, "steps": None, "guidance": None, "time_shift": None, "sampler": None}
    assert row["settings"] == {**row["settings"], **expected, "sha256": sha256(path)}
    assert row["blank"] == {"black": {"count": 3, "mean": 0, "spread": 0, "worst": 0}}
    assert row["drawn"]["fd_test"] == pytest.approx(0, abs=1e-3)
    assert (path.parent / "samples.png").exists()
    before, others = (path.parent / "metrics.json").read_bytes(), path.with_name("others.npz")
    np.savez(others, images=pixels, labels=labels)
    sentence(capsys, ["--samples", str(others)], "contains results for other digits than these; choose another --out")
    assert (path.parent / "metrics.json").read_bytes() == before


def test_training_images_are_copies_and_real_test_images_are_not(toy, tmp_path):
    pixels, labels = data.load("mnist", "")
    np.savez(tmp_path / "copied.npz", images=pixels, labels=labels)
    assert evaluate.main(["--samples", str(tmp_path / "copied.npz"), "--device", "cpu"]) == 0
    row = read(tmp_path)["evaluation"]
    assert row["drawn"]["copies"] == 1
    assert row["real"]["copies"] < 0.1


def test_cas_of_wrong_labels_is_low_and_that_of_real_digits_is_high(toy, monkeypatch):
    monkeypatch.setattr(references, "CAS_STEPS", 100)
    monkeypatch.setattr(extractor, "BATCH", 32)
    reference = Reference(CPU, "")
    drawn, real = reference.cas(reference.train, (reference.train_labels + 1) % 10)
    assert drawn["cas"] < 0.1
    assert real["cas"] > 0.9


def test_a_sorted_file_is_measured_in_the_proportions_of_the_training_set(tmp_path):
    labels = torch.arange(10).repeat_interleave(100)
    pixels = labels.to(torch.uint8).view(-1, 1, 1).expand(-1, 28, 28)
    np.savez(tmp_path / "sorted.npz", images=pixels, labels=labels)
    samples = FileSamples(tmp_path / "sorted.npz")
    chosen, chosen_labels = samples.digits(**drawing_of(samples, 500))
    share = torch.tensor(MNIST_HISTOGRAM) / sum(MNIST_HISTOGRAM)
    assert (chosen_labels.bincount() - share * 500).abs().max() <= 1
    assert (chosen[:, 0, 0] == chosen_labels).all()
    assert chosen_labels[:20].unique().numel() > 5


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ([], ["headline"]),
        (["--full"], ["headline", "cas", "steps", "guidance", "shift"]),
        (["--only", "shift,cas,headline"], ["headline", "cas", "shift"]),
        (["--full", "--samples", "digits.npz"], ["headline", "cas"]),
    ],
)
def test_parts_are_measured_in_their_order(options, parts, monkeypatch, tmp_path):
    measured = []
    monkeypatch.setattr(evaluate, "Reference", lambda device, root: SimpleNamespace(doubt=lambda *digits: ""))
    monkeypatch.setattr(evaluate.Evaluation, "run", lambda self, parts, count, fresh_headline: measured.extend(parts))
    np.savez(tmp_path / "digits.npz", **GOOD)
    monkeypatch.chdir(tmp_path)
    assert evaluate.main([*options, "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert measured == parts


# ---- errors


def sentence(capsys, options: list[str], part: str) -> None:
    """Assert that the command ends with exit status 2 and one line with `part`."""
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*options, "--device", "cpu"])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith("python -m training.evaluate: ")
    assert part in error


GOOD = {"images": np.zeros((300, 28, 28), np.uint8), "labels": np.zeros(300, np.int64)}
BAD = {
    "shape": ({"images": np.zeros((300, 32, 32), np.uint8)}, "uint8 [N, 28, 28], not uint8 [300, 32, 32]"),
    "channels": ({"images": np.zeros((300, 1, 28, 28), np.uint8)}, "not uint8 [300, 1, 28, 28]"),
    "dtype": ({"images": np.zeros((300, 28, 28), np.float32)}, "not float32 [300, 28, 28]"),
    "range": ({"labels": np.full(300, 12)}, "labels must be from 0 to 11, not 12"),
    "negative": ({"labels": np.full(300, -1)}, "labels must be from 0 to 11, not -1"),
    "fractions": ({"labels": np.zeros(300)}, "whole numbers [300]"),
    "unequal": ({"labels": np.zeros(299, np.int64)}, "whole numbers [300], one per image, not int64 [299]"),
    "empty": (
        {"images": np.zeros((0, 28, 28), np.uint8), "labels": np.zeros(0, np.int64)},
        "images must be uint8 [N, H, W], not uint8 [0, 28, 28]",
    ),
    "few": ({"images": np.zeros((200, 28, 28), np.uint8), "labels": np.zeros(200, np.int64)}, "200 digits"),
    "blanks": ({"labels": np.full(300, 10)}, "0 digits of the classes 0 to 9 are too few"),
    "scalar": ({"images": np.uint8(3)}, "not uint8 []"),
}


@pytest.mark.parametrize("kind", BAD)
def test_samples_that_cannot_be_measured_are_refused(kind, tmp_path, capsys):
    changed, part = BAD[kind]
    np.savez(tmp_path / "digits.npz", **{**GOOD, **changed})
    sentence(capsys, ["--samples", str(tmp_path / "digits.npz")], part)
    assert not (tmp_path / "metrics.json").exists()


def test_files_without_samples_are_refused(tmp_path, capsys):
    for name, content in {"empty.npz": b"", "text.npz": b"not an archive", "cut.npz": b"PK\x03\x04 cut short"}.items():
        (tmp_path / name).write_bytes(content)
        sentence(capsys, ["--samples", str(tmp_path / name)], "is not an .npz with images and labels")
    np.savez(tmp_path / "other.npz", pixels=GOOD["images"])
    np.save(tmp_path / "array.npy", GOOD["images"])
    for name in ("other.npz", "array.npy"):
        sentence(capsys, ["--samples", str(tmp_path / name)], "is not an .npz with images and labels")
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
        (["--only", "steps,fid"], "--only takes headline, cas, steps, guidance, shift, not fid"),
        (["--samples", "x.npz", "--only", "steps"], "nothing to sweep over"),
        (["--weights", "nowhere"], "nowhere"),
    ],
)
def test_options_out_of_range_are_refused(options, part, capsys):
    sentence(capsys, options, part)


def test_weights_of_another_data_set_are_refused(tmp_path, capsys):
    weights.save(DiT(width=16, depth=1, heads=1), tmp_path / "w", SamplingConfig(), {"training": {"data": "fashion"}})
    sentence(capsys, ["--weights", str(tmp_path / "w")], "was trained on fashion")


def test_a_missing_or_damaged_extractor_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="train it with"):
        extractor.load(path=tmp_path / "extractor.safetensors")
    whole = extractor.PATH.read_bytes()
    for damaged in (b"", whole[:-100], b"x" * 100):
        (tmp_path / "extractor.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match="train it again"):
            extractor.load(path=tmp_path / "extractor.safetensors")


def test_a_classifier_learns_and_is_determined_by_its_seed(monkeypatch):
    monkeypatch.setattr(extractor, "BATCH", 32)
    labels = torch.arange(200) % 10
    pixels = torch.zeros(200, 28, 28, dtype=torch.uint8)
    pixels[torch.arange(200), 2 * labels + 4] = 255
    learned = extractor.fit(pixels, labels, 30, CPU)
    assert extractor.accuracy(extractor.extract(learned, pixels)[1], labels) > 0.9
    first, again, other = (
        extractor.fit(pixels, labels, 2, CPU, augmented=True, seed=seed)(pixels[:10]) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_flow_map_is_measured_in_steps_that_it_draws_itself(map_weights):
    """By default, the page and `model.generate` draw this many steps with the teacher."""
    (map_weights / "sampling.json").write_text(json.dumps({"steps": 20}))
    assert weights.load(str(map_weights)).choose(SamplingConfig(20))[0].kind == "velocity"
    assert drawing_of(GeneratedSamples(str(map_weights), CPU), 256)["steps"] == weights.TEACHER_FROM - 1
