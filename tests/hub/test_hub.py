"""Loading from the Hub: the unmodified client, in separate processes, against the double and olah, a real mirror."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch

from model import sampling, weights
from tests.hub.double import Fault, Refusal
from tests.hub.worker import Worker, assert_sentence, environment, page, save_map
from tests.server import close, wait_until

OLAH = "olah==0.5.4"
NOWHERE = "http://127.0.0.1:9"  # a closed port
GENERATE = "python -m model.generate"
IMPATIENT = {"model.hub.DECISION_SECONDS": 1.0}
DRAW = """
import hashlib, json, torch
from dataclasses import asdict
from model import sampling, weights
found = weights.{load}({where!r})
pixels = torch.cat(list(sampling.draw(found.network, torch.arange(12), 5, found.sampling)))
picture = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
print(json.dumps([found.source, found.notice, asdict(found.sampling), picture]))
"""


class Drawn(NamedTuple):
    """Loaded weights and the hash of the picture they draw."""

    source: str
    notice: str
    sampling: dict
    picture: str


@pytest.fixture
def name(request):
    """A repository name unique to the test, so that nothing of it is cached."""
    return "me/" + re.sub(r"\W+", "-", request.node.name)[-60:].strip("-_")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def draw(worker, where, load: str = "load", limits=None) -> Drawn:
    """Load the weights at `where` and draw with them."""
    outcome = worker.run(DRAW.format(load=load, where=str(where)), limits=limits)
    assert outcome.status == 0, outcome.err
    return Drawn(*json.loads(outcome.out))


def seven(folder: Path) -> list[list[int]]:
    """The expected result of the page's `/draw` for a 7 with seed 5 and the weights in a folder."""
    loaded = weights.load(str(folder))
    return next(sampling.draw(loaded.network, torch.tensor([7]), 5, loaded.sampling))[0].tolist()


def generate(worker, where, **settings):
    """`python -m model.generate --weights where`."""
    few = ("--count", "1", "--steps", "1", "--out", "out/a.png", "--device", "cpu")
    return worker.command("model.generate", "--weights", where, *few, **settings)


# ---- successful loads


def test_a_teacher_is_asked_for_beside_flow_maps_only(worker, hub, name, folders, tmp_path):
    folder = save_map(tmp_path / "map", 3)
    with_teacher = files(folder / "teacher")
    (folder / "teacher").rename(tmp_path / "apart")
    hub.model(name, files(folder))
    there = f"from model import weights; found = weights.load({name!r}); print(found.teacher, repr(found.notice))"
    assert worker.run(there).out == "None ''\n"
    assert len([line for line in hub.log if "/teacher/" in line]) == 1
    hub.log.clear()
    hub.model(f"{name}-flow", files(folders[0]))
    draw(worker, f"{name}-flow")
    assert not [line for line in hub.log if "/teacher/" in line]

    damaged = {**with_teacher, "model.safetensors": with_teacher["model.safetensors"][:-1] + b"!"}
    both = {**files(folder), **{f"teacher/{file}": content for file, content in damaged.items()}}
    hub.model(f"{name}-both", both)
    there = there.replace(repr(name), repr(f"{name}-both"))
    outcome = worker.run(there)
    assert outcome.out == "None 'The network that this one was distilled from could not be loaded.'\n"
    assert "sha256" in outcome.err
    hub.log.clear()
    worker.run(there)
    assert [line for line in hub.log if "/teacher/model.safetensors" in line]  # downloaded again


def test_a_revision_is_resolved_once_and_shown(worker, hub, name, folders):
    commit = hub.model(name, files(folders[0])).refs["main"]
    drawn = draw(worker, name)
    assert (drawn.source, drawn.notice) == (f"{name}@{commit}", "")
    assert drawn.picture == draw(worker, folders[0]).picture != draw(worker, folders[1]).picture
    assert [line for line in hub.log if line.startswith("GET /api")] == [f"GET /api/models/{name}/revision/main"]


def test_a_moved_branch_is_picked_up_and_an_old_commit_stays(worker, hub, name, folders):
    repository = hub.model(name, files(folders[0]))
    old, first = repository.refs["main"], draw(worker, name)
    repository.commit("main", files(folders[1]))
    second = draw(worker, name)
    assert second.source == f"{name}@{repository.refs['main']}" != first.source == f"{name}@{old}"
    assert second.picture == draw(worker, folders[1]).picture != first.picture
    hub.log.clear()
    assert draw(worker, f"{name}@{old}") == first
    assert hub.log == []  # a fully cached commit needs no request


@pytest.mark.parametrize("revision", ["next", "refs/pr/1"])
def test_branches_and_pull_requests(worker, hub, name, folders, revision):
    repository = hub.model(name, files(folders[0]))
    commit = repository.commit(revision, files(folders[1]), parent=repository.refs["main"])
    drawn = draw(worker, f"{name}@{revision}")
    assert (drawn.source, drawn.picture) == (f"{name}@{commit}", draw(worker, folders[1]).picture)


def test_sampling_defaults_come_from_sampling_json(worker, hub, name, folders):
    hub.model(name, files(folders[0]) | {"sampling.json": b'{"steps": 4, "guidance": 3.0, "time_shift": 0.5}'})
    assert draw(worker, name).sampling == {"steps": 4, "guidance": 3.0, "time_shift": 0.5}


def test_weights_are_not_used_while_their_sampling_defaults_are_out_of_reach(worker, hub, name, folders):
    hub.model(name, files(folders[0]))
    hub.faults = [Fault("HEAD .*/sampling.json", "cut")]
    assert_sentence(generate(worker, name), GENERATE, f"no connection to {hub.address}")
    hub.faults = []
    assert draw(worker, name).sampling == draw(worker, folders[0]).sampling


UNREACHABLE = {
    "cut": Fault(".*", "cut"),
    "hang": Fault(".*", "hang"),
    "5xx": Fault(".*", Refusal(503)),
    "429": Fault(".*", Refusal(429, **{"Retry-After": "60"})),
}


def test_a_warm_cache_draws_without_the_hub(worker, hub, name, folders):
    hub.model(name, files(folders[0]))
    before = draw(worker, name)
    for fault in UNREACHABLE:
        hub.faults, hub.log[:] = [UNREACHABLE[fault]], []
        assert draw(worker, name, limits=IMPATIENT) == before, fault
        assert hub.log, fault  # a request was sent first


def test_the_hub_is_believed_before_the_cache(worker, hub, name, folders):
    hub.model(name, files(folders[0]))
    draw(worker, name)
    hub.repositories.clear()
    assert_sentence(generate(worker, name), GENERATE, "there is no such repository")


def test_a_private_repository_opens_with_a_token(worker, hub, name, folders):
    hub.model(name, files(folders[0]), private=True)
    assert_sentence(generate(worker, name, HF_TOKEN=""), GENERATE, "no such repository, or it is private")
    assert generate(worker, name).status == 0


# ---- failed loads


def whole(**about):
    return lambda hub, name, folder: hub.model(name, files(folder), **about)


def without(missing):
    def put(hub, name, folder):
        hub.model(name, {file: content for file, content in files(folder).items() if file != missing})

    return put


def damaged(file, change):
    def put(hub, name, folder):
        hub.model(name, files(folder)).damage[file] = change(files(folder)[file])

    return put


def flipped(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


def nothing(hub, name, folder):
    pass


def faulty(pattern, action):
    def put(hub, name, folder):
        hub.model(name, files(folder))
        hub.faults = [Fault(pattern, action)]

    return put


# content of the Hub, suffix of the name, token, expected message
COLD = {
    "missing": (nothing, "", "hf_writer", "there is no such repository, or it is private; check the name"),
    "missing, without a token": (nothing, "", "", "there is no such repository, or it is private; check the name"),
    "gated": (whole(gated=True), "", "hf_writer", "its owner must grant you access; request it on its page"),
    "gated, without a token": (whole(gated=True), "", "", "its owner must grant you access; request it on its page"),
    "wrong revision": (whole(), "@nowhere", "hf_writer", "has no such revision"),
    "wrong commit": (whole(), "@" + "0" * 40, "hf_writer", "has no such revision"),
    "unknown token": (whole(), "", "hf_stranger", "the token is not valid"),
    "no config": (without("config.json"), "", "", "it has no config.json"),
    "no sampling defaults": (without("sampling.json"), "", "", "it has no sampling.json"),
    "no tensors": (without("model.safetensors"), "", "", "it has no model.safetensors"),
    "no hashes": (without("metrics.json"), "", "", "it has no metrics.json"),
    "too many requests": (faulty("GET", Refusal(429, **{"Retry-After": "41"})), "", "", "try again in 41 seconds"),
    "5xx": (faulty("GET", Refusal(500)), "", "", "the Hub answered 500"),
    "cut": (faulty("GET", "cut"), "", "", "no connection to http://127.0.0.1"),
    "a page to log in": (faulty("GET /api", Refusal(200)), "", "", "does not answer like the Hub"),
    "flipped": (damaged("model.safetensors", flipped), "", "", "model.safetensors is damaged"),
    "flipped config": (damaged("config.json", lambda b: b.replace(b"32", b"64")), "", "", "does not match the network"),
    "truncated defaults": (damaged("sampling.json", lambda b: b[:-9]), "", "", "sampling.json is not valid JSON"),
    "truncated": (damaged("model.safetensors", lambda content: content[:-1000]), "", "", "should be of size"),
}


@pytest.mark.parametrize(("put", "revision", "token", "words"), COLD.values(), ids=COLD)
def test_each_fault_with_a_cold_cache_is_one_sentence(worker, hub, name, folders, put, revision, token, words):
    put(hub, name, folders[0])
    assert_sentence(generate(worker, name + revision, HF_TOKEN=token), GENERATE, words)


def test_a_hub_that_does_not_answer_is_given_up(worker, hub, name, folders):
    faulty("GET", "hang")(hub, name, folders[0])
    assert_sentence(generate(worker, name), GENERATE, f"no connection to {hub.address} (no answer within 6 s)")


def test_a_hub_that_does_not_answer_for_the_first_file_is_given_up(worker, hub, name, folders):
    faulty("HEAD", "hang")(hub, name, folders[0])
    assert_sentence(generate(worker, name, limits=IMPATIENT), GENERATE, "no answer within 1 s")
    assert len(hub.log) == 2  # the commit and the file, once each: no retry by the client


def test_a_damaged_download_is_not_kept(worker, hub, name, folders):
    damaged("model.safetensors", flipped)(hub, name, folders[0])
    assert_sentence(generate(worker, name), GENERATE, f"{name}/model.safetensors is damaged")
    hub.repositories["model", name].damage.clear()
    assert draw(worker, name).picture == draw(worker, folders[0]).picture


def downloads(hub) -> int:
    """How often the tensors were requested."""
    return len([line for line in hub.log if re.fullmatch("GET .*safetensors", line)])


def test_a_download_cut_once_is_resumed(worker, hub, name, folders):
    whole()(hub, name, folders[0])
    hub.faults = [Fault("GET .*safetensors", "short", times=1)]
    assert draw(worker, name).picture == draw(worker, folders[0]).picture
    assert downloads(hub) == 2


def test_a_download_that_is_always_cut_is_tried_again_and_given_up(worker, hub, name, folders):
    faulty("GET .*safetensors", "short")(hub, name, folders[0])
    assert_sentence(generate(worker, name, hurry=True), GENERATE, f"no connection to {hub.address}")
    assert downloads(hub) > 1


@pytest.mark.parametrize("where", ["nowhere", "a/b/c", "me/tiny@", "../weights", "me/ti ny"])
def test_a_name_of_neither_kind_is_refused_without_a_request(worker, hub, where):
    words = f"{where} is neither a folder nor a Hub repository USER/NAME[@revision]"
    assert_sentence(generate(worker, where), GENERATE, words)
    assert hub.log == []


def test_the_bundled_weights_stand_in_with_the_reason(worker, hub, name, house):
    """The notice for visitors only names the missing weights; the reason is in the log."""
    bundled = draw(worker, house / "weights")
    notice = f"Drawn with the bundled weights, because {name} could not be loaded."
    assert draw(worker, name, load="load_or_bundled") == bundled._replace(source="bundled", notice=notice)

    hub.faults = [Fault(".*", "hang")]
    outcome = worker.run(DRAW.format(load="load_or_bundled", where=name), limits=IMPATIENT)
    assert Drawn(*json.loads(outcome.out)) == bundled._replace(source="bundled", notice=notice)
    assert f"no connection to {hub.address} (no answer within 1 s)" in outcome.err


def alone(house, home: Path, *command: str, **variables: str) -> subprocess.Popen:
    """A command in a separate process, with a separate cache and no reachable Hub."""
    variables = environment(NOWHERE, home, PYTHONPATH=str(house), **variables)
    command = [sys.executable, *command]
    return subprocess.Popen(
        command, cwd=house, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen) -> subprocess.CompletedProcess:
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_without_a_network_the_page_stands_in_or_refuses(house, tmp_path):
    strict = alone(house, tmp_path, "app.py", "--weights", "me/tiny", "--strict-weights")
    offline = alone(house, tmp_path, "-m", "model.generate", "--weights", "me/tiny", HF_HUB_OFFLINE="1")
    with page(house, "--weights", "me/tiny", **environment(NOWHERE, tmp_path)) as client:
        assert close(client.predict("7", 5, api_name="/draw"), seven(house / "weights"))
        assert "because me/tiny could not be loaded" in json.dumps(client.config)
        assert NOWHERE not in json.dumps(client.config)
    assert_sentence(ended(strict), "python app.py", f"no connection to {NOWHERE}")
    assert_sentence(ended(offline), GENERATE, "HF_HUB_OFFLINE")


# ---- olah


@pytest.fixture(scope="module")
def olah_python(request):
    """A Python with olah, in an environment that is created once and kept in pytest's cache."""
    home = request.config.cache.mkdir("olah")
    python = home / OLAH / "bin" / "python"
    if not (home / OLAH / "ready").exists():
        shutil.rmtree(home / OLAH, ignore_errors=True)
        venv.create(home / OLAH, with_pip=True)
        install = subprocess.run([python, "-m", "pip", "install", "-q", OLAH], capture_output=True, text=True)
        if install.returncode:
            stop = pytest.fail if os.environ.get("REQUIRE_OLAH") else pytest.skip
            stop(f"{OLAH} cannot be installed with pip: {install.stderr.strip().splitlines()[-1]}")
        (home / OLAH / "ready").touch()
    return python


@pytest.fixture(scope="module")
def olah(olah_python, folders, tmp_path_factory):
    """A mirror with one model, `me/tiny`; yields its address and the commit."""
    home = tmp_path_factory.mktemp("olah")
    model = home / "mirrors" / "models" / "me" / "tiny"
    shutil.copytree(folders[0], model)
    git = ["git", "-C", str(model), "-c", "user.name=me", "-c", "user.email=me@localhost"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "Weights"]):
        subprocess.run([*git, *arguments], check=True, env=environment("", home) | {"GIT_CONFIG_GLOBAL": "/dev/null"})
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    (home / "olah.toml").write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nmirrors-path = ["{home / "mirrors"}"]\n'
        f'repos-path = "{home / "repos"}"\nmirror-netloc = "127.0.0.1:{port}"\n[accessibility]\noffline = true\n'
    )
    with open(home / "log", "w", encoding="utf-8") as log:
        command = [olah_python.with_name("olah-cli"), "--config", home / "olah.toml", "--log-path", home / "logs"]
        server = subprocess.Popen(
            command, cwd=home, env=environment(address, home), stdout=log, stderr=subprocess.STDOUT
        )

    def up():
        assert server.poll() is None, (home / "log").read_text()
        try:
            return urlopen(f"{address}/api/models/me/tiny/revision/main", timeout=5).status == 200
        except (URLError, OSError):
            return False

    try:
        wait_until(up, 120, "olah is up")
        yield address, commit
    finally:
        server.terminate()
        server.wait(10)


def test_weights_and_page_from_a_real_mirror(olah, worker, house, folders, tmp_path):
    address, commit = olah
    variables = environment(address, tmp_path / "page")
    with (
        Worker(house, **environment(address, tmp_path / "home")) as from_olah,
        page(house, "--weights", "me/tiny", **variables) as client,
    ):
        assert close(client.predict("7", 5, api_name="/draw"), seven(folders[0]))
        assert draw(from_olah, "me/tiny") == draw(worker, folders[0])._replace(source=f"me/tiny@{commit}")
        code = "from model.dit import DiT; DiT.from_pretrained('me/tiny', strict=True)"
        assert from_olah.run(code).status == 0
    for home in (tmp_path / "home", tmp_path / "page"):
        cached = home / "hub" / "models--me--tiny" / "snapshots" / commit
        for file in weights.FILES:
            assert (cached / file).read_bytes() == (folders[0] / file).read_bytes()
