"""Command: publish weights to the Hub, and the page to a Space.

python -m training.publish weights USER/NAME
python -m training.publish space USER/NAME --weights USER/NAME
python -m training.publish static USER/NAME --weights USER/NAME
"""

import argparse
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from model import hub, weights
from model.common import add_shared, python, sentence_on_error
from model.web import site
from training.release import upload
from training.release.card import card


def show(folder: Path, repo: str) -> None:
    print(f"This would be sent to {repo}, in one commit:")
    for name in upload.listed(folder):
        print(f"{(folder / name).stat().st_size:12,} bytes  {name}")


def publish_weights(options: argparse.Namespace, folder: Path) -> None:
    upload.stage(options.folder, upload.OF_WEIGHTS, folder)
    upload.check(folder)
    readme = folder / upload.CARD
    text = readme.read_text(encoding="utf-8") if readme.exists() else str(card(folder, options.repo))
    readme.write_text(text.replace("USER/NAME", options.repo), encoding="utf-8")  # as in a card written without --repo
    if options.dry_run:
        return show(folder, options.repo)
    commit = upload.send_weights(folder, options.repo, options.private, options.branch, options.pr)
    print(f"Draw with it: {python('app.py', '--weights', f'{options.repo}@{commit}')}")


def publish_space(options: argparse.Namespace, folder: Path) -> None:
    upload.stage(upload.ROOT, upload.OF_SPACE, folder)
    upload.check(folder / "weights")
    if Path(options.weights).is_dir():
        raise ValueError(
            f"a Space needs weights from the Hub, but {options.weights} is a local folder; publish it first"
        )
    loaded = weights.load(options.weights)
    source, names = loaded.source, (*weights.FILES, *weights.OF_TEACHER)
    files = sorted(name for name in names if (loaded.folder / name).is_file())
    hardware = options.hardware or upload.ZERO_GPU
    (folder / upload.CARD).write_text(upload.space_card(*source.split("@"), files, hardware), encoding="utf-8")
    if options.dry_run:
        return show(folder, options.repo)
    upload.send_space(folder, options.repo, source, options.private, options.hardware)


def publish_static(options: argparse.Namespace, folder: Path) -> None:
    loaded = site.export(options.weights, folder, upload.static_address(options.repo))
    upload.check(next(folder.glob(f"{site.WEIGHTS}*")))
    (folder / upload.CARD).write_text(upload.static_card(loaded.source, options.repo), encoding="utf-8")
    if options.dry_run:
        return show(folder, options.repo)
    upload.send_static(folder, options.repo, options.private)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.publish", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    kinds = {
        "weights": (publish_weights, "publish a folder of weights to a model repository"),
        "space": (publish_space, "publish the page to a Gradio Space"),
        "static": (publish_static, "publish the page that draws in the visitor's browser to a static Space"),
    }
    for what, (publish, help) in kinds.items():
        part = commands.add_parser(what, help=help)
        part.set_defaults(publish=publish)
        part.add_argument("repo", metavar="USER/NAME", help="the repository, created if necessary")
        part.add_argument("--private", action="store_true", help="make it private")
        part.add_argument("--dry-run", action="store_true", help="check everything, and print what would be sent")
        if what == "weights":
            part.add_argument(
                "--from", dest="folder", type=Path, default=weights.BUNDLED, help="folder of weights (default weights/)"
            )
            where = part.add_mutually_exclusive_group()
            where.add_argument("--branch", help="send to this branch, created if necessary")
            where.add_argument("--pr", action="store_true", help="open a pull request")
        elif what == "static":
            add_shared(part, "--weights")
        else:
            part.add_argument(
                "--weights", required=True, metavar="USER/NAME[@revision]", help="the weights that the Space draws with"
            )
            part.add_argument("--hardware", help=f"such as cpu-basic (default for a new Space: {upload.ZERO_GPU})")
    options = parser.parse_args(argv)
    with sentence_on_error(parser), TemporaryDirectory() as staged:
        if not re.fullmatch(hub.NAME, options.repo):
            raise ValueError(f"the repository must be USER/NAME, not {options.repo!r}")
        options.publish(options, Path(staged))
    return 0


if __name__ == "__main__":
    sys.exit(main())
