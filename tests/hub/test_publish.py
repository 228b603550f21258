"""Publishing: the unmodified Hub client against the double, over HTTP, from a separate process."""

import json
import re
import shutil
from urllib.request import urlopen

import pytest
import torch
import yaml

from model import sampling, weights
from model.common import sha256
from tests.hub.double import Fault, Refusal
from tests.hub.worker import ROOT, SECRET, assert_sentence, environment, page, save_map, save_weights
from tests.server import close

WEIGHTS_FILES = {"README.md", "config.json", "metrics.json", "model.safetensors", "samples.png", "sampling.json"}
PUBLISH = "python -m training.publish"


def publish(worker, *arguments, **settings):
    return worker.command("training.publish", *arguments, **settings)


def published(hub, name: str, kind: str = "model", ref: str = "main") -> dict[str, bytes]:
    """The files at the head of a branch, without the one that the Hub itself adds."""
    repository = hub.repositories[kind, name]
    tree = repository.commits[repository.refs[ref]]
    return {path: content for path, content in tree.items() if path != ".gitattributes"}


# ---- weights


def test_weights_are_sent_as_they_are(worker, hub, house):
    outcome = publish(worker, "weights", "me/tiny")
    assert (outcome.status, outcome.err) == (0, "")
    sent = published(hub, "me/tiny")
    assert set(sent) == WEIGHTS_FILES
    for name in WEIGHTS_FILES - {"README.md"}:
        assert sent[name] == (house / "weights" / name).read_bytes()
    commit = hub.repositories["model", "me/tiny"].refs["main"]
    assert f"{hub.address}/me/tiny: now at commit {commit}\n" in outcome.out
    assert re.search(rf"Draw with it: \S*python\S* app\.py --weights me/tiny@{commit}\n$", outcome.out)
    card = sent["README.md"].decode()  # generated, since the folder has none
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert "--weights me/tiny" in card


def test_a_card_written_without_a_name_gets_that_of_its_repository(worker, hub, tmp_path):
    folder = save_map(tmp_path / "map", 0)
    assert worker.command("training.card", "--weights", folder).status == 0
    written = (folder / "README.md").read_text(encoding="utf-8") + "\nA sentence added by hand.\n"
    (folder / "README.md").write_text(written, encoding="utf-8")
    assert publish(worker, "weights", "me/map", "--from", folder).status == 0
    sent = published(hub, "me/map")["README.md"].decode()
    assert "https://huggingface.co/spaces/me/map digits\n" in sent
    assert "hf download me/map " in sent
    assert sent.endswith("A sentence added by hand.\n")
    assert (folder / "README.md").read_text(encoding="utf-8") == written


def test_the_same_content_again_makes_no_commit(worker, hub):
    publish(worker, "weights", "me/tiny")
    before = dict(hub.repositories["model", "me/tiny"].refs)
    hub.log.clear()
    outcome = publish(worker, "weights", "me/tiny")
    assert (outcome.status, hub.repositories["model", "me/tiny"].refs) == (0, before)
    assert f"nothing has changed since commit {before['main']}" in outcome.out
    assert not [line for line in hub.log if "/commit/" in line or line.startswith("PUT")]


def test_a_dry_run_makes_no_request(worker, hub):
    outcome = publish(worker, "weights", "me/tiny", "--dry-run", HF_TOKEN="")
    assert (outcome.status, hub.log) == (0, [])
    assert set(re.findall(r"bytes  (.*)", outcome.out)) == WEIGHTS_FILES


def test_a_branch_is_made_and_main_stays(worker, hub, folders):
    publish(worker, "weights", "me/tiny")
    before = hub.repositories["model", "me/tiny"].refs["main"]
    for other in folders:  # the first creates the branch, the second finds it
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


def test_a_private_repository_stays_private(worker, hub):
    assert publish(worker, "weights", "me/secret", "--private").status == 0
    assert hub.repositories["model", "me/secret"].private
    assert publish(worker, "weights", "me/secret").status == 0  # repeating without the flag changes nothing
    assert hub.repositories["model", "me/secret"].private


def test_a_flow_map_goes_up_with_its_teacher_and_comes_back_with_it(worker, hub, tmp_path):
    """Sent as one commit, cached, preloaded by a Space, and removed by the next map without a teacher."""
    folder = save_map(tmp_path / "map", 0)
    assert publish(worker, "weights", "me/map", "--from", folder).status == 0
    names = {"config.json", "metrics.json", "model.safetensors", "sampling.json"}
    of_teacher = {f"teacher/{name}" for name in names}
    sent = published(hub, "me/map")
    assert set(sent) == {"README.md"} | names | of_teacher
    assert all(sent[name] == (folder / name).read_bytes() for name in names | of_teacher)

    kind = "print(found.teacher and found.teacher.network.kind)"
    there = f"from model import weights; found = weights.load('me/map'); {kind}"
    for cached in (False, True):
        hub.log.clear()
        assert worker.run(there).out == "velocity\n"
        assert cached != any("/teacher/" in line for line in hub.log)
    assert publish(worker, "space", "me/page", "--weights", "me/map").status == 0
    front = yaml.safe_load(published(hub, "me/page", "space")["README.md"].decode().split("---")[1])
    assert set(front["preload_from_hub"][0].split()[1].split(",")) == names | of_teacher

    shutil.rmtree(folder / "teacher")
    assert publish(worker, "weights", "me/map", "--from", folder).status == 0
    assert set(published(hub, "me/map")) == {"README.md"} | names
    assert worker.run(there).out == "None\n"


# ---- rejected because of the folder


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
    """Set finite weights whose products overflow, so that the drawn images are infinite."""
    for parameter in network.parameters():
        parameter.data.fill_(60_000.0)


ROW = {"settings": {"sha256": "0" * 64, "extractor": "0" * 64, "steps": 20, "guidance": 1.0}}
UNFIT = {
    "flipped byte": (flip, "model.safetensors is damaged"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "no hashes": (
        lambda folder: edit(folder, lambda metrics: metrics.pop("sha256")),
        "has no sha256 of its weights",
    ),
    "figures of others": (
        lambda folder: edit(folder, lambda metrics: metrics.update(evaluation=ROW)),
        "results for other weights",
    ),
    "sweep of others": (
        lambda folder: edit(folder, lambda metrics: metrics.update(sweeps=[ROW])),
        "results for other weights",
    ),
    "not a number": (lambda folder: save_weights(folder, 0, overflow), "not finite"),
}


@pytest.mark.parametrize(("spoil", "words"), UNFIT.values(), ids=UNFIT)
def test_unfit_weights_are_refused_before_any_request(worker, hub, tmp_path, spoil, words):
    folder = save_weights(tmp_path / "weights", 0)
    spoil(folder)
    outcome = publish(worker, "weights", "me/tiny", "--from", folder)
    assert_sentence(outcome, PUBLISH, words)
    assert hub.log == []


def test_a_name_without_its_user_is_refused(worker, hub):
    assert_sentence(publish(worker, "weights", "tiny"), PUBLISH, "the repository must be USER/NAME, not 'tiny'")
    assert hub.log == []


def test_a_card_with_other_figures_is_refused(worker, hub, tmp_path):
    folder = save_weights(tmp_path / "weights", 0)
    names = (
        "fd_ratio",
        "fd_train",
        "fd_test",
        "precision",
        "recall",
        "density",
        "coverage",
        "accuracy",
        "copies",
    )
    row = {"settings": {**ROW["settings"], "sha256": sha256(folder / "model.safetensors")}}
    row |= {"drawn": dict.fromkeys(names, 0.5), "real": dict.fromkeys(names, 0.25)}
    edit(folder, lambda metrics: metrics.update(evaluation=row))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\nFD ÷ floor: 1.00, the best there is.\n")
    outcome = publish(worker, "weights", "me/tiny", "--from", folder)
    assert_sentence(outcome, PUBLISH, "README.md does not show the results")
    assert hub.log == []


# ---- rejected because of the Hub or the connection


def limit(seconds: int) -> Refusal:
    return Refusal(429, "Too many requests", **{"Retry-After": str(seconds)})


WEIGHTS, SPACE = ("weights", "me/tiny"), ("space", "me/page", "--weights", "me/there")
COMMIT, CREATE, ASK = r"POST .*/commit/", r"POST /api/repos/create", r"GET /api/models/me/tiny"
RATE = Refusal(429, "", RateLimit='"api";r=0;t=55')
# arguments, token, faults of the Hub, expected message
FAULTS = {
    "no token": (WEIGHTS, "", [], "no token found"),
    "unknown token": (WEIGHTS, "hf_stranger", [], "the token is not valid"),
    "token that only reads": (WEIGHTS, "hf_reader", [], "the token lacks permission"),
    "somebody else's name": (("weights", "you/tiny"), "hf_writer", [], "the token lacks permission"),
    "public already": (("weights", "me/there", "--private"), "hf_writer", [], "is public already"),
    "gated": (WEIGHTS, "hf_writer", [Fault(ASK, Refusal(403, "", "GatedRepo"))], "must grant you access"),
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
        "answered 503 (Down for a while)",
    ),
    "5xx at a Space's commit": (SPACE, "hf_writer", [Fault(COMMIT, Refusal(500))], "the Hub answered 500"),
    "cut at the commit": (WEIGHTS, "hf_writer", [Fault(COMMIT, "cut")], "check the network"),
    "no answer from the start": (WEIGHTS, "hf_writer", [Fault(ASK, "hang")], "no answer within 1 s"),
    "no answer to the commit": (WEIGHTS, "hf_writer", [Fault(COMMIT, "hang")], "no answer within 2 s"),
    "wrong revision of the weights": ((*SPACE[:-1], "me/there@nowhere"), "hf_writer", [], "has no such revision"),
    "missing weights": ((*SPACE[:-1], "me/nowhere"), "hf_writer", [], "no such repository"),
}


LIMITS = {"model.hub.DECISION_SECONDS": 1.0, "training.release.upload.UPLOAD_SECONDS": 2.0}


def nothing_is_published(hub) -> bool:
    """Whether all repositories except that of `there` are empty."""
    new = [repository for name, repository in hub.repositories.items() if name != ("model", "me/there")]
    return all(set(tree) == {".gitattributes"} for repository in new for tree in repository.commits.values())


@pytest.mark.parametrize(("arguments", "token", "faults", "words"), FAULTS.values(), ids=FAULTS)
def test_each_fault_is_one_sentence_and_nothing_is_published(worker, hub, folders, arguments, token, faults, words):
    there(hub, folders[0])
    hub.faults = faults
    limits = LIMITS if "no answer" in words else None
    assert_sentence(publish(worker, *arguments, limits=limits, HF_TOKEN=token), PUBLISH, words)
    assert nothing_is_published(hub)


def test_an_upload_that_always_fails_is_tried_again_and_given_up(worker, hub):
    hub.faults = [Fault("PUT", Refusal(502))]
    assert_sentence(publish(worker, "weights", "me/tiny", hurry=True), PUBLISH, "the Hub answered 502")
    attempts = [line for line in hub.log if line.startswith("PUT")]
    assert len(attempts) > len(set(attempts)) > 0
    assert nothing_is_published(hub)


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


# ---- Spaces


def there(hub, folder, name: str = "me/there"):
    """Weights already on the Hub, different from the bundled ones."""
    return hub.model(name, {path.name: path.read_bytes() for path in folder.iterdir()})


def test_a_space_is_the_page_and_nothing_else(worker, hub, folders):
    commit = there(hub, folders[0]).refs["main"]
    outcome = publish(worker, *SPACE)
    assert (outcome.status, outcome.err) == (0, "")
    sent = published(hub, "me/page", "space")
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "model").rglob("*.py") if path.parent.name != "web"}
    code |= {
        f"model/page/{path.name}"
        for kind in ("css", "js", "json", "png")
        for path in (ROOT / "model/page").glob(f"*.{kind}")
    }
    assert {"model/dit.py", "model/page/__init__.py", "model/page/html.py"} <= code
    bundled = {f"weights/{name}" for name in WEIGHTS_FILES - {"README.md"}}
    assert set(sent) == {"app.py", "requirements.txt", "LICENSE", "README.md"} | code | bundled
    assert not [name for name, content in sent.items() if SECRET.encode() in content]

    space = hub.repositories["space", "me/page"]
    assert (space.sdk, space.hardware, space.variables) == ("gradio", "zero-a10g", {"WEIGHTS": f"me/there@{commit}"})
    front = yaml.safe_load(sent["README.md"].decode().split("---")[1])
    assert front["models"] == ["me/there"]
    assert front["preload_from_hub"] == [f"me/there config.json,metrics.json,model.safetensors,sampling.json {commit}"]
    assert (front["sdk"], front["app_file"], front["python_version"]) == ("gradio", "app.py", "3.12")
    assert (front["license"], front["suggested_hardware"]) == ("mit", "zero-a10g")
    assert re.fullmatch(r"6\.\d+\.\d+", front["sdk_version"])
    assert len(front["short_description"]) <= 60
    assert {"title", "emoji", "colorFrom", "colorTo", "tags"} <= set(front)


def test_a_space_again_changes_only_what_is_new(worker, hub, folders):
    there(hub, folders[0])
    publish(worker, *SPACE)
    before = hub.repositories["space", "me/page"].refs["main"]
    hub.log.clear()
    outcome = publish(worker, *SPACE)
    assert (outcome.status, hub.repositories["space", "me/page"].refs["main"]) == (0, before)
    assert not [line for line in hub.log if re.match(r"PUT|POST .*/(commit|variables|hardware|create)", line)]

    moved = there(hub, folders[1]).refs["main"]  # the weights' branch moves on
    outcome = publish(worker, *SPACE, "--hardware", "zero-a10g")
    space = hub.repositories["space", "me/page"]
    assert (outcome.status, space.variables) == (0, {"WEIGHTS": f"me/there@{moved}"})
    changed = {
        name
        for name, content in published(hub, "me/page", "space").items()
        if space.commits[before].get(name) != content
    }
    assert changed == {"README.md"}


def test_a_variable_that_cannot_be_set_is_named(worker, hub, folders):
    there(hub, folders[0])
    hub.faults = [Fault("GET /api/spaces/me/page/variables", Refusal(500))]
    outcome = publish(worker, *SPACE)
    words = "the files of the Space me/page are published, but its variable WEIGHTS is not set; run this again"
    assert_sentence(outcome, PUBLISH, words)


def test_a_dry_run_of_a_space_writes_nothing(worker, hub, folders):
    there(hub, folders[0])
    outcome = publish(worker, *SPACE, "--dry-run", HF_TOKEN="")
    assert outcome.status == 0
    assert {"app.py", "README.md", "model/flow.py", "weights/model.safetensors"} <= set(
        re.findall(r"bytes  (.*)", outcome.out)
    )
    assert not [line for line in hub.log if not re.match("GET|HEAD", line)]


def test_weights_of_a_space_must_be_on_the_hub(worker, hub):
    for folder in ("runs", "weights"):
        outcome = publish(worker, "space", "me/page", "--weights", folder)
        assert_sentence(outcome, PUBLISH, f"{folder} is a local folder; publish it first")
    assert hub.log == []


def test_the_uploaded_files_alone_draw_with_the_published_weights(worker, hub, folders, tmp_path):
    there(hub, folders[0])
    publish(worker, *SPACE)
    sent = published(hub, "me/page", "space")
    for name, content in sent.items():
        (tmp_path / "space" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "space" / name).write_bytes(content)
    variables = environment(hub.address, tmp_path / "home") | hub.repositories["space", "me/page"].variables
    with page(tmp_path / "space", **variables) as client:
        drawn = client.predict("7", 5, api_name="/draw")
        served = urlopen(client.src, timeout=60).read().decode()
    loaded = weights.load(str(folders[0]))
    assert close(drawn, next(sampling.draw(loaded.network, torch.tensor([7]), 5, loaded.sampling))[0])
    for name in ("page.css", "page.js", "film.js"):
        assert sent[f"model/page/{name}"].decode() in client.config["head"]
    assert "class DigitFilm extends Player" in served
