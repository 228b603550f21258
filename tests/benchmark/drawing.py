"""Ablate the optimizations of sampling on a CPU, one at a time. `python -m tests.benchmark.drawing`"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import torch
import torch.nn.functional as F

from model import dit, sampling, weights
from model.device import pick
from model.sampling import SamplingConfig
from model.speed import machine

STEPS, ROUNDS = 8, 15


def plain_linear(layer, x, gelu=False):
    return F.gelu(layer(x)) if gelu else layer(x)


def tanh_linear(layer, x, gelu=False):
    if not gelu:
        return fused_linear(layer, x)
    return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "gelu", [], "tanh")


def modulate_apart(x, shift, scale):
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), scale)


def rotate_by_halves(x, cos, sin):
    half = x.shape[-1] // 2
    a, b, cos, sin = x[..., :half], x[..., half:], cos[..., :half], sin[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def rms_norm(x, dim):
    return F.rms_norm(x, x.shape[-1:], eps=1e-6) / x.shape[-1] ** 0.5


def attention_by_heads(q, k, v):
    heads = q.unflatten(2, (-1, 4)).squeeze(1).transpose(1, 2)
    return attention(heads, k.expand(-1, 4, -1, -1), v.expand(-1, 4, -1, -1)).transpose(1, 2).flatten(1, 2).unsqueeze(1)


def every_time_anew(self, times):
    return lambda x, t, labels: self(x, x.new_full((1,), t), labels)


fused_linear, attention = dit.linear, F.scaled_dot_product_attention
REMOVED = {
    "(nothing)": [],
    "bias and GELU inside oneDNN's product": [(dit, "linear", plain_linear)],
    "GELU by erf, not by tanh": [(dit, "linear", tanh_linear)],
    "modulation inside the norm": [(dit, "modulate", modulate_apart)],
    "the modulations of all times at once": [(dit.DiT, "with_cached_modulations", every_time_anew)],
    "QK-norm by F.normalize, not F.rms_norm": [(dit.F, "normalize", rms_norm)],
    "rotation by one roll, not by halves": [(dit, "rotate", rotate_by_halves)],
    "query heads folded into the sequence": [(dit.F, "scaled_dot_product_attention", attention_by_heads)],
    "ten digits at a time": [(sampling, "CPU_BATCH", 100)],
}


def milliseconds(function: Callable) -> float:
    function()  # warm the caches
    started = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - started)


def main() -> int:
    print(machine(pick("cpu")))
    velocity = str(weights.BUNDLED / weights.TEACHER)
    fast, exact = (weights.load(velocity, dtype=dtype).network for dtype in (None, torch.float32))
    ways = {name: (fast, 2, patches) for name, patches in REMOVED.items()}
    ways |= {"bfloat16": (exact, 2, []), "the second thread": (fast, 1, [])}
    best = defaultdict(lambda: float("inf"))
    for round in range(ROUNDS):  # interleaved, so that slow phases of the machine affect all variants
        for name, (network, threads, patches) in ways.items():
            torch.set_num_threads(threads)
            with ExitStack() as stack:
                for patch in patches:
                    stack.enter_context(mock.patch.object(*patch))
                for digits in (1, 10, 50):
                    if digits == 50 and round % 4:
                        continue
                    labels = torch.arange(digits) % 10
                    taken = milliseconds(
                        lambda labels=labels, network=network: list(
                            sampling.draw(network, labels, 0, SamplingConfig(STEPS))
                        )
                    )
                    best[name, digits] = min(best[name, digits], taken / STEPS)
    print("| removed | one digit, ms a step | ten digits | fifty digits |\n|---|---:|---:|---:|")
    for name in ways:
        cells = " | ".join(
            f"{best[name, digits]:.2f} ({best[name, digits] / best['(nothing)', digits] - 1:+.0%})"
            for digits in (1, 10, 50)
        )
        print(f"| {name} | {cells} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
