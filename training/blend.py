"""Command: weights between those a run started from and those it ended with. `python -m training.blend runs/a/weights runs/b/weights 0.6`

    blended = start + share · (end − start)

So a part of what a run learned can be taken without another run: of learned guidance, a smaller scale. (Of classifiers, weights between
those before and after a fine-tuning are often better than both: Wortsman et al., arXiv 2109.01903, §3.)
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch

from model import weights
from model.command import sentence_on_error
from training.train import commit


def blend(start: str, end: str, share: float, out: Path, command: str) -> None:
    """Write the folder `out`: weights `share` (0 to 1) of the way from `start` to `end`, drawn with as `end` is, and their `command`.

    Raises ValueError or OSError, in one sentence, for weights that are no good, and where `end` was not trained from `start`.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share must lie in 0..1, not {share:g}")
    if out.exists():
        raise ValueError(f"{out} is there already; choose another --out")
    first, second = (weights.load(where, dtype=torch.float32) for where in (start, end))
    training = second.metrics.get("training", {})
    if "blend" in training:
        raise ValueError(f"the weights in {end} are a blend already; take those that the run ended with")
    if not training.get("before") or training["before"] != first.metrics.get("training"):
        raise ValueError(f"the weights in {end} were not trained from those in {start}, so there is nothing between them")
    tensors = first.network.state_dict()
    for name, tensor in second.network.state_dict().items():
        tensor.lerp_(tensors[name], 1 - share)
    weights.save(second.network, out, {"training": {**training, "blend": {"share": share, "command": command, "commit": commit()}}})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.blend", description=__doc__.splitlines()[0])
    parser.add_argument("start", help="the weights that the run started from (its --init)")
    parser.add_argument("end", help="the weights of the run")
    parser.add_argument("share", type=float, help="how far from the one to the other, 0 to 1")
    parser.add_argument("--out", type=Path, default=Path("runs/blended/weights"), help="the new folder (default runs/blended/weights)")
    options = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "training.blend", *(sys.argv[1:] if argv is None else argv)])
    with sentence_on_error(parser):
        blend(options.start, options.end, options.share, options.out, command)
    print(f"Draw with it: python app.py --weights {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
