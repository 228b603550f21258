"""Publishing: the unmodified client of the Hub against the double, over HTTP, from a process of its own."""

import json
import re
import subprocess
import sys

import pytest
import torch
import yaml

from model import generate, weights
from tests.hub.double import Double, Fault, Refusal
from tests.hub.worker import ROOT, SECRET, Worker, build, environment, page, save_weights
from tests.server import close

WEIGHTS_FILES = {"README.md", "config.json", "metrics.json", "model.safetensors", "samples.png"}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return build(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def hub():
    with Double() as double:
        yield double


@pytest.fixture(scope="module")
def worker(house, hub, tmp_path_factory):
    with Worker(house, **environment(hub.address, tmp_path_factory.mktemp("home"))) as process:
        yield process


@pytest.fixture(autouse=True)
def clean(hub):
    hub.repositories.clear()
    hub.objects.clear()
    hub.faults.clear()
    hub.log.clear()


def publish(worker, *arguments, **variables):
    return worker.command("training.publish", *arguments, **variables)


def published(hub, name: str, kind: str = "model", ref: str = "main") -> dict[str, bytes]:
    """The files at the end of a branch, without the one that the Hub itself puts there."""
    repository = hub.repositories[kind, name]
    return {
        path: content for path, content in repository.commits[repository.refs[ref]].items() if path != ".gitattributes"
    }


def digits(folder, labels=range(12)) -> torch.Tensor:
    """Classes as the weights in a folder draw them."""
    network, _ = weights.read(folder)
    return torch.cat(list(generate.draw(network, torch.tensor(list(labels)), seed=5, steps=3, guidance=2.0)))


# ---- weights


def test_weights_go_up_as_they_stand(worker, hub, house):
    outcome = publish(worker, "weights", "me/tiny")
    assert (outcome.status, outcome.err) == (0, "")
    sent = published(hub, "me/tiny")
    assert set(sent) == WEIGHTS_FILES
    for name in WEIGHTS_FILES - {"README.md"}:
        assert sent[name] == (house / "weights" / name).read_bytes()
    commit = hub.repositories["model", "me/tiny"].refs["main"]
    assert f"{hub.address}/me/tiny: now at commit {commit}\n" in outcome.out
    assert outcome.out.endswith(f"python app.py --weights me/tiny@{commit}\n")


def test_a_card_is_written_where_there_is_none(worker, hub):
    publish(worker, "weights", "me/tiny")
    card = published(hub, "me/tiny")["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert "--weights me/tiny" in card


def test_the_same_content_again_makes_no_commit(worker, hub):
    publish(worker, "weights", "me/tiny")
    before = dict(hub.repositories["model", "me/tiny"].refs)
    hub.log.clear()
    outcome = publish(worker, "weights", "me/tiny")
    assert (outcome.status, hub.repositories["model", "me/tiny"].refs) == (0, before)
    assert f"nothing has changed since commit {before['main']}" in outcome.out
    assert not [line for line in hub.log if "/commit/" in line or line.startswith("PUT")]


def test_a_dry_run_asks_nobody(worker, hub):
    outcome = publish(worker, "weights", "me/tiny", "--dry-run", HF_TOKEN="")
    assert (outcome.status, hub.log) == (0, [])
    assert set(re.findall(r"bytes  (.*)", outcome.out)) == WEIGHTS_FILES


def test_a_branch_is_made_and_main_stays(worker, hub):
    publish(worker, "weights", "me/tiny")
    before = hub.repositories["model", "me/tiny"].refs["main"]
    (other := worker.house / "runs" / "b" / "weights").parent.mkdir(exist_ok=True)
    save_weights(other, 1)
    for _ in range(2):  # made, then there
        outcome = publish(worker, "weights", "me/tiny", "--from", other, "--branch", "next")
        assert (outcome.status, outcome.err) == (0, "")
    refs = hub.repositories["model", "me/tiny"].refs
    assert refs["main"] == before != refs["next"]
    assert published(hub, "me/tiny", ref="next")["model.safetensors"] == (other / "model.safetensors").read_bytes()


def test_a_pull_request_leaves_main_alone(worker, hub, house):
    hub.model("me/tiny", {"README.md": b"---\nlicense: mit\n---\n"})
    before = hub.repositories["model", "me/tiny"].refs["main"]
    outcome = publish(worker, "weights", "me/tiny", "--pr")
    refs = hub.repositories["model", "me/tiny"].refs
    assert (outcome.status, refs["main"], set(refs)) == (0, before, {"main", "refs/pr/1"})
    assert f"{hub.address}/me/tiny/discussions/1: now at commit {refs['refs/pr/1']}\n" in outcome.out


def test_private(worker, hub):
    assert publish(worker, "weights", "me/secret", "--private").status == 0
    assert hub.repositories["model", "me/secret"].private
    assert publish(worker, "weights", "me/secret").status == 0  # the second time without the flag changes nothing
    assert hub.repositories["model", "me/secret"].private


def test_round_trip_from_training_to_the_same_picture(worker, hub, house, tmp_path):
    """Train a little, publish, load by both ways, draw: not one pixel differs."""
    code = """
import torch
from training import data, train
data.load = lambda *a: (torch.randint(0, 256, (256, 28, 28), dtype=torch.uint8), torch.arange(256) % 10)
flags = "--name tiny --width 32 --heads 2 --depth 1 --batch 32 --epochs 1 --blank-images 8 --warmup-steps 1 --no-compile --device cpu"
train.main(flags.split())
"""
    assert worker.run(code).status == 0
    here = house / "runs" / "tiny" / "weights"
    assert publish(worker, "weights", "me/trained", "--from", "runs/tiny/weights").status == 0
    code = """
import torch
from model import generate, weights
from model.dit import DiT
for network in (weights.load("me/trained", dtype=torch.float32).network, DiT.from_pretrained("me/trained", strict=True)):
    print(torch.cat(list(generate.draw(network, torch.arange(12), 5, 3, 2.0))).numpy().tobytes().hex())
"""
    drawn = worker.run(code)
    expected = digits(here).numpy().tobytes().hex()
    assert drawn.err == ""
    assert [line for line in drawn.out.splitlines() if len(line) > 1000] == [expected, expected]
    assert len(set(digits(here).flatten().tolist())) > 10  # a picture, not a blank


# ---- what is not published: the folder is no good


def flip(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def edit(folder, change):
    metrics = json.loads((folder / "metrics.json").read_text())
    change(metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics))


def overflow(network):
    """Finite weights that draw infinity: 60,000 · 60,000 and more of it, step by step."""
    for parameter in network.parameters():
        parameter.data.fill_(60_000.0)


ROW = {"settings": {"sha256": "0" * 64, "extractor": "0" * 64, "steps": 20, "guidance": 1.0}}
UNFIT = {
    "flipped byte": (flip, "model.safetensors is damaged"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "no hashes": (
        lambda folder: edit(folder, lambda metrics: metrics.pop("sha256")),
        "does not say by sha256 which weights",
    ),
    "figures of others": (
        lambda folder: edit(folder, lambda metrics: metrics.update(evaluation=ROW)),
        "figures of other weights",
    ),
    "sweep of others": (
        lambda folder: edit(folder, lambda metrics: metrics.update(sweeps=[ROW])),
        "figures of other weights",
    ),
    "not a number": (lambda folder: save_weights(folder, 0, overflow), "not finite"),
}


@pytest.mark.parametrize(("spoil", "words"), UNFIT.values(), ids=UNFIT)
def test_unfit_weights_are_refused_before_any_request(worker, hub, tmp_path, spoil, words):
    folder = save_weights(tmp_path / "weights", 0)
    spoil(folder)
    outcome = publish(worker, "weights", "me/tiny", "--from", folder)
    assert (outcome.status, hub.log) == (2, [])
    assert re.fullmatch(rf"python -m training.publish: [^\n]*{re.escape(words)}[^\n]*\n", outcome.err)


def test_a_name_without_its_user_is_refused(worker, hub):
    outcome = publish(worker, "weights", "tiny")
    assert (outcome.status, hub.log) == (2, [])
    assert outcome.err == "python -m training.publish: a repository is USER/NAME, not 'tiny'\n"


def test_a_card_with_other_figures_is_refused(worker, hub, tmp_path):
    folder = save_weights(tmp_path / "weights", 0)
    names = (
        "fd_ratio",
        "fd_train",
        "fd_test",
        "kid",
        "precision",
        "recall",
        "density",
        "coverage",
        "accuracy",
        "copies",
    )
    row = {"settings": {**ROW["settings"], "sha256": weights.sha256(folder / "model.safetensors")}}
    row |= {"drawn": dict.fromkeys(names, 0.5), "real": dict.fromkeys(names, 0.25)}
    edit(folder, lambda metrics: metrics.update(evaluation=row))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\nFD ÷ floor: 1.00, the best there is.\n")
    outcome = publish(worker, "weights", "me/tiny", "--from", folder)
    assert (outcome.status, hub.log) == (2, [])
    assert "README.md does not show the figures" in outcome.err


# ---- what is not published: the Hub, or the way to it


def limit(seconds: int) -> Refusal:
    return Refusal(429, "Too many requests", **{"Retry-After": str(seconds)})


WEIGHTS, SPACE = ("weights", "me/tiny"), ("space", "me/page", "--weights", "me/there")
COMMIT, CREATE, ASK = r"POST .*/commit/", r"POST /api/repos/create", r"GET /api/models/me/tiny"
RATE = Refusal(429, "", RateLimit='"api";r=0;t=55')
# what is asked, the token, what the Hub does, what the sentence says
FAULTS = {
    "no token": (WEIGHTS, "", [], "there is no token"),
    "unknown token": (WEIGHTS, "hf_stranger", [], "the token is not valid"),
    "token that only reads": (WEIGHTS, "hf_reader", [], "the token has no permission"),
    "somebody else's name": (("weights", "you/tiny"), "hf_writer", [], "the token has no permission"),
    "public already": (("weights", "me/there", "--private"), "hf_writer", [], "is public already"),
    "gated": (WEIGHTS, "hf_writer", [Fault(ASK, Refusal(403, "", "GatedRepo"))], "gives access on request"),
    "CPU Space on a free account": (
        (*SPACE, "--hardware", "cpu-basic"),
        "hf_writer",
        [],
        "a free account can have two ZeroGPU Spaces",
    ),
    "third Space on a free account": (
        SPACE,
        "hf_writer",
        [Fault(CREATE, Refusal(402))],
        "a free account can have two ZeroGPU Spaces",
    ),
    "too many requests": (WEIGHTS, "hf_writer", [Fault(CREATE, limit(17))], "try again in 17 seconds"),
    "too many requests, in the Hub's own words": (
        WEIGHTS,
        "hf_writer",
        [Fault(COMMIT, RATE)],
        "try again in 55 seconds",
    ),
    "5xx at the commit": (
        WEIGHTS,
        "hf_writer",
        [Fault(COMMIT, Refusal(503, "Down for a while"))],
        "answers 503 (Down for a while)",
    ),
    "5xx at a Space's commit": (SPACE, "hf_writer", [Fault(COMMIT, Refusal(500))], "the Hub answers 500"),
    "5xx in the upload, all six times": (WEIGHTS, "hf_writer", [Fault("PUT", Refusal(502))], "the Hub answers 502"),
    "cut at the commit": (WEIGHTS, "hf_writer", [Fault(COMMIT, "cut")], "check the network"),
    "no answer from the start": (WEIGHTS, "hf_writer", [Fault(ASK, "hang")], "no answer within 6 s"),
    "wrong revision of the weights": ((*SPACE[:-1], "me/there@nowhere"), "hf_writer", [], "has no such revision"),
    "missing weights": ((*SPACE[:-1], "me/nowhere"), "hf_writer", [], "no such repository"),
}


@pytest.mark.parametrize(("arguments", "token", "faults", "words"), FAULTS.values(), ids=FAULTS)
def test_each_fault_is_one_sentence_and_nothing_is_half_published(worker, hub, house, arguments, token, faults, words):
    page_or_skip(arguments)
    there(hub, house)
    hub.faults = faults
    outcome = publish(worker, *arguments, HF_TOKEN=token)
    assert outcome.status == 2, outcome
    assert re.fullmatch(rf"python -m training.publish: [^\n]*{re.escape(words)}[^\n]*\n", outcome.err), outcome.err
    new = {name: repository for name, repository in hub.repositories.items() if name != ("model", "me/there")}
    assert all(set(tree) == {".gitattributes"} for repository in new.values() for tree in repository.commits.values())
    assert outcome.seconds < (40 if "all six" in str(words) or "502" in words else 10)


def test_no_answer_in_the_middle_of_an_upload(worker, hub):
    hub.faults = [Fault(COMMIT, "hang")]
    code = "from training import publish; publish.UPLOAD_SECONDS = 2.0; publish.main(['weights', 'me/tiny'])"
    outcome = worker.run(code)
    assert (outcome.status, "no answer within 2 s" in outcome.err) == (2, True)
    assert not published(hub, "me/tiny")


def test_a_connection_cut_once_in_the_upload_is_mended(worker, hub):
    hub.faults = [Fault("PUT", "cut", times=1)]
    outcome = publish(worker, "weights", "me/tiny")
    assert (outcome.status, outcome.err) == (0, "")
    assert set(published(hub, "me/tiny")) == WEIGHTS_FILES


def test_after_a_lost_answer_the_second_push_finds_everything_there(worker, hub):
    publish(worker, "weights", "me/tiny")
    hub.faults = [Fault(r"GET /api/models/me/tiny", "cut", times=1)]
    assert publish(worker, "weights", "me/tiny").status == 2
    assert "nothing has changed" in publish(worker, "weights", "me/tiny").out


def test_the_command_itself_ends_with_status_2_and_one_line(house, hub, tmp_path):
    variables = environment(hub.address, tmp_path) | {"HF_TOKEN": "hf_reader", "PYTHONPATH": str(house)}
    command = [sys.executable, "-m", "training.publish", "weights", "me/tiny"]
    run = subprocess.run(command, cwd=house, env=variables, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert re.fullmatch(r"python -m training.publish: me/tiny was not published: [^\n]*\n", run.stderr)


# ---- Spaces


def page_or_skip(arguments):
    absent = [name for name in ("app.py", "requirements.txt", "LICENSE") if not (ROOT / name).exists()]
    if "space" in arguments and absent:
        pytest.skip(f"there is no {', '.join(absent)} to make a Space of")


def there(hub, house, name: str = "me/there", seed: int = 3):
    """Weights that are published already; others than the bundled ones."""
    folder = house / "runs" / f"there{seed}"
    if not folder.exists():
        save_weights(folder, seed)
    return hub.model(name, {path.name: path.read_bytes() for path in folder.iterdir()})


def test_a_space_is_the_page_and_nothing_else(worker, hub, house):
    page_or_skip(SPACE)
    commit = there(hub, house).refs["main"]
    outcome = publish(worker, *SPACE)
    assert (outcome.status, outcome.err) == (0, "")
    sent = published(hub, "me/page", "space")
    code = {f"model/{path.name}" for path in (ROOT / "model").glob("*.py")}
    bundled = {f"weights/{name}" for name in WEIGHTS_FILES - {"README.md"}}
    assert set(sent) == {"app.py", "requirements.txt", "LICENSE", "README.md"} | code | bundled
    assert not [name for name, content in sent.items() if SECRET.encode() in content]

    space = hub.repositories["space", "me/page"]
    assert (space.sdk, space.hardware, space.variables) == ("gradio", "zero-a10g", {"WEIGHTS": f"me/there@{commit}"})
    front = yaml.safe_load(sent["README.md"].decode().split("---")[1])
    assert front["models"] == ["me/there"]
    assert front["preload_from_hub"] == [f"me/there config.json,metrics.json,model.safetensors {commit}"]
    assert (front["sdk"], front["app_file"], front["python_version"]) == ("gradio", "app.py", "3.12")
    assert (front["license"], front["suggested_hardware"]) == ("mit", "zero-a10g")
    assert re.fullmatch(r"6\.\d+\.\d+", front["sdk_version"])
    assert len(front["short_description"]) <= 60
    assert {"title", "emoji", "colorFrom", "colorTo", "tags"} <= set(front)


def test_a_space_again_changes_only_what_is_new(worker, hub, house):
    page_or_skip(SPACE)
    there(hub, house)
    publish(worker, *SPACE)
    before = hub.repositories["space", "me/page"].refs["main"]
    hub.log.clear()
    outcome = publish(worker, *SPACE)
    assert (outcome.status, hub.repositories["space", "me/page"].refs["main"]) == (0, before)
    assert not [line for line in hub.log if re.match(r"PUT|POST .*/(commit|variables|hardware|create)", line)]

    moved = there(hub, house, seed=4).refs["main"]  # the weights' branch moves on
    outcome = publish(worker, *SPACE, "--hardware", "zero-a10g")
    space = hub.repositories["space", "me/page"]
    assert (outcome.status, space.variables) == (0, {"WEIGHTS": f"me/there@{moved}"})
    changed = {
        name
        for name, content in published(hub, "me/page", "space").items()
        if space.commits[before].get(name) != content
    }
    assert changed == {"README.md"}


def test_a_variable_that_cannot_be_set_is_named(worker, hub, house):
    page_or_skip(SPACE)
    there(hub, house)
    hub.faults = [Fault("GET /api/spaces/me/page/variables", Refusal(500))]
    outcome = publish(worker, *SPACE)
    assert outcome.status == 2
    assert (
        "the files of the Space me/page are published, but its variable WEIGHTS is not set; run this again"
        in outcome.err
    )


def test_a_dry_run_of_a_space_writes_nothing(worker, hub, house):
    page_or_skip(SPACE)
    there(hub, house)
    outcome = publish(worker, *SPACE, "--dry-run", HF_TOKEN="")
    assert outcome.status == 0
    assert {"app.py", "README.md", "model/flow.py", "weights/model.safetensors"} <= set(
        re.findall(r"bytes  (.*)", outcome.out)
    )
    assert not [line for line in hub.log if not re.match("GET|HEAD", line)]


def test_weights_of_a_space_must_be_on_the_hub(worker, hub):
    page_or_skip(SPACE)
    outcome = publish(worker, "space", "me/page", "--weights", "runs")
    assert (outcome.status, hub.log) == (2, [])
    outcome = publish(worker, "space", "me/page", "--weights", "weights")
    assert (outcome.status, hub.log) == (2, [])
    assert "weights is a folder here; publish it first" in outcome.err


def test_the_uploaded_files_alone_draw_with_the_published_weights(worker, hub, house, tmp_path):
    page_or_skip(SPACE)
    there(hub, house)
    publish(worker, *SPACE)
    for name, content in published(hub, "me/page", "space").items():
        (tmp_path / "space" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "space" / name).write_bytes(content)
    variables = environment(hub.address, tmp_path / "home") | hub.repositories["space", "me/page"].variables
    with page(tmp_path / "space", **variables) as client:
        drawn = client.predict("7", 5, 3, 2.0, api_name="/draw")
    assert close(drawn, digits(house / "runs" / "there3", [7])[0])
