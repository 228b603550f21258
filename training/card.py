"""Command: write the model card of a folder of weights. `python -m training.card --repo USER/NAME`"""

import argparse
import sys
from pathlib import Path

from model import weights
from model.common import replacing, sentence_on_error
from training.release.card import card


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.card", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--weights", type=Path, default=weights.BUNDLED, help="folder of the weights (default: the bundled ones)"
    )
    parser.add_argument("--repo", default="", metavar="USER/NAME", help="the Hub repository of the weights")
    parser.add_argument(
        "--code", default="", metavar="URL", help="where to clone the code from (default: the Space of the same name)"
    )
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        path = options.weights / "README.md"
        text = str(card(options.weights, options.repo, options.code))
        with replacing(path) as new:
            new.write_text(text, encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
