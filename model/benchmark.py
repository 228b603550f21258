"""Command: measure drawing speed, next to a plain float32 loop and the machine's peak. `python -m model.benchmark`"""

import argparse
import io
import sys

import torch

from model import flow, images, weights
from model.common import add_shared, sentence_on_error
from model.device import pick
from model.dit import DiT
from model.flow_map import FlowMap
from model.sampling import SamplingConfig, draw
from model.speed import flops, machine, one_call, peak, seconds

DIGITS, STEPS = (1, 10, 100), (1, 8, 20)
HEAD = """| digits | steps | ms | ms per step | digits/s | GFLOP/s | of the peak | plain float32, ms | speed-up |
|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""


def plain(network: DiT, labels: torch.Tensor, seed: int, sampling: SamplingConfig) -> torch.Tensor:
    """The baseline: guidance 1, all digits in one batch, no caching, and no inference mode, so no layer is fused."""
    times = flow.time_grid(sampling.steps, sampling.time_shift)
    noise = flow.noise(range(seed, seed + len(labels))).to(network.rotary.device)
    labels = labels.to(noise.device)
    with torch.no_grad():
        sampler = (flow.jump if isinstance(network, FlowMap) else flow.sample).__wrapped__  # without inference mode
        *_, last = sampler(lambda x, t, t_next: one_call(network, x, labels, t, t_next), noise, times)
    return images.to_pixels(last.x, network.pixel_mean, network.pixel_std).cpu()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model.benchmark", description=__doc__.splitlines()[0])
    add_shared(parser, "--weights", "--device")
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        device = pick(options.device)
        fast, exact = (weights.load(options.weights, device, dtype).network for dtype in (None, torch.float32))
        dtype, classes = fast.modulation.weight.dtype, min(10, fast.null_label)
        print(machine(device))
        highest, work, exact_highest = peak(dtype, device), flops(exact), peak(torch.float32, device)
        print(f"Large matrix products: {exact_highest / 1e9:,.0f} GFLOP/s in float32, {highest / 1e9:,.0f} in {dtype}.")
        print(f"One network call for one digit: {work / 1e9:.2f} GFLOP. Drawing in {dtype}, guidance 1.\n\n{HEAD}")
        for digits in DIGITS:
            labels = torch.arange(digits) % classes
            for steps in STEPS:
                config = SamplingConfig(steps)
                ours = seconds(lambda labels=labels, config=config: list(draw(fast, labels, 0, config)), device)
                theirs = seconds(lambda labels=labels, config=config: plain(exact, labels, 0, config), device)
                speed = digits * steps * work / ours
                print(
                    f"| {digits} | {steps} | {1e3 * ours:.1f} | {1e3 * ours / steps:.2f} | {digits / ours:.1f} "
                    f"| {speed / 1e9:.0f} | {speed / highest:.0%} | {1e3 * theirs:.1f} | {theirs / ours:.1f} |"
                )
        labels, config = torch.arange(100) % classes, SamplingConfig(20)
        guided = seconds(lambda: list(draw(fast, labels[:10], 0, SamplingConfig(20, 1.5))), device)
        calls = "one network call" if isinstance(fast, FlowMap) else "two network calls"
        print(f"\nTen digits in 20 steps with guidance, {calls} per step: {1e3 * guided:.0f} ms.")
        drawn, exactly = torch.cat(list(draw(fast, labels, 0, config))), plain(exact, labels, 0, config)
        difference = (drawn.float() - exactly.float()).abs().mean()
        print(f"Mean difference from float32: {difference:.2f} of 255 (100 digits, 20 steps).")
        noise = seconds(lambda: flow.noise(range(100)), torch.device("cpu"), 0.2)
        picture = seconds(lambda: images.sheet(drawn, 10).save(io.BytesIO(), "png"), torch.device("cpu"), 0.2)
        print(f"Outside the network, for 100 digits: noise {1e3 * noise:.1f} ms, sheet as PNG {1e3 * picture:.1f} ms.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
