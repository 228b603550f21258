"""Measuring speed: repeated timing, the peak of the machine, and the work of one network call."""

import platform
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.device import described
from model.dit import DiT
from model.flow_map import FlowMap
from model.images import SIZE


def seconds(function: Callable, device: torch.device, budget: float = 1.0) -> float:
    """The shortest of repeated runs within about `budget` seconds: on a shared machine, the least disturbed one."""
    function()
    times, begin = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < budget:
        started = time.perf_counter()
        function()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def peak(dtype: torch.dtype, device: torch.device, size: int = 4096) -> float:
    """FLOP/s of one large square matrix product with preallocated output."""
    a, b, c = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(3))
    return 2 * size**3 / seconds(lambda: torch.mm(a, b, out=c), device)


def one_call(
    network: DiT, x: torch.Tensor, labels: torch.Tensor, t: float = 1.0, s: float = 0.0, guidance: float = 1.0
) -> torch.Tensor:
    """One network call at time t, for images and labels `[B]`: the velocity, or a flow map's average velocity to s."""
    t, s, guidance = (x.new_full((len(x),), value) for value in (t, s, guidance))
    return network(x, t, s, labels, guidance) if isinstance(network, FlowMap) else network(x, t, labels)


def flops(network: DiT) -> int:
    """Floating-point operations of the matrix products in one network call for one image."""
    device = network.rotary.device
    x, label = torch.zeros(1, 1, SIZE, SIZE, device=device), torch.tensor([0], device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        one_call(network, x, label)
    return counter.get_total_flops()


def machine(device: torch.device) -> str:
    """A description of the machine, for benchmark results."""
    return f"{described(device)}; Python {platform.python_version()}, torch {torch.__version__}"
