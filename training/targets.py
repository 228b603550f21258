"""Command: what guided targets draw, before a run. `python -m training.targets --init weights --guide runs/a/weights 2,0 2.5,0.1`"""

import argparse
import sys

import torch
from tqdm import tqdm

from model import check
from model.command import sentence_on_error
from model.device import has_bfloat16, pick
from model.generate import MAX_STEPS, draw, parse_labels
from training.config import Config
from training.distill import Teacher
from training.evaluate import MOST, Ruler
from training.subject import FEWEST

HEAD = "| scale | null | FD ÷ floor | precision | recall | density | coverage | class accuracy |\n|---:|---:|---:|---:|---:|---:|---:|---:|"


def target(text: str) -> tuple[float, float]:
    """Scale and null share of `SCALE,NULL`; raises ValueError for other texts."""
    try:
        scale, null = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"a target is SCALE,NULL such as 2.5,0.1, not {check.shown(text)}") from None
    return scale, null


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.targets", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="+", metavar="SCALE,NULL", help="--guide-scale and --guide-null of the trainer")
    parser.add_argument("--init", required=True, help="the weights that are guided: a folder, or USER/NAME[@revision]")
    parser.add_argument("--guide", required=True, help="weaker weights that guide them")
    parser.add_argument("--count", type=int, default=1000, help=f"digits of each row, {FEWEST} to {MOST} (default 1000)")
    parser.add_argument("--steps", type=int, default=8, help=f"steps of the sampler, 1 to {MAX_STEPS} (default 8)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument("--data-root", default="data", help="folder of the data sets (default data)")
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        count, steps = check.whole("count", options.count, FEWEST, MOST), check.whole("steps", options.steps, 1, MAX_STEPS)
        configs = [
            Config(init=options.init, guide=options.guide, guide_scale=scale, guide_null=null)
            for scale, null in map(target, options.targets)
        ]
        device = pick(options.device)
        ruler, labels = Ruler(device, options.data_root), parse_labels("mnist", count)
        print(HEAD)
        for config in configs:
            teacher = Teacher(config).to(device, torch.bfloat16 if has_bfloat16(device) else torch.float32)
            pixels = torch.cat(list(tqdm(draw(teacher, labels, 0, steps, 1.0), unit="chunk", leave=False)))
            found = ruler.compare(pixels, labels)[0]
            print(
                f"| {config.guide_scale:g} | {config.guide_null:g} | {found['fd_ratio']:.2f} | {found['precision']:.1%} "
                f"| {found['recall']:.1%} | {found['density']:.3f} | {found['coverage']:.1%} | {found['accuracy']:.1%} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
