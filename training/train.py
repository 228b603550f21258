"""Command: train the network. `python -m training.train` is the recipe of the released weights.

A run is saved in `runs/NAME/`: config.json, history.jsonl (one line per start), metrics.jsonl, previews/,
checkpoint.pt, weights/ for sampling, and, when it ends, previews.gif and loss.png. With several GPUs:
`torchrun --nproc_per_node=N -m training.train`.
"""

import sys

from training import command
from training.trainer import Trainer


def main(argv: list[str] | None = None) -> int:
    return command.main(argv, Trainer, __doc__)


if __name__ == "__main__":
    sys.exit(main())
