import os
import signal
import struct
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from model import weights
from model.dit import DiT
from model.flow_map import FlowMap
from model.sampling import SamplingConfig
from tests.server import ROOT, browser, chromium_path, serve
from training.measure.reference import Reference
from training.train import main
from training.trainer import Trainer

SLOW = {"page", "web", "hub", "recovery"}  # test folders that need a browser, a network or separate processes
# Test files that take a minute or more, longest first.
LONGEST = ("test_page", "test_evaluate", "test_service", "test_checkpoint", "test_site", "test_elements", "test_hub")


def pytest_collection_modifyitems(items):
    """Mark slow tests, so that `-m "not slow"` selects the fast core, and run the longest files first, so that no
    process is still busy when the others are done."""
    for item in items:
        if item.path.parent.name in SLOW or "reference" in item.fixturenames:
            item.add_marker("slow")
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


os.environ.update({"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"})
os.environ.pop("WEIGHTS", None)
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each parallel test process
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def small() -> DiT:
    """A small network without zero parameters."""
    network = DiT(width=32, depth=2, heads=2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture
def small_weights(small, tmp_path) -> Path:
    """A folder of weights as saved by the trainer."""
    weights.save(small, tmp_path / "weights", SamplingConfig(), {"training": {"epochs": 1}})
    return tmp_path / "weights"


@pytest.fixture
def small_map(small) -> FlowMap:
    """A flow map of the small network whose jumps depend on s and on the guidance."""
    network = FlowMap.from_velocity(small)
    for embedder in (network.embed_step, network.embed_guidance):
        torch.nn.init.normal_(embedder.mlp[2].weight, std=0.3)
    return network


@pytest.fixture
def map_weights(small, small_map, tmp_path) -> Path:
    """The folder of a flow map with its teacher, which have different time shifts."""
    weights.save(small_map, tmp_path / "map", SamplingConfig(steps=4, guidance=1.5, time_shift=3.0), {})
    weights.save(small, tmp_path / "map" / weights.TEACHER, SamplingConfig(), {})
    return tmp_path / "map"


def missing(what: str, required: str) -> None:
    """Skip a test whose requirement is missing; fail instead if the environment variable `required` is set."""
    if os.environ.get(required):
        pytest.fail(f"{what}, and {required} is set")
    pytest.skip(what)


@pytest.fixture(scope="session")
def mnist_root() -> str:
    """The folder of the real data set."""
    if not (ROOT / "data/MNIST/raw").is_dir():
        missing("the real MNIST is not in data/MNIST/raw", "REQUIRE_MNIST")
    return str(ROOT / "data")


@pytest.fixture(scope="session")
def reference(mnist_root, tmp_path_factory) -> Reference:
    """The reference for all of MNIST; one process computes its features, and the others load them."""
    folder = tmp_path_factory.getbasetemp()
    file = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "reference.pt"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            torch.save(Reference(torch.device("cpu"), mnist_root), file)
        return torch.load(file, weights_only=False)


@pytest.fixture(scope="session")
def chromium():
    """The system's Chromium, headless."""
    if chromium_path() is None:
        missing("no Chromium on this machine", "REQUIRE_BROWSER")
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def page_url(tmp_path_factory):
    """The address of the page, served in a separate process with the bundled weights."""
    with serve(tmp_path_factory.mktemp("server") / "log") as (url, _):
        yield url


TINY = {
    "device": "cpu",
    "width": 32,
    "depth": 1,
    "heads": 2,
    "batch": 32,
    "blank_images": 8,
    "compile": False,
    "log_every": 2,
    "warmup_steps": 2,
}


def flags(options: dict) -> list[str]:
    """The trainer's command-line flags for configuration fields."""
    words = []
    for name, value in options.items():
        no, equals = ("" if value else "no-", "") if isinstance(value, bool) else ("", f"={value}")
        words.append(f"--{no}{name.replace('_', '-')}{equals}")
    return words


def write_idx(path, array: torch.Tensor) -> None:
    """Write an array in the IDX format of MNIST."""
    path.write_bytes(
        struct.pack(">HBB", 0, 8, array.dim()) + struct.pack(f">{array.dim()}I", *array.shape) + array.numpy().tobytes()
    )


@pytest.fixture
def root(tmp_path) -> str:
    """A data set of 112 random images in torchvision's file layout; with the blanks, four batches of 32."""
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", torch.randint(0, 256, (112, 28, 28), dtype=torch.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", torch.arange(112, dtype=torch.uint8) % 10)
    return str(tmp_path / "data")


@pytest.fixture
def go(root, tmp_path, monkeypatch):
    """Run the training command in an empty folder and return its status.

    A new run has a tiny network and data set. With `stop_after`, SIGTERM is raised at the end of that step.
    """
    monkeypatch.chdir(tmp_path)

    def go(*arguments, stop_after: int | None = None, **options):
        def advance(self, advance=Trainer.advance):
            norm = advance(self)
            if self.step == stop_after:
                signal.raise_signal(signal.SIGTERM)
            return norm

        tiny = {} if "--resume" in arguments else {"data_root": root, **TINY}
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "advance", advance)
            try:
                return main([*map(str, arguments), *flags({**tiny, **options})])
            except SystemExit as stop:
                return stop.code

    return go
