"""Command: distil a velocity network into a flow map. `python -m training.distill --name map`

The run folder is like that of `training.train`, with a copy of the teacher in `weights/teacher/`.
"""

import sys

from training import command
from training.distillation import Distiller


def main(argv: list[str] | None = None) -> int:
    return command.main(argv, Distiller, __doc__)


if __name__ == "__main__":
    sys.exit(main())
