"""Command: weights to the Hub, and the page to a Space.

    python -m training.publish weights USER/NAME
    python -m training.publish space USER/NAME --weights USER/NAME

What goes is copied into a folder of its own, checked there, and sent as one commit: a run that goes on writing cannot change
what was checked, nothing else of the repository can slip in, and a broken upload leaves the Hub's branch as it was.
"""

import argparse
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import CommitOperationAdd, HfApi, SpaceCardData, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from model import hub, weights
from model.command import sentence_on_error
from model.dit import DiT
from model.generate import states
from training.card import card, results_table

ROOT = Path(__file__).parent.parent
CARD = "README.md"
OF_WEIGHTS = (weights.CONFIG, weights.TENSORS, weights.METRICS, CARD, "*.png")
OF_SPACE = ("app.py", "requirements.txt", "LICENSE", "model/*.py", *(f"weights/{name}" for name in OF_WEIGHTS))
ZERO_GPU = "zero-a10g"
REQUEST_SECONDS, UPLOAD_SECONDS = 30.0, 600.0


def stage(source: Path, patterns: tuple[str, ...], to: Path) -> None:
    """Copy the files of `source` that match the patterns into `to`, hidden ones left out.

    FileNotFoundError for a pattern that nothing matches, unless it is the card or the pictures.
    """
    for pattern in patterns:
        found = [path for path in source.glob(pattern) if path.is_file() and not path.name.startswith(".")]
        if not found and not pattern.endswith((CARD, "*.png")):
            raise FileNotFoundError(f"{source / pattern} is missing, and has to go along")
        for path in found:
            target = to / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def check(folder: Path) -> None:
    """Raise ValueError or OSError for weights not fit to publish: damaged, with figures of others, or drawing what is no number."""
    network, metrics = weights.read(folder)
    if not {weights.CONFIG, weights.TENSORS} <= set(metrics.get("sha256", ())):
        raise ValueError(f"{weights.METRICS} does not say by sha256 which weights it belongs to; train them again")
    evaluation = [metrics["evaluation"]] if "evaluation" in metrics else []
    measured = [*evaluation, *metrics.get("sweeps", []), *metrics.get("cas", [])]
    if any(row["settings"]["sha256"] != metrics["sha256"][weights.TENSORS] for row in measured):
        raise ValueError(f"{weights.METRICS} holds figures of other weights; measure again: python -m training.evaluate")
    if (folder / CARD).exists() and results_table(metrics) not in (folder / CARD).read_text():
        raise ValueError(f"{CARD} does not show the figures in {weights.METRICS}; write it again: python -m training.card")
    if not draws(network):
        raise ValueError(f"the network in {weights.TENSORS} draws images that are not finite; train it again")


def draws(network: DiT) -> bool:
    """Whether every class comes out finite, with and without guidance."""
    labels = torch.arange(network.null_label)
    for guidance in {network.default_guidance, 1.0, 2.0}:
        *_, last = states(network, labels, range(len(labels)), steps=4, guidance=guidance)
        if not last.x.isfinite().all():
            return False
    return True


def space_card(repo: str, commit: str, hardware: str) -> str:
    """The README of a Space that draws with the weights of `repo` at `commit`: front matter, and what a visitor wants to know."""
    front = SpaceCardData(
        title="Digits from noise",
        emoji="✏️",
        colorFrom="indigo",
        colorTo="gray",
        sdk="gradio",
        sdk_version=version("gradio"),  # the one this page was tested with; it wins over requirements.txt there
        python_version="3.12",
        app_file="app.py",
        models=[repo],
        preload_from_hub=[f"{repo} {','.join(weights.FILES)} {commit}"],
        tags=["mnist", "rectified-flow", "diffusion-transformer"],
        short_description="A small Diffusion Transformer draws MNIST digits",
        license="mit",
        suggested_hardware=hardware,
    )
    text = f"Handwritten digits, drawn with [{repo}](https://huggingface.co/{repo}) by a class-conditional Diffusion Transformer."
    return f"---\n{front.to_yaml()}\n---\n\n# {front.title}\n\n{text}\n"


# ---- to the Hub


def ask(call, *args, seconds: float = REQUEST_SECONDS, **kwargs):
    return hub.within(seconds, lambda: call(*args, **kwargs))


def is_there(repo: str, kind: str, private: bool) -> bool:
    """Whether the Hub has the repository; ValueError without a token, and for a public one that should be private."""
    if not get_token():
        raise ValueError(f"there is no token; make one that may write at {hub.TOKENS}, then `hf auth login`, or put it into HF_TOKEN")
    try:
        info = ask(HfApi().repo_info, repo, repo_type=kind, seconds=hub.DECISION_SECONDS)
    except RepositoryNotFoundError as error:
        if error.response.status_code != 404:
            raise
        return False
    if private and not info.private:
        raise ValueError(f"{repo} is public already; make it private in its settings, or leave out --private")
    return True


def push(folder: Path, repo: str, kind: str, branch: str | None = None, pull_request: bool = False) -> str:
    """Everything in `folder` as one commit, whose hash is returned, and none where nothing changed; says which on stdout."""
    api = HfApi()
    before = ask(api.repo_info, repo, repo_type=kind, revision=branch).sha
    commit = ask(
        api.create_commit,  # upload_folder makes several commits where Xet is installed
        repo,
        [CommitOperationAdd(name, folder / name) for name in listed(folder)],
        commit_message="Upload weights" if kind == "model" else "Upload the page",
        repo_type=kind,
        revision=branch,
        create_pr=pull_request,
        seconds=UPLOAD_SECONDS,
    )
    print(f"{commit.pr_url or commit.repo_url}: {'nothing has changed since' if commit.oid == before else 'now at'} commit {commit.oid}")
    return commit.oid


def publish_weights(folder: Path, options: argparse.Namespace) -> None:
    """Send a checked folder of weights, and print the line that draws with it."""
    repo, api = options.repo, HfApi()
    with hub.explained(f"{repo} was not published"):
        if not is_there(repo, "model", options.private):
            ask(api.create_repo, repo, private=options.private or None)
        if options.branch:
            ask(api.create_branch, repo, branch=options.branch, exist_ok=True)
        commit = push(folder, repo, "model", options.branch, options.pr)
    print(f"Draw with it: python app.py --weights {repo}@{commit}")


def publish_space(folder: Path, options: argparse.Namespace, source: str) -> None:
    """Send a staged page, and point its variable WEIGHTS at `source`, which is `USER/NAME@commit`."""
    repo, api = options.repo, HfApi()
    with hub.explained(f"the Space {repo} was not published"):
        if not is_there(repo, "space", options.private):
            ask(
                api.create_repo,
                repo,
                repo_type="space",
                private=options.private or None,
                space_sdk="gradio",
                space_hardware=options.hardware or ZERO_GPU,
                space_variables=[{"key": "WEIGHTS", "value": source}],
            )
        elif options.hardware:
            ask(api.request_space_hardware, repo, options.hardware)
        push(folder, repo, "space")
    with hub.explained(f"the files of the Space {repo} are published, but its variable WEIGHTS is not set; run this again"):
        variable = ask(api.get_space_variables, repo).get("WEIGHTS")
        if variable is None or variable.value != source:  # setting it starts the Space anew
            ask(api.add_space_variable, repo, "WEIGHTS", source)


# ---- the command


def listed(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def show(folder: Path, repo: str) -> None:
    print(f"To {repo} would go, in one commit:")
    for name in listed(folder):
        print(f"{(folder / name).stat().st_size:12,} bytes  {name}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.publish", description=__doc__.splitlines()[0])
    whats = parser.add_subparsers(dest="what", required=True)
    for what, help in (("weights", "a folder of weights into a model repository"), ("space", "the page into a Space")):
        part = whats.add_parser(what, help=help)
        part.add_argument("repo", metavar="USER/NAME", help="the repository, made where it is not there yet")
        part.add_argument("--private", action="store_true", help="make it a private one")
        part.add_argument("--dry-run", action="store_true", help="check everything, and print what would go")
        if what == "weights":
            part.add_argument("--from", dest="folder", type=Path, default=weights.BUNDLED, help="the folder (default weights/)")
            where = part.add_mutually_exclusive_group()
            where.add_argument("--branch", help="send to this branch, made where it is not there yet")
            where.add_argument("--pr", action="store_true", help="open a pull request")
        else:
            part.add_argument("--weights", required=True, metavar="USER/NAME[@revision]", help="what the Space draws with")
            part.add_argument("--hardware", help=f"such as cpu-basic (default for a new Space: {ZERO_GPU})")
    options = parser.parse_args(argv)
    with sentence_on_error(parser), TemporaryDirectory() as staged:
        folder = Path(staged)
        if not re.fullmatch(hub.NAME, options.repo):
            raise ValueError(f"a repository is USER/NAME, not {options.repo!r}")
        if options.what == "weights":
            stage(options.folder, OF_WEIGHTS, folder)
            check(folder)
            if not (folder / CARD).exists():
                (folder / CARD).write_text(str(card(folder, options.repo)))
        else:
            stage(ROOT, OF_SPACE, folder)
            check(folder / "weights")
            if Path(options.weights).is_dir():
                raise ValueError(f"a Space needs weights from the Hub, and {options.weights} is a folder here; publish it first")
            source = weights.load(options.weights).source
            (folder / CARD).write_text(space_card(*source.split("@"), options.hardware or ZERO_GPU))
        if options.dry_run:
            show(folder, options.repo)
        elif options.what == "weights":
            publish_weights(folder, options)
        else:
            publish_space(folder, options, source)
    return 0


if __name__ == "__main__":
    sys.exit(main())
