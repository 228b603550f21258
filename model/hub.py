"""The Hugging Face Hub: download a repository's files into the cache, and explain every failure in one sentence."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # of the HTTP library that this version of the client uses
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import logging, parse_ratelimit_headers

from model.common import masked

DECISION_SECONDS = 6.0  # for the commit and the first file; a slower Hub counts as unreachable
DOWNLOAD_SECONDS = 300.0  # for all files

NOT_THERE = (RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError)  # answers of the Hub, not faults
# RuntimeError is raised by Xet and by uploads in several threads.
CLIENT_ERRORS = (HTTPError, OSError, RevisionResolutionError, json.JSONDecodeError, RuntimeError)

NAME = r"\w[\w.-]*/\w[\w.-]*"
TOKENS = "https://huggingface.co/settings/tokens"
NO_REPOSITORY = "there is no such repository, or it is private; check the name, or log in with `hf auth login`"
ADVICE = {  # by exception type, else by HTTP status
    GatedRepoError: "its owner must grant you access; request it on its page, then log in with `hf auth login`",
    RevisionNotFoundError: "the repository exists, but has no such revision; its page lists branches and commits",
    RemoteEntryNotFoundError: "it has no {file}, so it does not contain weights of this network; check the name",
    RepositoryNotFoundError: NO_REPOSITORY,
    401: f"the token is not valid; create one at {TOKENS} and log in with `hf auth login`",
    402: "a free account can have two ZeroGPU Spaces and no other Gradio Space; leave --hardware out, delete a Space, "
    "or subscribe to PRO",
    403: f"the token lacks permission; create one with write access at {TOKENS} and log in with `hf auth login`",
    404: NO_REPOSITORY,
}


logging.set_verbosity_error()  # its retry warnings show the credentials in HF_ENDPOINT


def download(where: str, names: tuple[str, ...]) -> tuple[Path, str]:
    """Download these files of a repository `USER/NAME[@revision]`; returns the cached folder and `USER/NAME@commit`.

    The revision is resolved to a commit once; if the Hub does not answer, the cache is used.
    Raises OSError with a one-sentence message; without a network, within `DECISION_SECONDS`.
    """
    if not re.fullmatch(NAME + r"(@\w[\w./-]*)?", where):
        raise FileNotFoundError(f"{where} is neither a folder nor a Hub repository USER/NAME[@revision]")
    repo, _, revision = where.partition("@")
    with explained(f"{where} is not a local folder and cannot be loaded from the Hub"):
        try:
            folder = within(DECISION_SECONDS, lambda: fetch(repo, revision, names[:1]))
            within(DOWNLOAD_SECONDS, lambda: fetch(repo, folder.name, names))
        except NOT_THERE:
            raise
        except CLIENT_ERRORS:
            with suppress(LocalEntryNotFoundError, RevisionResolutionError):
                folder = fetch(repo, revision, names, offline=True)
                return folder, f"{repo}@{folder.name}"
            raise
    return folder, f"{repo}@{folder.name}"


def fetch(repo: str, revision: str, names: tuple[str, ...], offline: bool = False) -> Path:
    """Download these files of one commit; returns the cached folder. Cached files need no request."""
    named = revision or constants.DEFAULT_REVISION  # some mirrors have no default branch
    commit = HfApi().resolve_revision(repo, revision=named, local_files_only=offline).resolved
    paths = [hf_hub_download(repo, name, revision=commit, local_files_only=offline) for name in names]
    return Path(paths[0]).parents[names[0].count("/")]


def forget(folder: Path, names: tuple[str, ...]) -> None:
    """Remove the files of a cached folder, so that the next start downloads them again."""
    for name in names:
        for path in ((folder / name).resolve(), folder / name):  # a symbolic link and its target
            path.unlink(missing_ok=True)


def within(seconds: float, call: Callable):
    """Run `call()` and return or raise its outcome; raises TimeoutError if it takes longer than `seconds`.

    The HTTP library's own timeouts exclude the name lookup and restart with every address, read and retry.
    """
    outcome = Future()

    def run():
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    if not wait([outcome], seconds).done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return outcome.result()


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the errors of the Hub's client into an OSError of one sentence: `what`, why, and what to do."""
    try:
        if not re.fullmatch("[!-~]*", get_token() or ""):
            raise OSError(f"the token contains a space, a typographic quote or the like; copy it again from {TOKENS}")
        yield
    except CLIENT_ERRORS as error:
        raise OSError(masked(f"{what}: {reason(error)}")) from error


def reason(error: BaseException) -> str:
    """Why it failed and what to do: from the Hub's answer if there is one, else from the root cause."""
    causes = [error]
    while cause := causes[-1].__cause__:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            return answer(cause)
        if isinstance(cause, json.JSONDecodeError):
            return f"{constants.ENDPOINT} does not answer like the Hub; check the network and HF_ENDPOINT"
    if any(isinstance(cause, HTTPError | ConnectionError | TimeoutError) for cause in causes):
        return f"no connection to {constants.ENDPOINT} ({masked(causes[-1])}); check the network and try again"
    return masked(error)


def answer(error: HfHubHTTPError) -> str:
    """Explain an error response of the Hub, and what to do."""
    response = error.response
    if response.status_code == 429:
        limit = parse_ratelimit_headers(response.headers)
        seconds = response.headers.get("Retry-After") or (limit and limit.reset_in_seconds)
        return f"too many requests; try again {f'in {seconds} seconds' if seconds else 'later'}"
    said = f" ({error.server_message[:200]})" if error.server_message else ""
    unknown = f"the Hub answered {response.status_code}{said}; try again later"
    advice = ADVICE.get(type(error)) or ADVICE.get(response.status_code, unknown)
    return advice.replace("{file}", response.url.path.rpartition("/")[2])
