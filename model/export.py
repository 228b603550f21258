"""Command: export the static page, which draws in the visitor's own browser. `python -m model.export --out site`"""

import argparse
import sys
from pathlib import Path

from model.common import add_shared, python, sentence_on_error
from model.web import site


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model.export", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("site"), help="the folder to write (default site)")
    parser.add_argument("--address", default="", help="the URL of the page, for the picture in link previews")
    add_shared(parser, "--weights")
    options = parser.parse_args(argv)
    with sentence_on_error(parser):
        loaded = site.export(options.weights, options.out, options.address)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 1e6:.1f} MB, ready for any file server; weights: {loaded.source}")
    print(f"View it with: {python('-m', 'http.server', '-d', options.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
