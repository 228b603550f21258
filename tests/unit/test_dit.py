import math

import pytest
import torch

from model import flow
from model.dit import DiT, Stream, rotary_table, rotate


@pytest.fixture
def network(small) -> DiT:
    """A small network without zero parameters and with attention that is far from uniform."""
    for name, parameter in small.named_parameters():
        if name.endswith("qk_scale"):
            torch.nn.init.ones_(parameter)
    return small


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def batch(count=3):
    return (
        torch.randn(count, 1, 28, 28),
        torch.rand(count),
        torch.arange(count) + 12 - count + 1,
    )  # the null class is the last


def test_size():
    assert sum(parameter.numel() for parameter in DiT().parameters()) == 5_858_948


def test_fresh_network_is_zero():
    assert torch.all(DiT()(*batch()) == 0)


def test_every_parameter_has_a_gradient(network):
    network(*batch()).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        rows = parameter.grad[-3:] if name.startswith("embed_label") else parameter.grad.unsqueeze(0)
        assert all(row.abs().sum() > 0 for row in rows), name


def test_a_patch_comes_out_where_it_went_in():
    network = DiT()  # every block of a fresh network is the identity, so tokens do not mix
    torch.nn.init.normal_(network.unembed.weight)
    x, t, labels = torch.zeros(1, 1, 28, 28), torch.ones(1), torch.tensor([3])
    marked = x.clone()
    marked[0, 0, 6:8, 10:12] = torch.randn(2, 2)
    moved = (network(marked, t, labels) - network(x, t, labels))[0, 0].abs() > 1e-6
    assert moved.nonzero().min(0).values.tolist() == [6, 10]
    assert moved.nonzero().max(0).values.tolist() == [7, 11]


@pytest.mark.parametrize("pixel", [(6, 10), (6, 11), (7, 10), (7, 11)])
def test_a_pixel_keeps_its_place_in_the_patch(pixel):
    network = DiT()
    with torch.no_grad():
        for layer in (network.embed_patch.weight, network.unembed.weight.T):
            layer.zero_()[:4] = torch.eye(4)
    x = torch.zeros(1, 1, 28, 28)
    x[0, 0, pixel[0], pixel[1]] = 1
    v = network(x, torch.ones(1), torch.tensor([3]))
    assert divmod(v.argmax().item(), 28) == pixel


def test_each_token_is_rotated_by_its_row_and_column():
    cos, sin = rotary_table(side=14, head_dim=64)
    assert cos.shape == (196, 1, 64)
    row, column = 3, 5
    angles = torch.atan2(sin, cos)[row * 14 + column, 0, 32:]
    for axis, position in ((angles[:16], row), (angles[16:], column)):
        assert axis[0].item() == pytest.approx(math.remainder(position, math.tau), abs=1e-5)
        assert axis[8].item() == pytest.approx(position / 10, abs=1e-5)  # θ^(−½) = 1/10
    x = torch.zeros(1, 196, 1, 64)
    x[..., 0] = 1
    turned = rotate(x, cos, sin)[0, row * 14 + column, 0]
    assert turned[0].item() == pytest.approx(math.cos(row), abs=1e-5)
    assert turned[32].item() == pytest.approx(math.sin(row), abs=1e-5)


def test_attention_depends_on_relative_positions_only():
    table = rotary_table(side=14, head_dim=64)
    q, k = (rotate(torch.randn(64).expand(1, 196, 1, 64), *table)[0, :, 0].view(14, 14, 64) for _ in range(2))
    reference = (q[0, 0] * k[2, 3]).sum()
    torch.testing.assert_close((q[5, 6] * k[7, 9]).sum(), reference, rtol=1e-4, atol=1e-4)
    assert not torch.allclose((q[0, 0] * k[3, 2]).sum(), reference, rtol=1e-2)


def test_position_matters_in_attention(network):
    x, t, labels = batch(1)
    moved = network(x.roll(2, -1), t, labels).roll(-2, -1)
    assert difference(moved, network(x, t, labels)) > 1e-3


def test_images_of_a_batch_are_independent(network):
    x, t, labels = batch()
    torch.testing.assert_close(network(x, t, labels)[1:2], network(x[1:2], t[1:2], labels[1:2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("named", ["t", "labels"])
def test_time_and_class_matter(network, named):
    x, t, labels = batch()
    other = {"t": (x, 1 - t, labels), "labels": (x, t, labels - 1)}[named]
    assert difference(network(*other), network(x, t, labels)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drawing_and_training_use_the_same_network(network, dtype):
    network.to(dtype)
    x, _, labels = batch()
    trained = network(x, torch.full((3,), 0.3), labels)
    with torch.inference_mode():
        drawn = network.with_cached_modulations([0.7, 0.3])(x, 0.3, labels)
    assert difference(drawn, trained) < (1e-5 if dtype == torch.float32 else 0.03)


def test_bfloat16_is_the_same_network(network):
    x, t, labels = batch()
    exact = network(x, t, labels)
    rounded = network.bfloat16()(x, t, labels)
    assert rounded.dtype == torch.float32
    assert 0 < difference(rounded, exact) < 0.05


def test_without_qk_norm_queries_and_keys_are_those_of_the_projection():
    x = torch.randn(3, 5, 32)
    plain, normed = Stream(32, 2, 16, qk_norm=False), Stream(32, 2, 16, qk_norm=True)
    normed.load_state_dict({**plain.state_dict(), "qk_scale": normed.qk_scale})
    expected = plain.qkv(x).unflatten(-1, (4, 16))
    torch.testing.assert_close(torch.cat(plain.project(x), 2), expected)
    q, k, v = normed.project(x)
    torch.testing.assert_close(torch.cat([q, k], 2).norm(dim=-1), torch.full((3, 5, 3), 4.0))
    torch.testing.assert_close(v, expected[:, :, 3:])
    assert "qk_scale" not in plain.state_dict()


@pytest.mark.parametrize("t", [1.0, 0.4, 0.05, 0.01])
def test_a_predicted_image_is_the_velocity_from_there(monkeypatch, t):
    """(x_t − image) / t is the velocity of the path; for t below 0.05, the divisor is 0.05."""
    network = DiT(width=32, depth=1, heads=2, predicts_image=True)
    image, noise, labels = torch.rand(3, 1, 28, 28), torch.randn(3, 1, 28, 28), torch.arange(3)
    x, v = flow.path(image, noise, torch.full((3,), t))
    monkeypatch.setattr(network, "velocity", lambda *_: image)
    expected = v * min(1, t / 0.05)
    torch.testing.assert_close(network(x, torch.full((3,), t), labels), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(network(x, torch.tensor([t]), labels), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(network.with_cached_modulations([t])(x, t, labels), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"width": 250}, "width 250"),
        ({"width": "256"}, "width"),
        ({"heads": 0}, "heads"),
        ({"heads": 128}, "128"),
        ({"patch": 3}, "patch 3"),
        ({"depth": True}, "depth"),
        ({"classes": -1}, "-1"),
        ({"pixel_std": 0.0}, "pixel_std"),
        ({"pixel_mean": math.nan}, "pixel_mean.*nan"),
    ],
)
def test_wrong_arguments_are_named(config, words):
    with pytest.raises(ValueError, match=words):
        DiT(**config)
