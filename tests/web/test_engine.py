"""The network in the browser (model/web/) against the same network in Python, over real HTTP in Chromium."""

import inspect
import json
import re
import shutil
import struct
import subprocess
import sys
from base64 import b64decode
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model import flow, images, weights
from model.dit import DiT
from model.flow_map import FlowMap
from model.sampling import SamplingConfig, states_from
from tests.server import ROOT, Files, serve_files

WEB = ROOT / "model/web"
ENGINES = ("kernels.wasm", "kernels-relaxed.wasm")

# In the page, `engine.ask(message)` sends a message to the worker and returns all answers up to the last one;
# `engine.pair(...)` gives it a partner. Requests to it are counted and passed on `atOnce` at a time, last one first.
PAGE = """<!doctype html><meta charset="utf-8"><title>Engine</title><script type="module">
import { noise } from "./noise.js";
const worker = new Worker("./worker.js", { type: "module" }), last = new Set(["ready", "done", "error"]);
const plain = (message) => Object.fromEntries(Object.entries(message).map(
    ([name, value]) => [name, ArrayBuffer.isView(value) ? btoa(String.fromCharCode(...value)) : value]));
window.engine = {
    noise: (seed) => Array.from(noise(seed)),
    send: (message) => worker.postMessage(message),
    until: (kinds) => new Promise((resolve) => {
        const answers = [];
        worker.onmessage = ({ data }) => {
            answers.push(plain(data));
            if (kinds.has(data.kind)) resolve(answers);
        };
    }),
    ask(message) {
        const answers = this.until(last);
        worker.postMessage(message);
        return answers;
    },
    asked: 0,
    async pair(weights, relaxed) {
        const second = new Worker("./worker.js", { type: "module" }), waiting = [];
        const [here, there] = [new MessageChannel(), new MessageChannel()];
        here.port2.onmessage = ({ data, ports }) => {
            waiting.push(() => there.port1.postMessage(data, [...ports]));
            this.asked += ports.length; // none comes with the weights
            if (waiting.length < this.atOnce) return;
            while (waiting.length) waiting.pop()();
            this.atOnce = 1;
        };
        const paired = new Promise((resolve) => {
            there.port1.onmessage = ({ data }) => resolve(here.port2.postMessage(data));
        });
        second.postMessage({ kind: "load", weights: there.port2, relaxed }, [there.port2]);
        worker.postMessage({ kind: "load", weights, relaxed, partner: here.port1 }, [here.port1]);
        await this.until(last);
        await paired;
    },
    atOnce: 1,
};
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the engine and an empty page, served over HTTP; yields the folder and its address."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(WEB, folder, dirs_exist_ok=True)
    (folder / "engine.html").write_text(PAGE, encoding="utf-8")
    (folder / "weights").symlink_to(weights.BUNDLED / weights.TEACHER)
    with serve_files(folder) as address:
        yield folder, address


@contextmanager
def opened(site, chromium):
    """A page of the site with a worker."""
    page = chromium.new_page()
    page.goto(f"{site[1]}/engine.html")
    page.wait_for_function("!!window.engine")
    yield page
    page.close()


@pytest.fixture
def page(site, chromium):
    with opened(site, chromium) as page:
        yield page


def ask(page, message: dict) -> list[dict]:
    """All answers of the page's worker up to the last one."""
    return page.evaluate("message => engine.ask(message)", message)


def load(page, site, name: str = "weights", **options) -> dict:
    """The worker's last answer to loading a folder of the site."""
    return ask(page, {"kind": "load", "weights": f"{site[1]}/{name}", **options})[-1]


def drawing(labels, seeds, steps: int = 8, guidance: float = 1.0, time_shift: float = 1.63206) -> dict:
    return {
        "kind": "draw",
        "id": 1,
        "labels": labels,
        "seeds": seeds,
        "steps": steps,
        "guidance": guidance,
        "time_shift": time_shift,
    }


def expected(network: DiT, message: dict) -> list[dict]:
    """The states that Python draws for the same message."""
    config = SamplingConfig(message["steps"], message["guidance"], message["time_shift"])
    noise, labels, film = flow.noise(message["seeds"]), torch.tensor(message["labels"]), message.get("film", False)
    path = states_from(network, noise, labels, config, nullcontext, film=film)
    pixels = partial(images.to_pixels, mean=network.pixel_mean, std=network.pixel_std)
    return [
        {
            "t": state.t,
            "x": pixels(state.x),
            "predicted": None if state.image is None else pixels(state.image),
            "velocity": None if state.v is None else images.to_pixels(state.v, 0.5, 1 / 6),
        }
        for state in path
    ]


def assert_same(answers: list[dict], expected: list[dict]) -> None:
    """Assert that every state of a drawing matches Python's, each pixel within 1 of 255."""
    *found, done = answers
    assert done == {"kind": "done", "id": 1}, done
    assert [(state["kind"], state["i"]) for state in found] == [("state", i) for i in range(len(expected))]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["t"] == pytest.approx(theirs["t"], abs=1e-12)
        for name in ("x", "predicted", "velocity"):
            if theirs[name] is None:
                assert mine.get(name) is None
            else:
                pixels = np.frombuffer(b64decode(mine[name]), np.uint8)
                difference = pixels.astype(int) - theirs[name].numpy().ravel()
                assert np.abs(difference).max() <= 1, (name, mine["i"])


@pytest.fixture(scope="module")
def network() -> DiT:
    return weights.load(str(weights.BUNDLED / weights.TEACHER), dtype=torch.float32).network


@pytest.fixture(scope="module", params=ENGINES)
def ready(request, site, chromium):
    """A page with the bundled velocity network, for each engine; for tests that only draw."""
    with opened(site, chromium) as page:
        answer = load(page, site, relaxed=request.param == ENGINES[1])
        assert (answer["kind"], answer.get("engine")) == ("ready", request.param), answer
        yield page


@pytest.mark.parametrize("seed", [0, 42, 2**31 - 1])
def test_noise_is_that_of_pytorch(page, seed):
    found = torch.tensor(page.evaluate("seed => engine.noise(seed)", seed))
    assert found.shape == (784,)
    torch.testing.assert_close(found, flow.noise([seed]).flatten(), atol=5e-6, rtol=0)


@pytest.mark.parametrize("other", [43, 42], ids=["arc", "chord"])
def test_between_two_noises_as_in_python(page, other):
    found = page.evaluate(
        """async seeds => {
            const [{noise}, {slerp}] = await Promise.all([import("./noise.js"), import("./flow.js")]);
            const [a, b] = seeds.map(noise);
            return [0, 0.25, 0.9, 1].map(w => Array.from(slerp(a, b, w)));
        }""",
        [42, other],
    )
    wanted = flow.slerp(*flow.noise([42, other]).split(1), torch.tensor([0, 0.25, 0.9, 1]))
    torch.testing.assert_close(torch.tensor(found), wanted.flatten(1), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "message",
    [
        drawing(list(range(12)), list(range(12))),
        drawing([7], [42], steps=1),
        drawing([7], [42], steps=50),
        drawing([7, 3], [42, 2**31 - 1], guidance=1.5),
        drawing([5], [1], steps=3, guidance=0, time_shift=0.5),
    ],
    ids=["all classes", "1 step", "50 steps", "guidance", "unconditional"],
)
def test_pixels_are_those_of_python(ready, network, message):
    assert_same(ask(ready, message), expected(network, message))


def as_map(network: DiT) -> FlowMap:
    """A flow map made from a velocity network, with weights such that s and the guidance have an effect."""
    made = FlowMap.from_velocity(network)
    for embedder in (made.embed_step, made.embed_guidance):
        torch.nn.init.normal_(embedder.mlp[2].weight, std=0.05)
        torch.nn.init.normal_(embedder.mlp[2].bias, std=0.05)
    return made


@pytest.fixture(scope="module")
def flow_map(site, network) -> FlowMap:
    """A flow map in the site's folder `map`."""
    torch.manual_seed(0)
    weights.save(as_map(network), site[0] / "map", SamplingConfig(steps=4, guidance=1.5), {})
    return weights.load(str(site[0] / "map"), dtype=torch.float32).network


@pytest.fixture(scope="module")
def mapped(site, flow_map, chromium):
    """A page with the flow map; for tests that only draw."""
    with opened(site, chromium) as page:
        answer = load(page, site, "map")
        assert answer["kind"] == "ready", answer
        assert answer["config"]["kind"] == "flow map"
        yield page


@pytest.mark.parametrize(
    "message",
    [
        {**drawing([7, 3], [42, 2**31 - 1], steps=4, guidance=1.5), "film": True},
        {**drawing([5], [1], steps=3, guidance=0, time_shift=0.5), "film": True},
        {**drawing([9], [2], steps=2, guidance=0.5), "film": True},
        drawing(list(range(12)), list(range(12)), steps=1, guidance=3),
        drawing([7], [67], steps=2),
    ],
    ids=["film", "unconditional", "weak guidance", "1 step", "2 steps"],
)
def test_a_flow_map_jumps_as_in_python(mapped, flow_map, message):
    wanted = expected(flow_map, message)
    assert all((state["predicted"] is not None) == message.get("film", False) for state in wanted[:-1])
    assert_same(ask(mapped, message), wanted)


def test_the_step_and_the_guidance_matter_to_the_flow_map_of_these_tests(flow_map, network):
    """Otherwise it would draw like its teacher, and the test above would prove nothing."""
    for other in (drawing([7], [42], steps=1, guidance=1), drawing([7], [42], steps=1, guidance=1.5)):
        ends = [expected(one, {**drawing([7], [42], steps=1), **other})[-1]["x"].int() for one in (flow_map, network)]
        assert (ends[0] - ends[1]).abs().float().mean() > 3


def test_a_flow_map_of_another_shape_draws_the_same(page, site):
    network = FlowMap(width=48, depth=2, heads=3, patch=4, classes=5, pixel_mean=0.2, pixel_std=0.4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    weights.save(network, site[0] / "other", SamplingConfig(2, 2.5, 0.7), {})
    network = weights.load(str(site[0] / "other"), dtype=torch.float32).network
    assert load(page, site, "other")["kind"] == "ready"
    for steps in (2, 50):
        message = {**drawing([0, 4], [3, 4], steps=steps, guidance=2.5, time_shift=0.7), "film": True}
        assert_same(ask(page, message), expected(network, message))


@pytest.mark.parametrize(
    "shape",
    [
        {"width": 48, "depth": 2, "heads": 3, "patch": 4, "classes": 5, "pixel_mean": 0.2, "pixel_std": 0.4},
        {"width": 20, "depth": 1, "heads": 1, "patch": 7, "class_names": [f"letter {i}" for i in range(12)]},
        {"width": 24, "depth": 3, "heads": 2, "patch": 1},
    ],
    ids=["patch 4", "patch 7", "patch 1"],
)
def test_networks_of_other_shapes_draw_the_same(page, site, shape):
    network = DiT(**shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    weights.save(network, site[0] / "other", SamplingConfig(5, 2.5, 0.7), {})
    network = weights.load(str(site[0] / "other"), dtype=torch.float32).network
    answer = load(page, site, "other")
    assert answer["kind"] == "ready", answer
    assert answer["sampling"] == {"steps": 5, "guidance": 2.5, "time_shift": 0.7}
    assert answer["config"]["class_names"] == list(network.class_names)
    message = drawing([0, 4], [3, 4], steps=5, guidance=2.5, time_shift=0.7)
    assert_same(ask(page, message), expected(network, message))


def rewritten(header=lambda header: None, tensors=lambda data: data):
    """An edit of a safetensors file: `header` changes its header in place, `tensors` returns the new tensor bytes."""

    def edit(file: Path) -> None:
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        names = json.loads(data[8 : 8 + length])
        header(names)
        text = json.dumps(names).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + tensors(data[8 + length :]))

    return edit


def swap(names: dict) -> None:
    """Point two tensors of the same shape to the same bytes, in a file of the right length."""
    names["blocks.0.image.out.weight"]["data_offsets"] = names["blocks.0.label.out.weight"]["data_offsets"]


def cast(file: Path) -> None:
    save_file({name: tensor.float() for name, tensor in load_file(file).items()}, file)


def infinite(file: Path) -> None:
    tensors = load_file(file)
    tensors["blocks.1.image.qkv.bias"][5] = torch.inf
    save_file(tensors, file)


TENSORS = "model.safetensors"
CONFIG = {"width": 32, "depth": 2, "heads": 2}
FAULTS = {
    "flipped byte": (
        rewritten(tensors=lambda data: data[:999] + bytes([data[999] ^ 1]) + data[1000:]),
        "its sha256 differs",
    ),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:-100]), "damaged: it is truncated"),
    "cut in its header": (lambda file: file.write_bytes(file.read_bytes()[:100]), "damaged: it is truncated"),
    "empty": (lambda file: file.write_bytes(b""), "damaged: it is truncated"),
    "too long": (lambda file: file.write_bytes(file.read_bytes() + b"00"), "damaged: it is too long"),
    "much too long": (
        lambda file: file.write_bytes(file.read_bytes() + bytes(2_000_000)),
        "does not match the network",
    ),
    "a picture": (lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n" * 99), "does not begin like a safetensors file"),
    "no header": (lambda file: file.write_bytes(struct.pack("<Q", 4) + b"nono"), "its header cannot be read"),
    "a header of null": (lambda file: file.write_bytes(struct.pack("<Q", 4) + b"null"), "its header cannot be read"),
    "overlap": (rewritten(swap), "overlap or leave gaps"),
    "no place": (rewritten(lambda names: names["unembed.bias"].pop("data_offsets")), "overlap or leave gaps"),
    "another name": (
        rewritten(lambda names: names.update(other=names.pop("unembed.bias"))),
        "does not match the network",
    ),
    "another shape": (
        rewritten(lambda names: names["unembed.bias"].update(shape=[2, 2])),
        "does not match the network",
    ),
    "float32": (cast, 'has the type "F32", not F16'),
    "infinite": (infinite, "blocks.1.image.qkv.bias of the weights holds numbers that are not finite"),
    "git-lfs": (
        lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "is a Git LFS pointer",
    ),
    "missing": (Path.unlink, "model.safetensors cannot be loaded: the server answered 404"),
}


@pytest.fixture
def folder(site, small):
    """A folder of small weights on the site, called `small`."""
    weights.save(small, site[0] / "small", SamplingConfig(), {})
    return site[0] / "small"


@pytest.mark.parametrize(("edit", "sentence"), FAULTS.values(), ids=FAULTS)
def test_damaged_tensors_are_refused_in_one_sentence(page, site, folder, edit, sentence):
    edit(folder / TENSORS)
    if "sha256" not in sentence:  # otherwise only the hash mismatch would be reported
        (folder / "metrics.json").write_text("{}", encoding="utf-8")
    answer = load(page, site, "small")
    assert answer["kind"] == "error"
    assert sentence in answer["message"]
    assert "\n" not in answer["message"]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("config.json", None, "config.json cannot be loaded: the server answered 404"),
        ("sampling.json", None, "sampling.json cannot be loaded: the server answered 404"),
        ("config.json", "[]", "config.json of the weights is not a JSON object"),
        ("metrics.json", "{", "metrics.json of the weights is not a JSON object"),
        ("config.json", json.dumps({**CONFIG, "experts": 8}), 'config.json is not for this network: unknown "experts"'),
        ("config.json", json.dumps({**CONFIG, "kind": "x0"}), 'kind must be one of velocity, flow map, not "x0"'),
        ("config.json", json.dumps({**CONFIG, "kind": "flow map"}), "does not match the network in"),
        ("config.json", json.dumps({**CONFIG, "width": 64}), "does not match the network in config.json"),
        ("config.json", json.dumps({**CONFIG, "width": 30}), "width 30 / heads 2 is not divisible by 4"),
        ("config.json", json.dumps({**CONFIG, "width": 4096}), "width 4096 is too large for depth 2"),
        ("config.json", json.dumps({**CONFIG, "patch": 3}), "patch 3 does not divide 28 pixels"),
        ("config.json", json.dumps({**CONFIG, "depth": 2.5}), "depth must be a whole number from 1 to 100, not 2.5"),
        (
            "config.json",
            json.dumps({**CONFIG, "pixel_std": None}),
            "pixel_std must be a number from 0.001 to 1, not null",
        ),
        (
            "config.json",
            json.dumps({**CONFIG, "class_names": ["<b>"] * 12}),
            "must be a list of 12 different plain names",
        ),
        ("sampling.json", '{"steps": 51}', "sampling.json: steps must be a whole number from 1 to 50, not 51"),
        ("sampling.json", '{"noise": 1}', 'sampling.json may not contain "noise"'),
    ],
)
def test_settings_of_another_network_are_refused_in_one_sentence(page, site, folder, name, text, sentence):
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text, encoding="utf-8")
    answer = load(page, site, "small")
    assert answer["kind"] == "error"
    assert sentence in answer["message"]


def test_a_server_that_is_away_is_said(page):
    (answer,) = ask(page, {"kind": "load", "weights": "http://127.0.0.1:9/weights"})
    assert answer["kind"] == "error"
    assert "cannot be reached; check the address and the connection" in answer["message"]


def test_a_connection_that_breaks_is_said(page, site, folder, monkeypatch):
    def copyfile(self, source, out):
        out.write(source.read(5000 if TENSORS in self.path else -1))  # less than the announced length

    monkeypatch.setattr(Files, "copyfile", copyfile)
    answer = load(page, site, "small")
    sentence = "the connection was lost while model.safetensors was loading; reload the page to try again"
    assert (answer["kind"], answer["message"]) == ("error", sentence)


def test_settings_have_the_defaults_of_python(page, site, folder):
    """Those left out of config.json and sampling.json; metrics.json may be missing."""
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "sampling.json").write_text("{}", encoding="utf-8")
    (folder / "metrics.json").unlink()
    *progress, answer = ask(page, {"kind": "load", "weights": f"{site[1]}/small/"})
    known = inspect.signature(DiT).parameters.keys() - {name for name, _ in weights.UNWRITTEN}  # these are refused
    defaults = {name: inspect.signature(DiT).parameters[name].default for name in known}
    assert answer["config"] == {"kind": "velocity", **defaults, **CONFIG, "class_names": list(images.CLASSES)}
    assert answer["sampling"] == asdict(SamplingConfig())
    size = sum(2 * tensor.numel() for tensor in load_file(folder / TENSORS).values())
    assert {part["total"] for part in progress} == {size}
    assert progress[-1]["got"] == size


def test_bytes_that_are_there_draw_as_those_of_a_folder(page, site, folder):
    answers = page.evaluate(
        """async ([config, message]) => {
            const bytes = await (await fetch("small/model.safetensors")).arrayBuffer();
            return [await engine.ask({kind: "load", weights: {bytes, config}}), await engine.ask(message)];
        }""",
        [CONFIG, drawing([1], [5], steps=2)],
    )
    assert [answer["kind"] for answer in answers[0]] == ["ready"]
    network = weights.load(str(folder), dtype=torch.float32).network
    assert_same(answers[1], expected(network, drawing([1], [5], steps=2)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": [13]}, "label must be a whole number from 0 to 12, not 13"),
        ({"labels": [1, 2]}, "2 labels, but noise for 1"),
        ({"seeds": [2**31]}, "seed must be a whole number from 0 to 2147483647, not 2147483648"),
        ({"steps": 51}, "steps must be a whole number from 1 to 50, not 51"),
        ({"guidance": None}, "guidance must be a number from 0 to 5, not null"),
        ({"time_shift": 0}, "time_shift must be a number from 0.001 to 1000, not 0"),
    ],
)
def test_a_drawing_that_cannot_be_is_refused(ready, change, sentence):
    assert ask(ready, {**drawing([7], [42]), **change}) == [{"kind": "error", "id": 1, "message": sentence}]


def test_nothing_is_drawn_without_weights(page):
    answer = {"kind": "error", "id": 1, "message": "the weights are not loaded yet"}
    assert ask(page, drawing([7], [42])) == [answer]


# Send two messages, then forty requests, each answered between two steps; returns all answers.
DROP = """async ([first, then]) => {
    engine.send(first);
    engine.send(then);
    const heard = [];
    for (let i = 0; i < 40; i++)
        heard.push(...await engine.ask({kind: "load", weights: {bytes: new ArrayBuffer(0), config: {}}}));
    return heard.filter(({kind}) => kind !== "error");
}"""


@pytest.mark.parametrize("then", [{**drawing([3], [1], steps=1), "id": 2}, {"kind": "stop"}], ids=["newer", "stop"])
def test_a_drawing_is_dropped_between_steps(ready, then):
    """Of 50 steps, only the running one, or a few on a busy machine, still send answers."""
    heard = ready.evaluate(DROP, [drawing([7], [42], steps=50), then])
    assert 1 <= len([answer for answer in heard if answer["id"] == 1]) <= 8
    newer = [(answer["kind"], answer.get("i")) for answer in heard if answer["id"] == 2]
    assert newer == ([("state", 0), ("state", 1), ("done", None)] if then["kind"] == "draw" else [])


@pytest.fixture(params=ENGINES)
def paired(request, page, site):
    """A page whose worker has a partner, for each engine."""
    page.evaluate(
        "([weights, relaxed]) => engine.pair(weights, relaxed)", [f"{site[1]}/weights", request.param == ENGINES[1]]
    )
    return page


def without_times(answers: list[dict]) -> list[dict]:
    return [{name: value for name, value in answer.items() if name != "ms"} for answer in answers]


def test_a_partner_changes_no_byte(paired, network):
    message = drawing([7, 3], [42, 67], guidance=1.5)
    found = ask(paired, message)
    assert paired.evaluate("engine.asked") in (7, 8)  # the partner may be ready one step late
    assert without_times(ask(paired, {**message, "alone": True})) == without_times(found)
    assert paired.evaluate("engine.asked") in (7, 8)
    assert_same(found, expected(network, message))


def test_a_partner_computes_the_velocities_of_a_flow_map(page, site, small):
    weights.save(as_map(small), site[0] / "paired", SamplingConfig(), {})
    page.evaluate("weights => engine.pair(weights)", f"{site[1]}/paired")
    message = {**drawing([7, 3], [42, 67], guidance=1.5), "film": True}
    found = ask(page, message)
    assert page.evaluate("engine.asked") in (7, 8)  # the partner may be ready one step late
    assert without_times(ask(page, {**message, "alone": True})) == without_times(found)
    assert_same(found, expected(weights.load(str(site[0] / "paired"), dtype=torch.float32).network, message))
    asked = page.evaluate("engine.asked")
    assert (
        len(ask(page, drawing([7, 3], [42, 67], guidance=1.5))) == 10
    )  # nine states: one forward per step, nothing to share
    assert page.evaluate("engine.asked") == asked


def test_a_partner_is_not_asked_where_one_forward_is_enough(paired):
    for guidance in (0, 1):
        assert ask(paired, drawing([7], [42], steps=2, guidance=guidance))[-1]["kind"] == "done"
    assert paired.evaluate("engine.asked") == 0


def test_a_newer_drawing_drops_one_that_waits_for_the_partner(paired, network):
    """The partner's answers to both arrive in the wrong order, and the older drawing sends nothing."""
    ask(paired, drawing([7], [1], steps=1, guidance=2))  # the partner is ready
    older, newer = drawing([7], [42], steps=50, guidance=2), {**drawing([3], [1], steps=3, guidance=2), "id": 2}
    heard = paired.evaluate(
        """([older, newer]) => {
            engine.atOnce = 2;
            engine.send(older);
            return engine.ask(newer);
        }""",
        [older, newer],
    )
    assert without_times(heard) == without_times(ask(paired, {**newer, "alone": True}))
    assert_same(
        [{**heard[-1], "id": 1} if answer is heard[-1] else answer for answer in heard], expected(network, newer)
    )


@pytest.mark.skipif(not find_spec("ziglang"), reason="the compiler is not installed: pip install ziglang")
def test_the_compiled_engine_is_what_its_source_gives(tmp_path):
    source = WEB / "kernels.c"
    shutil.copy(source, tmp_path)
    commands = re.findall(
        r"^//   python (-m ziglang .*\n)//     (.*)$", source.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(commands) == len(ENGINES)
    for command in commands:
        subprocess.run([sys.executable, *" ".join(command).split()], cwd=tmp_path, check=True)
    for name in ENGINES:
        assert (tmp_path / name).read_bytes() == (WEB / name).read_bytes(), f"{name} is older than {source.name}"
