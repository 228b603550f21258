"""Publishing the page that draws in the visitor's browser to a static Space, on the double of the Hub."""

import re

import yaml

from model.web import site
from tests.hub.double import Repository
from tests.hub.test_publish import PUBLISH, publish, published, there
from tests.hub.worker import SECRET, assert_sentence

STATIC = ("static", "me/page")


def card(files: dict[str, bytes]) -> dict:
    return yaml.safe_load(files["README.md"].decode().split("---")[1])


def folders_of(files: dict[str, bytes]) -> set[str]:
    return {name.partition("/")[0] for name in files if "/" in name}


def test_a_static_space_is_the_exported_page_and_a_card(worker, hub, house):
    outcome = publish(worker, *STATIC)
    assert (outcome.status, outcome.err) == (0, "")
    sent = published(hub, "me/page", "space")
    space = hub.repositories["space", "me/page"]
    assert (space.sdk, space.hardware, space.variables, len(space.commits)) == ("static", "", {}, 2)
    assert {name for name in sent if "/" not in name} == {
        "README.md",
        "index.html",
        "sw.js",
        "picture.png",
        "icon.png",
        "LICENSE",
    }
    code, kept = sorted(folders_of(sent))
    assert sent[f"{kept}/model.safetensors"] == (house / "weights" / "model.safetensors").read_bytes()
    assert {f"{code}/site.js", f"{code}/worker.js", f"{code}/kernels.wasm", f"{code}/film.js"} <= set(sent)
    assert not [name for name, content in sent.items() if SECRET.encode() in content]
    front = card(sent)
    assert (front["sdk"], front["app_file"], front["license"]) == ("static", "index.html", "mit")
    assert front["thumbnail"] == "https://me-page.static.hf.space/picture.png"
    assert "models" not in front
    assert "sdk_version" not in front
    assert b'property="og:image" content="https://me-page.static.hf.space/picture.png"' in sent["index.html"]


def test_again_it_changes_nothing_and_other_weights_replace_the_older_ones(worker, hub, folders):
    publish(worker, *STATIC)
    space = hub.repositories["space", "me/page"]
    before = space.refs["main"]
    outcome = publish(worker, *STATIC)
    assert f"nothing has changed since commit {before}" in outcome.out
    assert space.refs["main"] == before

    space.commit("main", {"notes.txt": b"of the owner", "weights-notes.txt": b"too"})
    outcome = publish(worker, *STATIC, "--weights", folders[0])
    assert (outcome.status, outcome.err) == (0, "")
    sent = published(hub, "me/page", "space")
    assert len(folders_of(sent)) == 2
    (kept,) = (name for name in folders_of(sent) if name.startswith("weights-"))
    assert sent[f"{kept}/model.safetensors"] == (folders[0] / "model.safetensors").read_bytes()
    assert (sent["notes.txt"], sent["weights-notes.txt"]) == (b"of the owner", b"too")


def test_weights_from_the_hub_are_named_in_the_card_and_on_the_page(worker, hub, folders, tmp_path):
    commit = there(hub, folders[0]).refs["main"]
    publish(worker, *STATIC, "--weights", "me/there")
    sent = published(hub, "me/page", "space")
    site.export(str(folders[0]), tmp_path)
    exported = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    assert set(sent) == {"README.md", *exported}
    same = exported.keys() - {"index.html", "picture.png", "icon.png"}  # these name their source, or are drawn anew
    assert [name for name in same if sent[name] != exported[name].read_bytes()] == []
    assert card(sent)["models"] == ["me/there"]
    assert f'"source": "me/there@{commit}"'.encode() in sent["index.html"]


def test_a_dry_run_makes_no_request(worker, hub):
    outcome = publish(worker, *STATIC, "--dry-run", HF_TOKEN="")
    assert (outcome.status, hub.log) == (0, [])
    assert {"index.html", "README.md", "sw.js"} <= set(re.findall(r"bytes  (.*)", outcome.out))


def test_a_space_of_another_kind_is_left_alone(worker, hub):
    hub.repositories["space", "me/page"] = space = Repository(sdk="gradio")
    before = dict(space.refs)
    assert_sentence(publish(worker, *STATIC), PUBLISH, "me/page is a Space of another kind (gradio)")
    assert space.refs == before
