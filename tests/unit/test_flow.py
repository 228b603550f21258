import math
from itertools import pairwise

import pytest
import torch

from model import flow

SHIFT = 1.63206


def last(velocity, x, times):
    *_, state = flow.sample(velocity, x, times)
    return state.x


def test_true_velocity_of_one_image_stays_on_the_straight_line():
    image, noise = torch.rand(1, 1, 28, 28, dtype=torch.float64), torch.randn(1, 1, 28, 28, dtype=torch.float64)
    states = list(flow.sample(lambda x, t, t_next: (x - image) / t, noise, flow.time_grid(7, SHIFT)))
    assert len(states) == 8
    for state in states:
        torch.testing.assert_close(state.x, state.t * noise + (1 - state.t) * image)
    for state in states[:-1]:
        torch.testing.assert_close(state.x - state.t * state.v, image)  # the predicted image


def test_one_step_is_eulers():
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(last(lambda x, t, t_next: 3 * x, x, [1, 0.75]), x * (1 - 0.25 * 3))


def test_a_velocity_linear_in_time_is_integrated_exactly_between_the_first_and_the_last_step():
    """v = 2t from 1 to 0 gives x − 1 for any step sizes; the two Euler steps are off by their squares."""
    x = torch.zeros(1, dtype=torch.float64)
    times = [1, 0.9, 0.55, 0.5, 0.1, 0]
    assert last(lambda x, t, t_next: torch.full_like(x, 2 * t), x, times).item() == pytest.approx(-1 - 0.1**2 - 0.1**2)


def test_velocity_x_follows_the_recursion_of_the_method():
    times = flow.time_grid(5, 1.0)
    x, before = 1.0, 1.0
    x = x - 0.2 * x
    for _ in times[2:-1]:
        x, before = x - 0.2 * (1.5 * x - 0.5 * before), x
    x = x - 0.2 * x
    drawn = last(lambda x, t, t_next: x, torch.ones(1, dtype=torch.float64), times)
    assert drawn.item() == pytest.approx(x)


def test_second_order_convergence_on_gaussian_data():
    mean, variance = 1.5, 0.25

    def velocity(x, t, t_next):  # E[noise − image | x_t] for image ~ N(mean, variance)
        spread = t**2 + (1 - t) ** 2 * variance
        return -mean + (t - (1 - t) * variance) / spread * (x - (1 - t) * mean)

    noise = torch.randn(100, 1, 1, 1, dtype=torch.float64)
    exact = mean + variance**0.5 * noise  # the flow preserves quantiles
    errors = [(last(velocity, noise, flow.time_grid(n, SHIFT)) - exact).abs().max().item() for n in (256, 512, 1024)]
    assert errors[-1] < 1e-5
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(4, abs=0.5)


def test_time_grid_has_equal_steps_before_the_shift():
    assert flow.time_grid(4, 1.0) == [1, 0.75, 0.5, 0.25, 0]
    assert flow.time_grid(2, 3.0) == [1, 0.75, 0]  # 3·½ / (1 + 2·½)
    assert flow.time_grid(1, SHIFT) == [1, 0]
    with pytest.raises(ValueError, match="0"):
        flow.time_grid(0, 1.0)


def test_a_later_start_leaves_the_rest_of_the_grid():
    whole = flow.time_grid(7, SHIFT)
    for place, t in enumerate(whole):
        assert flow.time_grid(7, SHIFT, t) == pytest.approx(whole[place:])
    assert flow.time_grid(4, 1.0, 0.6) == pytest.approx([0.6, 0.4, 0.2, 0])  # 0.6 is 2.4 steps: three, a little smaller
    assert flow.time_grid(2, 3.0, 0.5) == [0.5, 0]  # ½ before the shift is ¼, half a step
    assert flow.time_grid(4, SHIFT, 0.0) == [0]


@pytest.mark.parametrize("w", [0, 0.2, 0.5, 1])
def test_slerp_goes_along_the_arc(w):
    a, b = torch.zeros(2, 1, 1, 2, 2, dtype=torch.float64)
    a[..., 0, 0], b[..., 0, 0], b[..., 1, 1] = 3, 3 * math.cos(1.2), 3 * math.sin(1.2)
    point = flow.slerp(a, b, torch.tensor([w, 0.7], dtype=torch.float64))
    assert point.shape == (2, 1, 2, 2)
    assert point[0].flatten().tolist() == pytest.approx([3 * math.cos(1.2 * w), 0, 0, 3 * math.sin(1.2 * w)])


def test_slerp_keeps_the_norm_of_noise_and_its_ends():
    a, b = flow.noise([0, 1]).split(1)
    arc = flow.slerp(a, b, torch.linspace(0, 1, 9))
    torch.testing.assert_close(arc[[0, -1]], torch.cat([a, b]))
    assert arc.std((1, 2, 3)).tolist() == pytest.approx([1] * 9, abs=0.04)  # halfway along the chord it is 0.71
    assert torch.equal(flow.slerp(a, a, torch.tensor([0.3])), a)


def test_labels_switch_each_at_its_own_time():
    labels = flow.switched(torch.full((4,), 3), torch.full((4,), 8), torch.tensor([1, 0.7, 0.5, 0]))
    assert [labels(t).tolist() for t in (1.0, 0.8, 0.6, 0.5, 0.1)] == [
        [8, 3, 3, 3], [8, 3, 3, 3], [8, 8, 3, 3], [8, 8, 8, 3], [8, 8, 8, 3]
    ]  # fmt: skip


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_guidance_follows_labels_that_switch(scale):
    def network(x, t, labels):
        return labels.to(x).view(-1, 1, 1, 1).expand_as(x)

    switched = flow.switched(torch.tensor([3, 3]), torch.tensor([8, 8]), torch.tensor([0.5, 0]))
    velocity = flow.guided(network, switched, 12, scale)
    for t, labels in {0.6: [3, 3], 0.5: [8, 3]}.items():
        expected = [12 + scale * (label - 12) for label in labels]
        assert velocity(torch.zeros(2, 1, 1, 1), t, 0.4).flatten().tolist() == expected


def test_the_shift_moves_the_logit():
    normal = torch.randn(1000, dtype=torch.float64)
    torch.testing.assert_close(flow.logit_normal(normal, SHIFT), torch.sigmoid(normal + math.log(SHIFT)))


def test_path_ends_and_its_derivative_is_the_velocity():
    image, noise = torch.randn(3, 1, 2, 2, dtype=torch.float64), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    t = torch.tensor([0.0, 1.0, 0.4], dtype=torch.float64)
    x, v = flow.path(image, noise, t)
    torch.testing.assert_close(x[0], image[0])
    torch.testing.assert_close(x[1], noise[1])
    ahead, _ = flow.path(image, noise, t + 1e-3)
    torch.testing.assert_close((ahead - x) / 1e-3, v)


def test_a_seed_determines_its_noise_whatever_the_batch():
    batch = flow.noise([3, 7, 3])
    assert batch.shape == (3, 1, 28, 28)
    assert torch.equal(batch[1], flow.noise([7])[0])
    assert torch.equal(batch[0], batch[2])
    assert not torch.equal(batch[0], batch[1])
    many = flow.noise(range(200))
    assert many.mean().abs() < 0.01
    assert many.std() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("scale", "forwards", "value"), [(1, [2], 10.0), (0, [2], 4.0), (2, [4], 16.0), (0.5, [4], 7.0)]
)
def test_guidance_extrapolates_from_the_null_class_through_the_class(scale, forwards, value):
    sizes = []

    def network(x, t, labels):
        sizes.append(len(x))
        return torch.where(labels == 12, 4.0, 10.0).view(-1, 1, 1, 1).expand_as(x)

    v = flow.guided(network, torch.tensor([3, 5]), 12, scale)(torch.zeros(2, 1, 28, 28), 0.5, 0.4)
    assert sizes == forwards
    assert torch.all(v == value)
