"""Command: weights with a part of what a run learned. `python -m training.blend runs/a/weights runs/b/weights 0.6`

    blended = base + share · (end − start)

start is what the run began with, end what it ended with, and base is start, or what another run from the same start ended with: what two
runs learned is added up (task arithmetic, Ilharco et al., arXiv 2212.04089, §4). So a part of what a run learned can be taken without
another run: of learned guidance, a smaller scale. (Of classifiers, weights between those before and after a fine-tuning are often
better than both: Wortsman et al., arXiv 2109.01903, §3.)
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch

from model import weights
from model.command import sentence_on_error
from training.train import commit


def blend(start: str, end: str, share: float, out: Path, command: str, base: str | None = None) -> None:
    """Write the folder `out`: the weights `base` (without it, `start`) and `share` (0 to 1) of what changed from `start` to `end`.

    They are drawn with as `end` is, and their record names `command`. Raises ValueError or OSError, in one sentence, for weights that
    are no good, where `end` or `base` was not trained from `start`, and where they are of one run.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share must lie in 0..1, not {share:g}")
    if out.exists():
        raise ValueError(f"{out} is there already; choose another --out")
    first = weights.load(start, dtype=torch.float32)
    second, training = descendant(end, start, first)
    onto, other = descendant(base, start, first) if base else (first, None)
    if other == training:
        raise ValueError(f"the weights in {base} are those of the same run; leave out --base, or name another run's")
    origin, target = first.network.state_dict(), onto.network.state_dict()
    for name, tensor in second.network.state_dict().items():
        tensor.sub_(origin[name]).mul_(share).add_(target[name])
    record = {"share": share, "command": command, "commit": commit()}
    if other:
        record["base"] = {key: value for key, value in other.items() if key != "before"}  # which is that of the run
    weights.save(second.network, out, {"training": {**training, "blend": record}})


def descendant(where: str, start: str, first: weights.Weights) -> tuple[weights.Weights, dict]:
    """The weights in `where` and the record of their training; raises ValueError where that did not begin with `first`, from `start`."""
    loaded = weights.load(where, dtype=torch.float32)
    training = loaded.metrics.get("training", {})
    if "blend" in training:
        raise ValueError(f"the weights in {where} are a blend already; take those that the run ended with")
    if not training.get("before") or training["before"] != first.metrics.get("training"):
        raise ValueError(f"the weights in {where} were not trained from those in {start}, so there is no run between them")
    return loaded, training


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.blend", description=__doc__.splitlines()[0])
    parser.add_argument("start", help="the weights that the run started from (its --init)")
    parser.add_argument("end", help="the weights of the run")
    parser.add_argument("share", type=float, help="how much of the way from the one to the other, 0 to 1")
    parser.add_argument("--base", help="add it to these weights, of another run from the same start (default: to the start)")
    parser.add_argument("--out", type=Path, default=Path("runs/blended/weights"), help="the new folder (default runs/blended/weights)")
    options = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "training.blend", *(sys.argv[1:] if argv is None else argv)])
    with sentence_on_error(parser):
        blend(options.start, options.end, options.share, options.out, command, options.base)
    print(f"Draw with it: python app.py --weights {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
