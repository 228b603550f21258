from types import SimpleNamespace

import torch

from model import speed
from model.dit import DiT


def test_flops_are_those_counted_by_hand():
    tokens, width, heads, blocks = 196, 256, 4, 2
    head_dim = width // heads
    qkv = 2 * width * (width + 2 * head_dim)
    per_token = qkv + 2 * width**2 + 2 * 8 * width**2  # and the output projection and the MLP
    image = blocks * tokens * per_token
    label = per_token + 2 * width * 2 * head_dim  # the last block only takes keys and values from it
    queries = heads * ((tokens + 1) + tokens)
    attention = 2 * queries * (tokens + 1) * head_dim * 2  # scores, and weighted sums
    ends = tokens * 2 * 2 * 4 * width
    time = 2 * 2 * width**2 + 2 * width * width * (12 + 8 + 2)
    counted = speed.flops(DiT(width=width, depth=blocks, heads=heads))
    assert counted == image + label + attention + ends + time


def test_seconds_is_the_shortest_of_at_least_three_runs(monkeypatch):
    now, runs = [0.0], iter([9.0, 4.0, 2.0, 3.0])  # the first run is a warm-up
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def function():
        now[0] += next(runs)

    assert speed.seconds(function, torch.device("cpu"), budget=1.0) == 2.0
    assert next(runs, None) is None
