"""A flow map, with or without its teacher, in drawing, evaluation and publishing."""

import base64
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from model import benchmark, flow, generate, images, sampling, scenes, speed, weights
from model.dit import DiT
from model.flow_map import FlowMap
from model.page.studio import Studio
from model.sampling import SamplingConfig, draw
from training.measure import evaluation
from training.measure.evaluation import Evaluation, drawing_of
from training.measure.samples import GeneratedSamples
from training.release import upload
from training.release.card import card

NOTE = "Drawn at guidance 1: this network does not support values between 0 and 1."


@pytest.fixture(autouse=True)
def _float32_and_few_steps(monkeypatch):
    monkeypatch.setattr(weights, "has_bfloat16", lambda device: False)
    monkeypatch.setattr(sampling, "STEP_COUNTS", (1, 4))
    monkeypatch.setattr(scenes, "PATH_STEPS", (1, 4))


def unpacked(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8).view(-1, 28, 28)


OF_MAP = SamplingConfig(4, 1.5, 3.0)  # the sampling settings of the fixture `map_weights`, in `conftest.py`
OF_TEACHER = SamplingConfig()


def drawn(network: DiT, label: int, seed: int, steps: int, guidance: float) -> torch.Tensor:
    sampling = replace(OF_MAP if isinstance(network, FlowMap) else OF_TEACHER, steps=steps, guidance=guidance)
    return next(draw(network, torch.tensor([label]), seed, sampling))


# ---- the guidance


@pytest.mark.parametrize(("asked", "expected"), [(0, 0), (0.05, 1), (0.9, 1), (1, 1), (1.15, 1.15), (5, 5)])
def test_a_map_is_drawn_with_a_guidance_that_it_knows_and_that_is_said(small, small_map, asked, expected):
    config = SamplingConfig(guidance=asked)
    fit = config.for_network(small_map)
    assert fit == replace(config, guidance=expected)
    assert fit.note(asked) == (NOTE if asked != expected else "")
    assert fit.note(None) == ""  # no guidance was asked for
    assert config.for_network(small) == config


def test_the_command_says_what_it_draws(map_weights, tmp_path, capsys):
    for guidance, out in (("0.5", "weak.png"), ("1", "one.png")):
        options = ["--weights", str(map_weights), "--labels", "3", "--count", "2", "--steps", "2", "--device", "cpu"]
        assert generate.main([*options, "--guidance", guidance, "--out", str(tmp_path / out)]) == 0
        said = capsys.readouterr().out
        assert "2 digits, 2 steps, guidance 1, weights" in said
        assert (NOTE in said) == (guidance == "0.5")
    weak, one = (Image.open(tmp_path / name) for name in ("weak.png", "one.png"))
    assert weak.tobytes() == one.tobytes()
    assert weak.text == one.text
    assert "guidance 1.0" in weak.text["Comment"]


def test_no_row_is_recorded_under_a_guidance_it_was_not_drawn_with(map_weights, monkeypatch, capsys):
    samples = GeneratedSamples(str(map_weights), torch.device("cpu"))
    assert drawing_of(samples, 256, guidance=0.5)["guidance"] == 1
    assert capsys.readouterr().err == NOTE + "\n"
    drawing = drawing_of(samples, 256)
    assert (drawing["guidance"], drawing["steps"], capsys.readouterr().err) == (1.5, 4, "")
    rows = []
    one = Evaluation(samples, None, SimpleNamespace(path=map_weights / "metrics.json"), drawing, "")
    monkeypatch.setattr(one, "row", lambda part, measure, **changed: rows.append(changed["guidance"]))
    monkeypatch.setattr(evaluation.plots, "sweep", lambda *arguments: None)
    one.sweep("guidance", 256)
    assert rows == [scale for scale in evaluation.SCALES if not 0 < scale < 1]
    assert len(rows) == len(evaluation.SCALES) - 2
    assert samples.sampler == FlowMap.sampler


# ---- drawing


def test_paths_show_where_a_map_jumps_to(small, small_map):
    axes = torch.zeros(2, 784)
    axes[0, 100] = axes[1, 400] = 1
    values = 3, [5, 6], SamplingConfig(guidance=2), scenes.Plane(axes, [])
    shown = scenes.paths(small_map, None, *values)
    x, t, labels = flow.noise([5, 6]), torch.ones(2), torch.full((2,), 3)
    image = x - small_map(x, t, 0 * t, labels, 2 * t)  # one jump from the noise to the end
    expected = image.flatten(1)[:, [100, 400]] * small_map.pixel_std + small_map.pixel_mean - 0.5
    for run in shown["runs"]:
        assert torch.allclose(torch.tensor(run["aims"][0]), expected, atol=1e-3)
    one, many = shown["runs"]
    assert torch.allclose(torch.tensor(one["path"][-1]), expected, atol=1e-3)
    assert not torch.allclose(torch.tensor(many["path"][-1]), expected, atol=1e-2)
    assert shown["kind"] == "flow map"

    both = scenes.paths(small_map, small, *values)
    assert both["kind"] == "velocity"
    assert [(run["kind"], run["steps"]) for run in both["runs"]] == [("velocity", 1), ("velocity", 4), ("flow map", 1)]
    assert both["runs"][:2] == scenes.paths(small, None, *values)["runs"]
    assert both["runs"][2] == one


def test_both_kinds_are_compared_from_the_same_noise(small, small_map):
    drawers = [(small, replace(OF_TEACHER, guidance=1.5)), (small_map, OF_MAP)]
    found = list(sampling.compare_steps(drawers, torch.tensor([3]), 7))
    assert [steps for steps, *_ in found] == [1, 4]
    for steps, pixels, milliseconds in found:
        for there, network in zip(pixels, (small, small_map), strict=True):
            assert (there.int() - drawn(network, 3, 7, steps, 1.5)[0].int()).abs().max() <= 1
        assert len(milliseconds) == 2
    assert not torch.equal(*found[0][1])


def test_the_page_draws_with_both_kinds(small, small_map, map_weights):
    studio = Studio(weights.load(str(map_weights)))
    assert studio.start["guidance"] == 1.5
    assert "A flow map of 0.09 million parameters and its teacher of 0.07 million with weights from" in studio.about
    film, note = studio.digit_tab(["7", 5, 2, 0.5])
    assert (film["guidance"], film["kind"]) == (1, "flow map")
    assert note == {"field": "guidance", "sentence": NOTE, "harmless": True}
    assert studio.digit_tab(["7", 5, 2, 0])[1] is None
    assert studio.digit_tab(["7", None, 2, 0.5])[1]["field"] == "seed"  # an error takes precedence over a note
    subject, film, note, *_ = studio.visit({"digit": "3", "guidance": "0.9", "steps": "2"})
    assert (subject[3], film["guidance"], note["sentence"]) == (1, 1, NOTE)
    assert studio.visit({"digit": "3", "guidance": "2", "steps": "2"})[2] is None
    small_map, small = studio.network, studio.teacher
    weak, one = (studio.paths_tab(["3", 7, 20, guidance]) for guidance in (0.5, 1))
    assert weak["runs"] == one["runs"]  # both networks draw with the guidance of the map
    assert one["time_shift"] == OF_TEACHER.time_shift

    *_, shown = studio.steps_tab(["3", 7, 20, 1.5])
    assert shown["rows"] == [
        {"name": "flow", "calls": 2, "opens": [weights.TEACHER_FROM, 50]},
        {"name": "map", "calls": 1, "opens": [1, weights.TEACHER_FROM - 1]},
    ]
    for column in shown["columns"]:
        both = unpacked(column["pixels"])
        for there, network in zip(both, (small, small_map), strict=True):
            assert (there.int() - drawn(network, 3, 7, column["steps"], 1.5)[0].int()).abs().max() <= 1
        assert all(type(milliseconds) is int for milliseconds in column["milliseconds"])
    assert next(studio.steps_tab(["3", 7, 20, 0.5]))["rows"][0]["calls"] == 1  # guidance 1 takes one call
    of_program = studio.steps_api("3", 7, 1.5)
    assert list(of_program) == ["1", "4"]
    assert of_program["4"] == unpacked(shown["columns"][1]["pixels"])[1:].tolist()

    alone = Studio(weights.load(str(map_weights / weights.TEACHER)))
    *_, shown = alone.steps_tab(["3", 7, 20, 0.5])
    assert "rows" not in shown
    assert (shown["guidance"], alone.digit_tab(["7", 5, 2, 0.5])[1]) == (0.5, None)
    assert torch.equal(unpacked(shown["columns"][1]["pixels"]), drawn(alone.network, 3, 7, 4, 0.5))


def test_styles_are_the_classes_in_turn_from_one_noise(small, map_weights):
    film = Studio(weights.load(str(map_weights))).styles_tab(["3", 30, 9, 2.0])
    assert (film["digits"], film["seeds"]) == ([*"0123456789"], [30] * 10)
    assert (film["times"][0], film["times"][-1], len(film["times"])) == (1, 0, 6)
    noisy = unpacked(film["noisy"]).unflatten(0, (6, 10))
    noise = images.to_pixels(flow.noise([30]), small.pixel_mean, small.pixel_std)
    assert torch.equal(noisy[0], noise.expand(10, -1, -1))
    assert (noisy[-1, 4].int() - drawn(small, 4, 30, 9, 2.0)[0].int()).abs().max() <= 1


def test_paths_of_the_last_seeds_begin_anew_at_zero(map_weights):
    runs = Studio(weights.load(str(map_weights))).paths_tab(["3", sampling.MAX_SEED, 4, 1.5])
    assert runs["seeds"] == [sampling.MAX_SEED, *range(7)]


def test_many_steps_are_drawn_by_the_teacher(map_weights, tmp_path, capsys):
    loaded = weights.load(str(map_weights))
    studio = Studio(loaded)
    few, many = weights.TEACHER_FROM - 1, weights.TEACHER_FROM
    for steps, network in ((few, loaded.network), (many, loaded.teacher.network)):
        expected = drawn(network, 3, 7, steps, 2)
        film, _ = studio.digit_tab(["3", 7, steps, 2.0])
        assert film["kind"] == network.kind
        assert torch.equal(torch.tensor(studio.draw_api("3", 7, steps, 2.0)), expected[0])
        assert torch.equal(torch.tensor(studio.sheet_api("3", 1, 7, steps, 2.0)["images"]), expected)
        out = tmp_path / f"{steps}.npz"
        options = ["--weights", str(map_weights), "--labels", "3", "--count", "1", "--seed", "7", "--device", "cpu"]
        assert generate.main([*options, "--steps", str(steps), "--guidance", "2", "--out", str(out)]) == 0
        assert (np.load(out)["images"] == expected.numpy()).all()
    assert studio.digit_tab(["3", 7, many, 0.5])[1] is None  # the teacher supports any guidance
    alone = replace(loaded, sampling=SamplingConfig(20, 1.5)).alone()
    assert (alone.choose(SamplingConfig(many))[0], alone.teacher) == (loaded.network, None)
    assert alone.sampling == SamplingConfig(few, 1.5)
    assert loaded.alone().sampling == loaded.sampling  # already four steps
    assert loaded.teacher.alone() is loaded.teacher
    assert loaded.teacher.choose(SamplingConfig(few))[0] is loaded.teacher.network
    for steps, of in ((few, OF_MAP), (many, OF_TEACHER)):  # each draws along its own time grid
        assert loaded.choose(SamplingConfig(steps, 2.0, 7.0))[1] == SamplingConfig(steps, 2.0, of.time_shift)


def test_only_what_is_shown_takes_more_than_one_row_a_step(map_weights, monkeypatch):
    studio, calls = Studio(weights.load(str(map_weights))), []
    velocity = studio.network.velocity
    monkeypatch.setattr(studio.network, "velocity", lambda *inputs: calls.append(len(inputs[0])) or velocity(*inputs))

    def of(call) -> int:
        calls.clear()
        call()
        return sum(calls)

    assert of(lambda: studio.digit_tab(["7", 5, 4, 2.0])) == 3 * 4 - 1  # the last jump ends at its prediction
    rows = (
        lambda: studio.number_tab(["42"], ["7", 5, 4, 2.0]),
        lambda: studio.draw_api("7", 5, 4, 2.0),
        lambda: studio.change_tab(["8"], ["7", 5, 4, 2.0]),
        lambda: studio.morph_tab([6], ["7", 5, 4, 2.0]),
        lambda: studio.styles_tab(["7", 5, 4, 2.0]),
        lambda: list(studio.sheet_tab(["7", 3], ["7", 5, 4, 2.0])),
    )
    assert [of(call) for call in rows] == [4 * digits for digits in (2, 1, 8, 8, 10, 3)]


def test_the_benchmark_draws_both_kinds_plainly(small, small_map):
    labels, config = torch.arange(3), SamplingConfig(4)
    for network in (small, small_map):
        found = torch.cat(list(draw(network, labels, 5, config)))
        assert (found.int() - benchmark.plain(network, labels, 5, config).int()).abs().max() <= 1
        assert found.float().std() > 10
    x, ones = flow.noise([5, 6]), torch.ones(2)
    for t, s, guidance in ((1, 0, 1), (0.7, 0.2, 2)):
        expected = small_map(x, t * ones, s * ones, torch.tensor([3, 4]), guidance * ones)
        assert torch.equal(speed.one_call(small_map, x, torch.tensor([3, 4]), t, s, guidance), expected)


# ---- the teacher in the folder


def test_the_teacher_is_loaded_with_its_map(small, map_weights):
    loaded = weights.load(str(map_weights), dtype=torch.bfloat16)
    assert (type(loaded.network), type(loaded.teacher.network), loaded.notice) == (FlowMap, DiT, "")
    for network in (loaded.network, loaded.teacher.network):
        assert network.embed_patch.weight.dtype == torch.bfloat16
        assert not network.embed_patch.weight.requires_grad
    expected = small.unembed.weight.half().bfloat16()
    assert torch.equal(loaded.teacher.network.unembed.weight, expected)
    assert weights.load(str(map_weights / weights.TEACHER)).teacher is None


def flip(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def other_classes(folder):
    weights.save(DiT(width=32, depth=2, heads=2, classes=3), folder, SamplingConfig(), {})


def another_map(folder):
    weights.save(FlowMap(width=32, depth=2, heads=2), folder, SamplingConfig(), {})


UNFIT = {
    "damaged": (flip, "damaged: its sha256 differs"),
    "no tensors": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    "other classes": (other_classes, "does not have the flow map's class_names"),
    "a map": (another_map, "must contain velocity weights, not a flow map"),
}


@pytest.mark.parametrize(("spoil", "words"), UNFIT.values(), ids=UNFIT)
def test_a_map_draws_without_a_teacher_that_cannot_be_used_and_is_not_published(map_weights, capsys, spoil, words):
    spoil(map_weights / weights.TEACHER)
    loaded = weights.load(str(map_weights))
    assert (loaded.teacher, loaded.notice) == (
        None,
        "The network that this one was distilled from could not be loaded.",
    )
    said = capsys.readouterr().err
    assert said.startswith("Drawing with the flow map alone, without its teacher: ")
    assert words in said
    assert torch.isfinite(drawn(loaded.network, 3, 5, 1, 1).float()).all()
    with pytest.raises((ValueError, OSError), match=words):
        upload.check(map_weights)


def test_a_teacher_is_published_with_its_hash_beside_a_map_only(small, map_weights):
    upload.check(map_weights)
    teacher = map_weights / weights.TEACHER
    (teacher / "metrics.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"^teacher/metrics\.json has no sha256 of its weights"):
        upload.check(map_weights)
    for folder in (teacher, teacher / weights.TEACHER):
        weights.save(small, folder, SamplingConfig(), {})
    with pytest.raises(ValueError, match="only allowed for the weights of a flow map"):
        upload.check(teacher)


def test_the_card_of_a_map_tells_both_stages_and_where_the_teacher_is(map_weights):
    before = {"data": "mnist", "epochs": 10.0, "images": 619520, "batch": 128, "lr": 1e-3, "hours": 1.5}
    before |= {
        "device": "cpu",
        "torch": "2.11.0",
        "commit": "0123456789ab",
        "command": "python -m training.train --lr 1",
    }
    record = {**before, "epochs": 3.0, "command": "python -m training.distill --lr 0.001", "initialized_from": before}
    path = map_weights / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "training": record}))
    written = card(map_weights, "me/digits")
    words = " ".join(written.text.split())
    for part in (
        "distillation turned it into a flow map",
        "may have other flags. Distilled from those weights: another 3 passes over mnist",
        "in the folder `teacher/`",
        "hf download me/digits",
    ):
        assert part in words
    assert "flow-map" in written.data.tags
    of_teacher = card(map_weights / weights.TEACHER)
    assert "trained with rectified flow." in of_teacher.text
    assert "flow map" not in of_teacher.text
    assert "flow-map" not in of_teacher.data.tags
