"""Shared fixtures: a fake Hub, a process that talks to it, and a copy of the repository."""

import pytest

from tests.hub.double import Double
from tests.hub.worker import Worker, build, environment, save_weights


@pytest.fixture(scope="session")
def house(tmp_path_factory):
    return build(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Two folders of weights that draw different pictures."""
    return [save_weights(tmp_path_factory.mktemp("weights") / str(seed), seed) for seed in (3, 4)]


@pytest.fixture(scope="session")
def hub():
    with Double() as double:
        yield double


@pytest.fixture(scope="session")
def worker(house, hub, tmp_path_factory):
    with Worker(house, **environment(hub.address, tmp_path_factory.mktemp("home"))) as process:
        yield process


@pytest.fixture(autouse=True)
def _clean(hub, worker):
    """Empty the double after each test, once no thread of the process is waiting for it."""
    yield
    hub.reset()
    worker.settle()
    hub.log.clear()
