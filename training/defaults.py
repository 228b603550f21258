"""Command: what weights draw with where nobody says otherwise. `python -m training.defaults runs/first/weights --guidance 1.25`"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from model import weights
from model.command import sentence_on_error


def set_defaults(folder: Path, **changed: float) -> dict:
    """Change `default_guidance` or `time_shift` in a folder of weights and return its configuration; tensors and figures stay.

    The folder is whole before and after. Raises ValueError or OSError, in one sentence, for weights or values that are no good.
    """
    _, metrics = weights.read(folder)
    with weights.replacing_folder(folder) as new:
        shutil.copytree(folder, new)
        config = json.loads((new / weights.CONFIG).read_text()) | changed
        (new / weights.CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        if "sha256" in metrics:
            metrics["sha256"][weights.CONFIG] = weights.sha256(new / weights.CONFIG)
            (new / weights.METRICS).write_text(json.dumps(metrics, indent=2) + "\n")
        weights.read(new)  # the network knows what values it takes
    return config


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.defaults", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the weights")
    parser.add_argument("--guidance", dest="default_guidance", type=float, metavar="SCALE", help="guidance scale, 0 to 5")
    parser.add_argument("--time-shift", type=float, metavar="SHIFT", help="how far the sampler's times are bent towards the noise")
    options = vars(parser.parse_args(argv))
    folder = options.pop("folder")
    with sentence_on_error(parser):
        config = set_defaults(folder, **{name: value for name, value in options.items() if value is not None})
    print(f"{folder}: guidance {config['default_guidance']:g}, time shift {config['time_shift']:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
