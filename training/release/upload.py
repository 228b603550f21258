"""Publishing: stage the files in a separate folder, check them there, and send them as one commit.

Staging ensures that a running trainer cannot change the checked files and that no other files are sent. A failed upload
leaves the branch on the Hub unchanged.
"""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    SpaceCardData,
    SpaceInfo,
    get_token,
)
from huggingface_hub.errors import RepositoryNotFoundError

from model import hub, weights
from model.common import python
from model.flow_map import FlowMap
from model.sampling import states
from model.web import site
from training.release.card import PICTURES, results_table

ROOT = Path(__file__).parent.parent.parent
CARD = "README.md"
OPTIONAL = (CARD, *(name for name, *_ in PICTURES), *weights.OF_TEACHER)
OF_WEIGHTS = (*weights.FILES, *OPTIONAL)
OF_SPACE = (
    "app.py",
    "requirements.txt",
    "LICENSE",
    "model/*.py",
    "model/page/*.py",
    "model/page/*.css",
    "model/page/*.js",
    "model/page/*.json",
    "model/page/*.png",
    *(f"weights/{name}" for name in OF_WEIGHTS),
)
ZERO_GPU = "zero-a10g"
ABOUT_SPACE = {
    "title": "Digits from noise",
    "emoji": "✏️",
    "colorFrom": "indigo",
    "colorTo": "gray",
    "tags": ["mnist", "rectified-flow", "diffusion-transformer"],
    "short_description": "A small Diffusion Transformer draws MNIST digits",
    "license": "mit",
}
REQUEST_SECONDS, UPLOAD_SECONDS = 30.0, 600.0


def stage(source: Path, patterns: tuple[str, ...], to: Path) -> None:
    """Copy the files of `source` that match the patterns to `to`, except hidden files, links and, in the root of a git
    repository, untracked files.

    Raises FileNotFoundError for a pattern without a match, unless it is optional.
    """
    tracked, root = tracked_files(source), source.resolve()
    for pattern in patterns:
        found = []
        for path in source.glob(pattern):
            name = path.relative_to(source)
            if path.is_file() and not path.name.startswith("."):
                if path.resolve() == root / name and (tracked is None or name.as_posix() in tracked):
                    found.append(path)
                else:
                    print(f"Not sent, because it is a link or git does not track it: {path}", file=sys.stderr)
        if not found and not pattern.endswith(OPTIONAL):
            raise FileNotFoundError(f"{source / pattern} is missing, a link or not tracked; it must be published too")
        for path in found:
            target = to / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def tracked_files(folder: Path) -> set[str] | None:
    """The files that git tracks if `folder` is the root of a repository, else None."""
    if not (folder / ".git").exists():
        return None
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, encoding="utf-8")
    if listing.returncode:
        raise ValueError(f"git cannot list the files that it tracks in {folder}: {listing.stderr}")
    return set(listing.stdout.split("\0"))


def check(folder: Path) -> None:
    """Raise ValueError or OSError if the weights or their teacher are not fit to publish: damaged, with the metrics of
    other weights, or drawing non-finite images."""
    loaded = weights.read(folder)
    check_loaded(loaded, folder)
    if (folder / weights.TEACHER).is_dir():
        if not isinstance(loaded.network, FlowMap):
            raise ValueError(f"{weights.TEACHER}/ is only allowed for the weights of a flow map; remove it")
        check_loaded(weights.read_teacher(folder, loaded.network), folder / weights.TEACHER, f"{weights.TEACHER}/")


def check_loaded(loaded: weights.Weights, folder: Path, part: str = "") -> None:
    """`check` for the weights of one folder; errors prefix its file names with `part`."""
    metrics, named = loaded.metrics, part + weights.METRICS
    if weights.TENSORS not in metrics.get("sha256", {}):
        raise ValueError(f"{named} has no sha256 of its weights; train them again")
    evaluation = [metrics["evaluation"]] if "evaluation" in metrics else []
    measured = [*evaluation, *metrics.get("sweeps", []), *metrics.get("cas", [])]
    if any(row.get("settings", {}).get("sha256") != metrics["sha256"][weights.TENSORS] for row in measured):
        raise ValueError(
            f"{named} contains results for other weights; evaluate again: {python('-m', 'training.evaluate')}"
        )
    card = folder / CARD
    if card.exists() and results_table(metrics) not in card.read_text(encoding="utf-8"):
        raise ValueError(
            f"{CARD} does not show the results in {weights.METRICS}; write it again: {python('-m', 'training.card')}"
        )
    if not draws(loaded):
        raise ValueError(f"the network in {part}{weights.TENSORS} draws images that are not finite; train it again")


def draws(loaded: weights.Weights) -> bool:
    """Whether the images of all classes are finite, with and without guidance."""
    labels = torch.arange(loaded.network.null_label)
    for guidance in {loaded.sampling.guidance, 1.0, 2.0}:
        *_, last = states(
            loaded.network, labels, range(len(labels)), replace(loaded.sampling, steps=4, guidance=guidance)
        )
        if not last.x.isfinite().all():
            return False
    return True


def space_card(repo: str, commit: str, files: list[str], hardware: str) -> str:
    """The README of a Space that draws with the weights of `repo` at `commit` and preloads their `files`."""
    front = SpaceCardData(
        **ABOUT_SPACE,
        sdk="gradio",
        sdk_version=version("gradio"),  # the tested version; it overrides requirements.txt there
        python_version="3.12",
        app_file="app.py",
        models=[repo],
        preload_from_hub=[f"{repo} {','.join(files)} {commit}"],
        suggested_hardware=hardware,
    )
    return readme(front, f"Handwritten digits, drawn with {link(repo)} by a class-conditional Diffusion Transformer.")


def static_card(source: str, repo: str) -> str:
    """The README of the static Space `repo`; `source` of its weights is `USER/NAME@commit` if they are from the Hub."""
    model, at, _ = source.partition("@")
    origin = {"models": [model]} if at else {}
    picture = f"{static_address(repo)}/{site.PICTURE}"
    front = SpaceCardData(**ABOUT_SPACE, sdk="static", app_file=site.INDEX, thumbnail=picture, **origin)
    text = "Handwritten digits, drawn by a class-conditional Diffusion Transformer in your own browser"
    return readme(front, text + (f" with the weights of {link(model)}." if at else "."))


def readme(front: SpaceCardData, text: str) -> str:
    return f"---\n{front.to_yaml()}\n---\n\n# {front.title}\n\n{text}\n"


def link(repo: str) -> str:
    return f"[{repo}](https://huggingface.co/{repo})"


def static_address(repo: str) -> str:
    """The URL at which the Hub serves a static Space."""
    return f"https://{re.sub('[^a-z0-9]+', '-', repo.lower())}.static.hf.space"


# ---- to the Hub


def ask(call, *args, seconds: float = REQUEST_SECONDS, **kwargs):
    return hub.within(seconds, lambda: call(*args, **kwargs))


def found(repo: str, kind: str, private: bool) -> ModelInfo | SpaceInfo | None:
    """The Hub's info about a repository, None if there is none; raises ValueError without a token, and for a public
    repository that should be private."""
    if not get_token():
        raise ValueError(
            f"no token found; create one with write access at {hub.TOKENS}, then run `hf auth login` or set HF_TOKEN"
        )
    try:
        info = ask(HfApi().repo_info, repo, repo_type=kind, seconds=hub.DECISION_SECONDS)
    except RepositoryNotFoundError as error:
        if error.response.status_code != 404:
            raise
        return None
    if private and not info.private:
        raise ValueError(f"{repo} is public already; make it private in its settings, or leave out --private")
    return info


def push(
    folder: Path,
    repo: str,
    kind: str,
    branch: str | None = None,
    pull_request: bool = False,
    replaced: str | None = None,
) -> str:
    """Send everything in `folder` as one commit, unless nothing changed; prints and returns its hash.

    The commit also deletes files on the Hub that are not in `folder` and whose names begin with the pattern `replaced`.
    """
    api, names = HfApi(), listed(folder)
    before = ask(api.repo_info, repo, repo_type=kind, revision=branch)
    there = [file.rfilename for file in before.siblings or () if replaced and re.match(replaced, file.rfilename)]
    commit = ask(
        api.create_commit,  # upload_folder makes several commits with Xet
        repo,
        [CommitOperationAdd(name, folder / name) for name in names]
        + [CommitOperationDelete(name) for name in there if name not in names],
        commit_message="Upload weights" if kind == "model" else "Upload the page",
        repo_type=kind,
        revision=branch,
        create_pr=pull_request,
        seconds=UPLOAD_SECONDS,
    )
    news = "nothing has changed since" if commit.oid == before.sha else "now at"
    print(f"{commit.pr_url or commit.repo_url}: {news} commit {commit.oid}")
    return commit.oid


def send_weights(folder: Path, repo: str, private: bool, branch: str | None, pull_request: bool) -> str:
    """Send a checked folder of weights; returns the commit."""
    api = HfApi()
    with hub.explained(f"{repo} was not published"):
        if not found(repo, "model", private):
            ask(api.create_repo, repo, private=private or None)
        if branch:
            ask(api.create_branch, repo, branch=branch, exist_ok=True)
        return push(folder, repo, "model", branch, pull_request, replaced=f"{weights.TEACHER}/")


def send_space(folder: Path, repo: str, source: str, private: bool, hardware: str | None) -> None:
    """Send a staged page, and set its variable WEIGHTS to `source`, `USER/NAME@commit`."""
    api = HfApi()
    with hub.explained(f"the Space {repo} was not published"):
        if not found(repo, "space", private):
            ask(
                api.create_repo,
                repo,
                repo_type="space",
                private=private or None,
                space_sdk="gradio",
                space_hardware=hardware or ZERO_GPU,
                space_variables=[{"key": "WEIGHTS", "value": source}],
            )
        elif hardware:
            ask(api.request_space_hardware, repo, hardware)
        push(folder, repo, "space")
    with hub.explained(
        f"the files of the Space {repo} are published, but its variable WEIGHTS is not set; run this again"
    ):
        variable = ask(api.get_space_variables, repo).get("WEIGHTS")
        if variable is None or variable.value != source:  # setting it restarts the Space
            ask(api.add_space_variable, repo, "WEIGHTS", source)


def send_static(folder: Path, repo: str, private: bool) -> None:
    """Send an exported page to a static Space; files left by an earlier page of other code or weights are removed.

    Raises ValueError for a Space that is not static.
    """
    with hub.explained(f"the Space {repo} was not published"):
        space = found(repo, "space", private)
        if space and space.sdk not in (None, "static"):
            raise ValueError(f"{repo} is a Space of another kind ({space.sdk}); choose another name, or delete it")
        if not space:
            ask(HfApi().create_repo, repo, repo_type="space", private=private or None, space_sdk="static")
        push(folder, repo, "space", replaced=f"{site.PART}/")


def listed(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
