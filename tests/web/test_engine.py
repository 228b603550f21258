"""The network in the browser, model/web/, against the same network in Python, over real HTTP in Chromium."""

import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from model import flow, images, weights
from model.dit import DiT
from model.sampling import SamplingConfig, states
from tests.server import ROOT

WEB = ROOT / "model/web"
ENGINES = ("kernels.wasm", "kernels-relaxed.wasm")

# In the page: `engine.ask(message)` sends a message to the worker and returns all answers up to the last one.
PAGE = """<!doctype html><meta charset="utf-8"><title>Engine</title><script type="module">
import { noise } from "./noise.js";
const worker = new Worker("./worker.js", { type: "module" }), last = new Set(["ready", "done", "error"]);
const plain = (message) => Object.fromEntries(
    Object.entries(message).map(([name, value]) => [name, ArrayBuffer.isView(value) ? Array.from(value) : value]));
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
};
</script>"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the engine and an empty page, served over HTTP: the folder and its address."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(WEB, folder, dirs_exist_ok=True)
    (folder / "engine.html").write_text(PAGE, encoding="utf-8")
    (folder / "weights").symlink_to(weights.BUNDLED)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def engine(site, chromium):
    """A page with a worker: `engine(message)` returns its answers."""
    page = chromium.new_page()
    page.goto(f"{site[1]}/engine.html")
    page.wait_for_function("!!window.engine")
    yield lambda message: page.evaluate("message => engine.ask(message)", message)
    page.close()


def load(engine, site, name: str = "weights", **options) -> dict:
    """The worker's last answer to loading a folder of the site."""
    return engine({"kind": "load", "weights": f"{site[1]}/{name}", **options})[-1]


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
    """What Python draws for the same message."""
    config = SamplingConfig(message["steps"], message["guidance"], message["time_shift"])
    path = list(states(network, torch.tensor(message["labels"]), message["seeds"], config))
    pixels = partial(images.to_pixels, mean=network.pixel_mean, std=network.pixel_std)
    return [
        {
            "t": state.t,
            "x": pixels(state.x),
            "predicted": pixels(state.x if state.v is None else state.x - state.t * state.v),
            "velocity": None if state.v is None else images.to_pixels(state.v, 0.5, 1 / 6),
        }
        for state in path
    ]


def assert_same(answers: list[dict], expected: list[dict]) -> None:
    """Every state of a drawing is Python's, each pixel within 1 of 255."""
    *found, done = answers
    assert done == {"kind": "done", "id": 1}, done
    assert [(state["kind"], state["i"]) for state in found] == [("state", i) for i in range(len(expected))]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["t"] == pytest.approx(theirs["t"], abs=1e-12)
        for name in ("x", "predicted", "velocity"):
            if theirs[name] is None:
                assert mine.get(name) is None
            else:
                difference = np.array(mine[name]) - theirs[name].numpy().ravel().astype(int)
                assert np.abs(difference).max() <= 1, (name, mine["i"])


@pytest.fixture(scope="module")
def network() -> DiT:
    return weights.load(str(weights.BUNDLED), dtype=torch.float32).network


@pytest.fixture(scope="module", params=ENGINES)
def ready(request, site, chromium):
    """The engine with the bundled weights, once for all tests that only draw."""
    page = chromium.new_page()
    page.goto(f"{site[1]}/engine.html")
    page.wait_for_function("!!window.engine")
    ask = lambda message: page.evaluate("message => engine.ask(message)", message)  # noqa: E731
    answer = load(ask, site, relaxed=request.param == ENGINES[1])
    assert answer["kind"] == "ready", answer
    assert answer["engine"] == request.param
    yield ask, answer
    page.close()


@pytest.mark.parametrize("seed", [0, 42, 2**31 - 1])
def test_noise_is_that_of_pytorch(site, chromium, seed):
    page = chromium.new_page()
    page.goto(f"{site[1]}/engine.html")
    page.wait_for_function("!!window.engine")
    found = torch.tensor(page.evaluate("seed => engine.noise(seed)", seed))
    page.close()
    assert found.shape == (784,)
    torch.testing.assert_close(found, flow.noise([seed]).flatten(), atol=5e-6, rtol=0)


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
    assert_same(ready[0](message), expected(network, message))


@pytest.mark.parametrize(
    "shape",
    [
        {"width": 48, "depth": 2, "heads": 3, "patch": 4, "classes": 5, "pixel_mean": 0.2, "pixel_std": 0.4},
        {"width": 20, "depth": 1, "heads": 1, "patch": 7, "class_names": [f"letter {i}" for i in range(12)]},
        {"width": 24, "depth": 3, "heads": 2, "patch": 1},
    ],
    ids=["patch 4", "patch 7", "patch 1"],
)
def test_networks_of_other_shapes_draw_the_same(engine, site, shape):
    network = DiT(**shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    weights.save(network, site[0] / "other", SamplingConfig(5, 2.5, 0.7), {})
    network = weights.load(str(site[0] / "other"), dtype=torch.float32).network
    answer = load(engine, site, "other")
    assert answer["kind"] == "ready", answer
    assert answer["sampling"] == {"steps": 5, "guidance": 2.5, "time_shift": 0.7}
    assert answer["config"]["class_names"] == list(network.class_names)
    message = drawing([0, 4], [3, 4], steps=5, guidance=2.5, time_shift=0.7)
    assert_same(engine(message), expected(network, message))


@pytest.mark.skipif(not find_spec("ziglang"), reason="the compiler is not installed: pip install ziglang")
def test_the_compiled_engine_is_what_its_source_gives(tmp_path):
    source = WEB / "kernels.c"
    shutil.copy(source, tmp_path)
    commands = re.findall(r"^//   python (-m ziglang .*)$", source.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == len(ENGINES)
    for command in commands:
        subprocess.run([sys.executable, *command.split()], cwd=tmp_path, check=True)
    for name in ENGINES:
        assert (tmp_path / name).read_bytes() == (WEB / name).read_bytes(), f"{name} is older than {source.name}"
