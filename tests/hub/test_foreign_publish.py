"""Publishing sends only regular, expected files, in any locale, and never shows secrets."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.hub.double import Fault, Refusal
from tests.hub.worker import ROOT, SECRET, Worker, assert_sentence, environment, save_weights

PUBLISH = "python -m training.publish"
SPACE = ("space", "me/page", "--weights", "me/there", "--dry-run")
FROM = """
from pathlib import Path
from unittest.mock import patch
from training import publish
with patch("training.release.upload.ROOT", Path({root!r})):
    publish.main({arguments!r})
"""


def names(outcome) -> set[str]:
    assert outcome.status == 0, outcome
    return set(re.findall(r"bytes  (.*)", outcome.out))


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.png"
    path.write_text(SECRET, encoding="utf-8")
    return path


def test_links_are_not_sent_with_weights(worker, tmp_path, secret):
    folder = save_weights(tmp_path / "weights", 0)
    (folder / "samples.png").symlink_to(secret)
    (folder / "private.png").write_text(SECRET, encoding="utf-8")  # not a picture of the model card
    outcome = worker.command("training.publish", "weights", "me/tiny", "--from", folder, "--dry-run")
    assert names(outcome) == {"README.md", "config.json", "metrics.json", "model.safetensors", "sampling.json"}
    assert "Not sent" in outcome.err
    assert "samples.png" in outcome.err

    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    outcome = worker.command("training.publish", "weights", "me/tiny", "--from", folder)
    assert outcome.status == 2
    assert "config.json is missing, a link or not tracked" in outcome.err.splitlines()[-1]


@pytest.fixture
def repository(house, tmp_path):
    """A copy of the house as a git repository that tracks the files to publish."""
    copy = shutil.copytree(house, tmp_path / "repository")
    for arguments in (
        ["init", "-q"],
        ["add", "app.py", "requirements.txt", "LICENSE", "model/*.py", "model/page", "weights"],
    ):
        subprocess.run(["git", *arguments], cwd=copy, check=True, env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull})
    return copy


def test_only_tracked_regular_files_are_sent_to_a_space(worker, hub, folders, repository, secret):
    hub.model("me/there", {path.name: path.read_bytes() for path in folders[0].iterdir()})
    (repository / "model" / "mine.py").write_text(SECRET, encoding="utf-8")
    shutil.move(repository / "model" / "speed.py", secret.with_name("speed.py"))
    (repository / "model" / "speed.py").symlink_to(secret.with_name("speed.py"))
    publish = FROM.format(root=str(repository), arguments=list(SPACE))
    outcome = worker.run(publish)
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "model").rglob("*.py") if path.parent.name != "web"}
    code.remove("model/speed.py")
    assert {name for name in names(outcome) if name.endswith(".py")} == {"app.py", *code}
    for name in ("mine.py", "speed.py"):
        assert name in outcome.err

    subprocess.run(["git", "rm", "-q", "--cached", "app.py"], cwd=repository, check=True)
    outcome = worker.run(publish)
    assert outcome.status == 2
    assert "app.py is missing, a link or not tracked" in outcome.err.splitlines()[-1]


def test_credentials_of_the_endpoint_are_never_shown(house, hub, tmp_path, capfd):
    address = hub.address.replace("//", "//user:verysecret@")
    with Worker(house, **environment(address, tmp_path)) as own:
        for action in ("cut", Refusal(500), Refusal(401, "", "RepoNotFound"), Refusal(200)):
            hub.faults = [Fault(".*", action)]
            for arguments in (("model.generate", "--weights", "me/there"), ("training.publish", "weights", "me/tiny")):
                outcome = own.command(*arguments, hurry=True)
                assert outcome.status == 2
                assert "verysecret" not in outcome.out + outcome.err
    captured = capfd.readouterr()  # includes the client's log
    assert "verysecret" not in captured.out + captured.err


def test_a_typographic_token_is_named(worker, hub):
    outcome = worker.command("training.publish", "weights", "me/tiny", HF_TOKEN="“hf_writer”")
    assert_sentence(outcome, PUBLISH, "me/tiny was not published: the token contains a space, a typographic quote")
    assert hub.log == []


def test_the_locale_does_not_matter(house, hub, tmp_path):
    """Uses the encoding of the C locale in place of CP1252, which Linux lacks: neither can decode the card."""
    variables = {"PYTHONPATH": str(house), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    folder = shutil.copytree(house / "weights", tmp_path / "weights")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n“÷” ✏️\n", encoding="utf-8")
    command = [sys.executable, "-X", "warn_default_encoding", "-m", "training.publish", "weights", "a/b", "--dry-run"]
    run = subprocess.run(
        [*command, "--from", folder],
        cwd=house,
        env=environment(hub.address, tmp_path) | variables,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert (run.returncode, hub.log) == (0, [])
    assert not re.search(rf"{re.escape(str(house))}.*EncodingWarning", run.stderr)
