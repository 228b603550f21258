"""The flow map: network, jumps, and distillation on data with a closed-form map."""

import json
import shutil
import signal
from itertools import pairwise

import pytest
import torch

from model import flow, weights
from model.dit import DiT
from model.flow_map import FlowMap
from model.sampling import SamplingConfig, draw_film, states
from tests.recovery.kills import equal, flat
from training import checkpoint, data, distillation
from training.config import DistillConfig
from training.consistency import LEG, Consistency
from training.data import Batches
from training.distill import main
from training.run_folder import RunFolder

SIGMA = 0.5  # standard deviation of the Gaussian images
TIMES = flow.time_grid(4, 1.63)


@pytest.fixture
def flow_map(small) -> FlowMap:
    """A map whose last embedder layers are nonzero, so that it depends on s and on the guidance."""
    new = FlowMap.from_velocity(small)
    for embedder in (new.embed_step, new.embed_guidance):
        torch.nn.init.normal_(embedder.mlp[2].weight, std=0.1)
    return new.requires_grad_(False)


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Six images with their times, classes and guidance; one has the null class, and one has s = t."""
    return {
        "x": torch.randn(6, 1, 28, 28),
        "t": torch.tensor([1.0, 0.8, 0.5, 0.5, 0.2, 1.0]),
        "s": torch.tensor([0.0, 0.3, 0.5, 0.1, 0.0, 0.9]),
        "labels": torch.tensor([3, 1, 4, 12, 5, 9]),
        "guidance": torch.tensor([1.0, 5.0, 2.0, 1.15, 3.0, 1.0]),
    }


# ---- Gaussian images: x_t ~ N(0, spread(t)²), so the flow scales x


def spread(t):
    return (t**2 + (1 - t) ** 2 * SIGMA**2) ** 0.5


def gaussian_velocity(x, t):
    return x * (t - (1 - t) * SIGMA**2) / spread(t) ** 2


def gaussian_average(x, t, s):
    """The average velocity of the exact map x · spread(s) / spread(t)."""
    return gaussian_velocity(x, t) if t == s else x * (spread(s) / spread(t) - 1) / (s - t)


class GaussianTeacher(torch.nn.Module):
    """The velocity of Gaussian images, doubled for the null class."""

    null_label = 12

    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t, labels):
        factor = torch.where(labels == self.null_label, 2.0, 1.0).view(-1, 1, 1, 1)
        return factor * gaussian_velocity(x, t.view(-1, 1, 1, 1) if isinstance(t, torch.Tensor) else t)


# ---- the network


def test_new_map_is_the_conditional_velocity_for_every_s_and_guidance(small, inputs):
    expected = small(inputs["x"], inputs["t"], inputs["labels"])
    assert torch.equal(FlowMap.from_velocity(small)(**inputs), expected)


@pytest.mark.parametrize("changed", ["s", "guidance"])
def test_map_depends_on_where_it_jumps_and_on_the_guidance(flow_map, inputs, changed):
    other = {**inputs, changed: inputs[changed] * 0.5 + 0.6 * (changed == "guidance")}
    assert not torch.allclose(flow_map(**inputs), flow_map(**other))


def test_swapped_times_give_something_else(flow_map, inputs):
    swapped = {**inputs, "t": inputs["s"], "s": inputs["t"]}
    differs = (flow_map(**inputs) - flow_map(**swapped)).abs().amax((1, 2, 3)) > 1e-3
    assert differs.tolist() == [True, True, False, True, True, True]  # except where s = t


def test_map_of_a_map_is_refused(flow_map):
    with pytest.raises(ValueError, match="the teacher is a flow map itself; distil from weights of a velocity network"):
        FlowMap.from_velocity(flow_map)


# ---- jumps


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_jumps_of_the_exact_map_arrive_in_any_number_of_steps(steps):
    x = torch.randn(2, 1, 28, 28)
    *_, last = flow.jump(gaussian_average, x, flow.time_grid(steps, 1.63))
    torch.testing.assert_close(last.x, SIGMA * x)


def test_film_of_jumps_has_velocities_and_where_each_state_leads():
    x = torch.randn(2, 1, 28, 28)
    for state in list(flow.jump(gaussian_average, x, TIMES, film=True))[:-1]:
        torch.testing.assert_close(state.v, gaussian_velocity(state.x, state.t))
        torch.testing.assert_close(state.image, SIGMA * x)  # from every state
    assert all(state.v is None for state in flow.jump(gaussian_average, x, TIMES))


def test_jump_to_a_later_time_is_one_sentence():
    with pytest.raises(ValueError, match=r"a flow map jumps to an earlier time, not from 0\.2 to 0\.7"):
        list(flow.jump(gaussian_average, torch.randn(1, 1, 28, 28), [0.2, 0.7]))


def test_a_step_is_one_forward_with_three_rows_for_a_film(flow_map, monkeypatch):
    calls = []
    monkeypatch.setattr(FlowMap, "velocity", lambda self, x, *others: calls.append(len(x)) or x)
    list(states(flow_map, torch.tensor([3, 4]), [0, 1], SamplingConfig(4, 3.0)))
    assert calls == [2] * 4
    draw_film(flow_map, torch.tensor([3, 4]), [0, 1], SamplingConfig(4, 3.0))
    assert calls == [2] * 4 + [6, 6, 6, 4]  # the last step needs no separate prediction


@pytest.mark.parametrize(("asked", "drawn", "label"), [(0, 1, 12), (0.5, 1, 3), (1, 1, 3), (1.15, 1.15, 3), (5, 5, 3)])
def test_guidance_is_an_input_and_0_is_the_null_class(flow_map, asked, drawn, label):
    x, labels, w = torch.randn(1, 1, 28, 28), torch.tensor([label]), torch.tensor([float(drawn)])
    for t, s in pairwise(TIMES):
        x_next = x + (s - t) * flow_map(x, torch.tensor([t]), torch.tensor([s]), labels, w)
        if t == 1:
            first = x
        x = x_next
    *_, last = flow_map.states(first, torch.tensor([3]), TIMES, asked)
    torch.testing.assert_close(last.x, x)


def test_map_goes_into_a_folder_and_back(flow_map, small_weights, tmp_path):
    weights.save(flow_map, tmp_path / "map", SamplingConfig(), {}, small_weights)
    assert json.loads((tmp_path / "map/config.json").read_text())["kind"] == "flow map"
    found = weights.read(tmp_path / "map").network
    assert isinstance(found, FlowMap)
    assert torch.equal(found.embed_step.mlp[2].weight, flow_map.embed_step.mlp[2].weight.half().float())
    teacher = weights.read(tmp_path / "map" / weights.TEACHER)
    assert type(teacher.network) is DiT
    assert (tmp_path / "map/teacher/model.safetensors").read_bytes() == (
        small_weights / "model.safetensors"
    ).read_bytes()


def test_unknown_kind_is_one_sentence(flow_map, tmp_path):
    weights.save(flow_map, tmp_path / "map", SamplingConfig(), {})
    config = tmp_path / "map/config.json"
    config.write_text(config.read_text().replace("flow map", "diffusion"))
    with pytest.raises(ValueError, match="kind must be one of velocity, flow map, not 'diffusion'"):
        weights.read(tmp_path / "map")


# ---- distillation


def test_loss_is_zero_at_the_exact_map_and_weighs_errors_down():
    pair = {"x": torch.randn(2, 1, 28, 28), "t": torch.ones(2), "s": torch.zeros(2)}
    pair |= {"labels": torch.zeros(2).long(), "guidance": torch.ones(2)}
    pair["u"] = gaussian_average(pair["x"], 1.0, 0.0)
    off = torch.tensor([0.3, 1.0]).view(2, 1, 1, 1)
    for power, expected in ((0.0, (0.09 + 1) / 2), (1.0, (0.09 / 0.1 + 1 / 1.01) / 2)):
        loss = distillation.make_loss(
            lambda x, t, s, labels, guidance: gaussian_average(x, 1.0, 0.0) + off,
            DistillConfig(error_power=power),
            torch.device("cpu"),
        )
        assert loss(**pair).item() == pytest.approx(expected, rel=1e-3)
    exact = distillation.make_loss(
        lambda x, *others: gaussian_average(x, 1.0, 0.0), DistillConfig(), torch.device("cpu")
    )
    assert exact(**pair) == 0


class PixelTeacher(GaussianTeacher):
    pixel_mean, pixel_std = 0.5, 0.25


class GaussianMap(torch.nn.Module):
    """The exact map of Gaussian images under the guidance of `GaussianTeacher`."""

    def forward(self, x, t, s, labels, guidance):
        t, s, w = (number.view(-1, 1, 1, 1) for number in (t, s, guidance))
        average = x * ((spread(s) / spread(t)) ** (2 - w) - 1) / (s - t)
        return torch.where(s < t, average, (2 - w) * gaussian_velocity(x, t))


def test_consistency_keeps_the_exact_map_up_to_the_error_of_a_short_leg(inputs):
    """The teacher's velocity at guidance w is (2 − w) times that of its class, as above."""
    teacher = GaussianTeacher()
    source = Consistency(GaussianMap(), teacher, 1.63, None)
    inputs["labels"].fill_(3)
    found = source.target(**inputs)
    still = inputs["t"] == inputs["s"]
    power = (2 - inputs["guidance"]).view(-1, 1, 1, 1)
    t = inputs["t"].view(-1, 1, 1, 1)
    torch.testing.assert_close(found[still], (power * gaussian_velocity(inputs["x"], t))[still])
    exact = GaussianMap()(**inputs)
    torch.testing.assert_close(found[~still], exact[~still], atol=0.01, rtol=0.01)
    assert (found[~still] + exact[~still]).abs().mean() > 0.3  # a wrong sign would be far off


def test_consistency_of_a_map_that_stays_in_place_is_the_teachers_leg(inputs):
    """With an exact map, the target is the same for every leg, even for none."""
    inputs["labels"].fill_(3)
    found = Consistency(lambda x, *_: 0 * x, GaussianTeacher(), 1.63, None).target(**inputs)
    t, s, w = (inputs[name].view(-1, 1, 1, 1) for name in ("t", "s", "guidance"))
    m = torch.maximum(s, t - LEG)
    v = (2 - w) * gaussian_velocity(inputs["x"], (t + m) / 2)
    torch.testing.assert_close(found, torch.where(m > s, LEG / (t - s) * v, v))


def test_jumps_cover_all_times_and_guidance_scales():
    pixels, labels = torch.zeros(2000, 28, 28, dtype=torch.uint8), torch.arange(2000) % 10
    batches = Batches(pixels, labels, 1000, 0.1, 12, 0, torch.device("cpu"))
    source = Consistency(GaussianMap(), PixelTeacher(), 1.63, batches)
    jumps = [source.at(step) for step in range(4)]
    t, s, w, x = (torch.cat([getattr(jump, name) for jump in jumps]) for name in ("t", "s", "guidance", "x"))
    assert ((s >= 0) & (s <= t) & (t <= 1)).all()
    for share, expected in (
        (t == 1, 0.25),
        (s == 0, 0.25 * 0.75),
        (t - s <= LEG, 0.25 + 0.75 * 0.04),
        ((t == 1) & (s > 1 - LEG / 2), 0.25 * 0.25 / 2),
        ((t == 1) & (s == 0), 0.25 * 0.25 * 0.75),
        (w == 1, 0.1),
        (w > 5**0.5, 0.45),
    ):
        assert share.float().mean() == pytest.approx(expected, abs=0.03)
    assert (w.min(), w.max()) == (1, pytest.approx(5, abs=0.1))
    noise = (x + (1 - t).view(-1, 1, 1, 1) * 0.5 / 0.25).flatten(1) / t.view(-1, 1)  # of black images
    assert noise.std(1).mean() == pytest.approx(1, abs=0.01)
    assert torch.equal(source.at(3).x, source.at(3).x)


# Six steps.
TINY = ["--batch=64", "--epochs=0.18", "--no-compile", "--log-every=1", "--warmup-steps=2"]


@pytest.fixture
def distil(small_weights, root, tmp_path, monkeypatch):
    """Run the command on a tiny teacher and return its status; with `stop_after`, SIGTERM is raised after that step."""
    monkeypatch.chdir(tmp_path)

    def distil(*arguments, stop_after=None):
        def advance(self, advance=distillation.Distiller.advance):
            norm = advance(self)
            if self.step == stop_after:
                signal.raise_signal(signal.SIGTERM)
            return norm

        with monkeypatch.context() as patch:
            patch.setattr(distillation.Distiller, "advance", advance)
            try:
                new = [] if "--resume" in arguments else [*TINY, "--device=cpu", f"--data-root={root}"]
                return main([*new, *arguments])
            except SystemExit as stop:
                return stop.code

    return distil


def test_distillation_resumes_exactly_and_keeps_its_teacher(distil, small_weights, tmp_path):
    assert distil("--name", "whole", "--teacher", str(small_weights)) == 0
    assert distil("--name", "parts", "--teacher", str(small_weights), stop_after=4) == 143
    (small_weights / "model.safetensors").unlink()  # from now on, the run's own copy of the teacher suffices
    assert distil("--resume", "runs/parts") == 0
    whole, parts = (flat(checkpoint.load(tmp_path / "runs" / name)[0]) for name in ("whole", "parts"))
    assert [name for name in whole if not equal(whole[name], parts[name])] == ["seconds"]
    found = weights.load(str(tmp_path / "runs/parts/weights"))
    record = found.metrics["training"]
    assert (whole["step"], record["steps"]) == (6, 6)
    assert (found.sampling, found.teacher.sampling) == (SamplingConfig(4, time_shift=2.5), SamplingConfig())
    assert record["command"].startswith("python -m training.distill --epochs 0.18 --batch 64")
    assert record["initialized_from"] == {"epochs": 1}
    assert isinstance(found.network, FlowMap)
    assert found.network.embed_step.mlp[2].weight.abs().max() > 0
    lines = [json.loads(line) for line in (tmp_path / "runs/whole/metrics.jsonl").open()]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_map_is_trained_with_the_time_shift_of_its_teacher(small_weights, root, tmp_path):
    options = {"teacher": str(small_weights), "data_root": root, "device": "cpu", "batch": 64, "compile": False}
    run = distillation.Distiller.fresh(options, RunFolder(tmp_path / "run"), "full")
    assert run.batches.time_shift == SamplingConfig().time_shift != run.sampling.time_shift


def test_another_teacher_is_refused_on_resume(distil, small_weights, tmp_path, capsys):
    """The run's own copy is gone, and the teacher's folder holds other weights."""
    assert distil("--name", "a", "--teacher", str(small_weights), stop_after=2) == 143
    shutil.rmtree(tmp_path / "runs/a/weights")
    weights.save(DiT(width=16, depth=1, heads=1), small_weights, SamplingConfig(), {})
    assert distil("--resume", "runs/a") == 2
    assert "the run in runs/a began with another teacher than" in capsys.readouterr().err


def test_other_images_are_refused_on_resume(distil, small_weights, capsys, monkeypatch):
    assert distil("--name", "a", "--teacher", str(small_weights), stop_after=2) == 143
    load = data.training_set
    monkeypatch.setattr(data, "training_set", lambda *how: (255 - load(*how)[0], *load(*how)[1:]))
    assert distil("--resume", "runs/a") == 2
    assert "the run in runs/a began with another teacher than" in capsys.readouterr().err


def test_trial_writes_nothing(distil, small_weights, tmp_path, capsys):
    assert distil("--dry-run", "--teacher", str(small_weights)) == 0
    assert "6 steps of 64" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_training_does_not_start_from_a_map(flow_map, go, tmp_path, capsys):
    weights.save(flow_map, tmp_path / "map", SamplingConfig(), {})
    assert go("--name", "a", init=tmp_path / "map") == 2
    assert capsys.readouterr().err.endswith("map are a flow map; start from its teacher's\n")


def test_resumed_run_keeps_its_recipe(distil, small_weights, capsys):
    assert distil("--name", "a", "--teacher", str(small_weights), stop_after=2) == 143
    assert distil("--resume", "runs/a", "--lr", "0.5") == 2
    assert "a resumed run keeps its lr; to change it, start another run\n" in capsys.readouterr().err


def test_map_as_teacher_is_one_sentence(distil, flow_map, tmp_path, capsys):
    weights.save(flow_map, tmp_path / "map", SamplingConfig(), {})
    assert distil("--teacher", "map") == 2
    assert capsys.readouterr().err == (
        "python -m training.distill: the teacher is a flow map itself; distil from weights of a velocity network\n"
    )
    assert not (tmp_path / "runs").exists()
