"""Loading from the Hub: the unmodified client, from processes of its own, against the double and against olah, a real mirror."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import venv
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch

from model import generate, weights
from tests.hub.double import Double, Fault, Refusal
from tests.hub.worker import ROOT, Worker, build, environment, page, save_weights
from tests.server import close, wait_until

OLAH = "olah==0.5.4"
DRAW = """
import sys, torch
from model import generate, weights
def load(where):
    found = weights.{load}(where)
    pixels = torch.cat(list(generate.draw(found.network, torch.arange(12), 5, 3, 2.0)))
    print(found.source, pixels.numpy().tobytes().hex()[:4000], found.notice, sep="\\n")
load({where!r})
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return build(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of weights that draw different pictures."""
    return [save_weights(tmp_path_factory.mktemp("weights") / str(seed), seed) for seed in (3, 4)]


@pytest.fixture(scope="module")
def hub():
    with Double() as double:
        yield double


@pytest.fixture(scope="module")
def worker(house, hub, tmp_path_factory):
    with Worker(house, **environment(hub.address, tmp_path_factory.mktemp("home"))) as process:
        yield process


@pytest.fixture
def name(request, hub):
    """A repository of the test's own, so that nothing of it is in the cache; the double is whole again afterwards."""
    hub.log.clear()
    yield "me/" + re.sub(r"\W+", "-", request.node.name)[:60].strip("-")
    hub.repositories.clear()
    hub.faults.clear()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def draw(worker, where, load: str = "load", **variables):
    """What `weights.load` finds there: its source, its picture and its notice."""
    outcome = worker.run(DRAW.format(load=load, where=str(where)), **variables)
    assert outcome.status == 0, outcome.err
    return outcome.out.splitlines()


def seven(folder: Path) -> list[list[int]]:
    """What the page's `/draw` returns for a 7, seed 5, 3 steps, guidance 2, with the weights in a folder."""
    network, _ = weights.read(folder)
    return next(generate.draw(network, torch.tensor([7]), seed=5, steps=3, guidance=2.0))[0].tolist()


def command(worker, where, **variables):
    """`python -m model.generate --weights where`."""
    return worker.command(
        "model.generate",
        "--weights",
        where,
        "--count",
        "1",
        "--steps",
        "1",
        "--out",
        "out/a.png",
        "--device",
        "cpu",
        **variables,
    )


def one_sentence(outcome, words: str) -> bool:
    return outcome.status == 2 and bool(
        re.fullmatch(rf"python -m model.generate: [^\n]*{re.escape(words)}[^\n]*\n", outcome.err)
    )


# ---- what works


def test_a_revision_is_resolved_once_and_shown(worker, hub, name, folders):
    commit = hub.model(name, files(folders[0])).refs["main"]
    source, picture, notice = [*draw(worker, name), ""][:3]
    assert (source, notice) == (f"{name}@{commit}", "")
    assert picture == draw(worker, folders[0])[1] != draw(worker, folders[1])[1]
    assert [line for line in hub.log if line.startswith("GET /api")] == [f"GET /api/models/{name}/revision/main"]


def test_a_moved_branch_is_picked_up_and_an_old_commit_stays(worker, hub, name, folders):
    repository = hub.model(name, files(folders[0]))
    old, first = repository.refs["main"], draw(worker, name)[1]
    repository.commit("main", files(folders[1]))
    source, second = draw(worker, name)[:2]
    assert (source, second) == (f"{name}@{repository.refs['main']}", draw(worker, folders[1])[1])
    hub.log.clear()
    assert draw(worker, f"{name}@{old}")[:2] == [f"{name}@{old}", first]
    assert hub.log == []  # a whole commit in the cache needs nobody


@pytest.mark.parametrize("revision", ["next", "refs/pr/1"])
def test_branches_and_pull_requests(worker, hub, name, folders, revision):
    repository = hub.model(name, files(folders[0]))
    commit = repository.commit(revision, files(folders[1]), parent=repository.refs["main"])
    assert draw(worker, f"{name}@{revision}")[:2] == [f"{name}@{commit}", draw(worker, folders[1])[1]]


UNREACHABLE = {
    "cut": [Fault(".*", "cut")],
    "hang": [Fault(".*", "hang")],
    "5xx": [Fault(".*", Refusal(503))],
    "429": [Fault(".*", Refusal(429, **{"Retry-After": "60"}))],
}


@pytest.mark.parametrize("faults", UNREACHABLE.values(), ids=UNREACHABLE)
def test_a_warm_cache_draws_without_the_hub(worker, hub, name, folders, faults):
    hub.model(name, files(folders[0]))
    before = draw(worker, name)
    hub.faults = faults
    outcome = worker.run(DRAW.format(load="load", where=name))
    assert (outcome.status, outcome.out.splitlines()) == (0, before)
    assert outcome.seconds < 10


def test_the_hub_has_the_word_before_the_cache(worker, hub, name, folders):
    hub.model(name, files(folders[0]))
    draw(worker, name)
    hub.repositories.clear()
    assert one_sentence(command(worker, name), "there is no such repository")


def test_a_private_repository_opens_with_a_token(worker, hub, name, folders):
    hub.model(name, files(folders[0]), private=True)
    assert one_sentence(command(worker, name, HF_TOKEN=""), "no such repository, or it is private")
    assert command(worker, name).status == 0


# ---- what does not


def without(*names):
    return lambda hub, name, folder: hub.model(
        name, {key: value for key, value in files(folder).items() if key not in names}
    )


def damaged(file, change):
    def put(hub, name, folder):
        repository = hub.model(name, files(folder))
        repository.damage[file] = change(files(folder)[file])

    return put


def flipped(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


def nothing(hub, name, folder):
    pass


def whole(hub, name, folder):
    hub.model(name, files(folder))


def gated(hub, name, folder):
    hub.model(name, files(folder), gated=True)


def private(hub, name, folder):
    hub.model(name, files(folder), private=True)


def faulty(*faults):
    def put(hub, name, folder):
        whole(hub, name, folder)
        hub.faults = [Fault(*fault) for fault in faults]

    return put


# what the Hub holds, what follows the name, the token, what the sentence says
COLD = {
    "missing": (nothing, "", "hf_writer", "there is no such repository, or it is private; check the name"),
    "missing, without a token": (nothing, "", "", "there is no such repository, or it is private; check the name"),
    "private": (private, "", "", "there is no such repository, or it is private"),
    "gated": (gated, "", "hf_writer", "its owner gives access on request; ask on its page"),
    "gated, without a token": (gated, "", "", "its owner gives access on request; ask on its page"),
    "wrong revision": (whole, "@nowhere", "hf_writer", "has no such revision"),
    "wrong commit": (whole, "@" + "0" * 40, "hf_writer", "has no such revision"),
    "unknown token": (whole, "", "hf_stranger", "the token is not valid"),
    "no config": (without("config.json"), "", "", "it holds no config.json"),
    "no tensors": (without("model.safetensors"), "", "", "it holds no model.safetensors"),
    "no hashes": (without("metrics.json"), "", "", "it holds no metrics.json"),
    "too many requests": (faulty(("GET", Refusal(429, **{"Retry-After": "41"}))), "", "", "try again in 41 seconds"),
    "5xx": (faulty(("GET", Refusal(500))), "", "", "the Hub answers 500"),
    "cut": (faulty(("GET", "cut")), "", "", "no connection to http://127.0.0.1"),
    "no answer": (faulty(("GET", "hang")), "", "", "no answer within 6 s"),
    "no answer to the first file": (faulty(("HEAD", "hang")), "", "", "no answer within 6 s"),
    "a page to log in": (faulty(("GET /api", Refusal(200))), "", "", "does not answer as the Hub does"),
    "flipped": (damaged("model.safetensors", flipped), "", "", "model.safetensors is damaged"),
    "flipped config": (
        damaged("config.json", lambda content: content.replace(b"32", b"64")),
        "",
        "",
        "config.json is damaged",
    ),
    "truncated": (damaged("model.safetensors", lambda content: content[:-1000]), "", "", "should be of size"),
    "always cut in the middle": (faulty(("GET .*safetensors", "short")), "", "", "no connection to http://127.0.0.1"),
}


@pytest.mark.parametrize(("put", "revision", "token", "words"), COLD.values(), ids=COLD)
def test_each_fault_with_a_cold_cache_is_one_sentence(worker, hub, name, folders, put, revision, token, words):
    put(hub, name, folders[0])
    outcome = command(worker, name + revision, HF_TOKEN=token)
    assert one_sentence(outcome, words), outcome
    assert outcome.seconds < 10


def test_a_damaged_download_is_not_kept(worker, hub, name, folders):
    damaged("model.safetensors", flipped)(hub, name, folders[0])
    assert one_sentence(command(worker, name), f"{name}/model.safetensors is damaged")
    hub.repositories["model", name].damage.clear()
    assert draw(worker, name)[1] == draw(worker, folders[0])[1]


def test_a_download_cut_once_is_mended(worker, hub, name, folders):
    whole(hub, name, folders[0])
    hub.faults = [Fault("GET .*safetensors", "short", times=1)]
    assert draw(worker, name)[1] == draw(worker, folders[0])[1]


@pytest.mark.parametrize("where", ["nowhere", "a/b/c", "me/tiny@", "../weights", "me/ti ny"])
def test_what_is_no_name_is_said_without_a_request(worker, hub, name, where):
    assert one_sentence(command(worker, where), "is neither a folder nor a Hub repository USER/NAME[@revision]")
    assert hub.log == []


def test_the_bundled_weights_stand_in_with_the_reason(worker, hub, name, house):
    source, picture, notice = draw(worker, name, load="load_or_bundled")
    assert (source, picture) == ("bundled", draw(worker, house / "weights")[1])
    assert notice == f"Drawn with the bundled weights: {name} is no folder here, and not to be had from the Hub: " + (
        "there is no such repository, or it is private; check the name, or log in with `hf auth login`."
    )


def alone(house, endpoint: str, home: Path, *command: str, **variables: str):
    """A command in a process of its own, with a cache of its own."""
    variables = environment(endpoint, home, PYTHONPATH=str(house), **variables)
    return subprocess.run(
        [sys.executable, *command], cwd=house, env=variables, capture_output=True, text=True, timeout=60
    )


STAND_IN = """
from time import monotonic
from model import weights
started = monotonic()
found = weights.load_or_bundled("me/tiny")
print(found.source, monotonic() - started, found.notice, sep="|")
"""


@pytest.mark.parametrize("port_is", ["closed", "silent"])
def test_without_a_network_the_bundled_weights_stand_in_within_10_s(house, tmp_path, port_is):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if port_is == "closed":
            listener.close()
        run = alone(house, endpoint, tmp_path, "-c", STAND_IN)
    source, seconds, notice = run.stdout.split("|")
    assert source == "bundled"
    assert float(seconds) < 10
    assert f"no connection to {endpoint}" in notice


def test_the_page_stands_in_or_refuses(house, tmp_path):
    if "--strict-weights" not in ((ROOT / "app.py").read_text() if (ROOT / "app.py").exists() else ""):
        pytest.skip("there is no app.py that knows --strict-weights")
    nowhere = "http://127.0.0.1:9"
    with page(house, "--weights", "me/tiny", **environment(nowhere, tmp_path)) as client:
        assert close(client.predict("7", 5, 3, 2.0, api_name="/draw"), seven(house / "weights"))
        assert f"no connection to {nowhere}" in json.dumps(client.config)
    run = alone(house, nowhere, tmp_path, "app.py", "--weights", "me/tiny", "--strict-weights")
    assert run.returncode == 2
    assert re.fullmatch(r"python app.py: [^\n]*no connection to [^\n]*\n", run.stderr)


def test_offline_by_wish_is_said(house, tmp_path):
    run = alone(
        house, "http://127.0.0.1:9", tmp_path, "-m", "model.generate", "--weights", "me/tiny", HF_HUB_OFFLINE="1"
    )
    assert run.returncode == 2
    assert re.fullmatch(r"python -m model.generate: [^\n]*HF_HUB_OFFLINE[^\n]*\n", run.stderr)


# ---- olah


@pytest.fixture(scope="module")
def olah_python(request):
    """A Python with olah, in an environment that is made once and kept in pytest's cache."""
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
    """The mirror with one model, `me/tiny`: yields its address and the commit."""
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
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nmirrors-path = ["{home / "mirrors"}"]\nrepos-path = "{home / "repos"}"\n'
        f'mirror-netloc = "127.0.0.1:{port}"\n[accessibility]\noffline = true\n'
    )
    with open(home / "log", "w") as log:
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
        wait_until(up, 40, "olah is up")
        yield address, commit
    finally:
        server.terminate()
        server.wait(10)


def test_weights_come_from_a_real_mirror_bit_for_bit(olah, house, folders, tmp_path):
    address, commit = olah
    with Worker(house, **environment(address, tmp_path)) as worker:
        source, picture = draw(worker, "me/tiny")[:2]
        assert (source, picture) == (f"me/tiny@{commit}", draw(worker, folders[0])[1])
        code = "from model.dit import DiT; DiT.from_pretrained('me/tiny', strict=True)"
        assert worker.run(code).status == 0
    cached = next(tmp_path.glob(f"hub/models--me--tiny/snapshots/{commit}"))
    for file in weights.FILES:
        assert (cached / file).read_bytes() == (folders[0] / file).read_bytes()


def test_the_page_runs_from_a_real_mirror(olah, house, folders, tmp_path):
    if not (ROOT / "app.py").exists():
        pytest.skip("there is no app.py to start")
    address, _ = olah
    with page(house, "--weights", "me/tiny", **environment(address, tmp_path)) as client:
        drawn = client.predict("7", 5, 3, 2.0, api_name="/draw")
    assert close(drawn, seven(folders[0]))
