"""A process that runs Python on request, since the client reads `HF_ENDPOINT` and `HF_HOME` when it is imported.

Also its working folder: a copy of this repository with small weights, and files that must never be sent.
"""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parent.parent.parent
SECRET = "hf_PlantedWhereItMustNotBeSent"
PLANTED = (
    ".env",
    "token",
    "data/raw.gz",
    "runs/a/checkpoint.pt",
    "tests/test_a.py",
    "model/.env",
    "model/.token.py",
    "model/token.txt",
    "model/__pycache__/a.pyc",
    "model/page/.env",
    "model/page/token.txt",
    "model/page/__pycache__/a.pyc",
    "weights/.env",
    "weights/token.json",
    "weights/.token.png",
    "weights/old/model.safetensors",
)
HANGS_AFTER = 300  # seconds; a longer job counts as hung


def environment(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process that only talks to `endpoint`, with a separate cache and a token of the double."""
    ours = re.compile("HF_|WEIGHTS$|PYTHONPATH$|.*PROXY$", re.IGNORECASE)
    return {name: value for name, value in os.environ.items() if not ours.match(name)} | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_writer",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "OMP_NUM_THREADS": "1",  # such a small network is slower with several threads
        **more,
    }


def build(house: Path) -> Path:
    """Fill the folder `house` with the code of this repository, small weights and files that must never be sent."""
    import torch

    from model import images

    for name in ("model", "training"):
        shutil.copytree(ROOT / name, house / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("app.py", "requirements.txt", "LICENSE", "README.md"):
        shutil.copyfile(ROOT / name, house / name)
    save_weights(house / "weights", 0)
    images.sheet(torch.zeros(1, 28, 28, dtype=torch.uint8), 1).save(house / "weights" / "samples.png")
    for name in PLANTED:
        (house / name).parent.mkdir(parents=True, exist_ok=True)
        (house / name).write_text(SECRET)
    return house


def save_weights(folder: Path, seed: int, spoil=None) -> Path:
    """Save small random weights with custom sampling defaults; `spoil(network)` may change the weights first."""
    import torch

    from model import weights
    from model.dit import DiT
    from model.sampling import SamplingConfig

    torch.manual_seed(seed)
    network = DiT(width=32, heads=2, depth=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if spoil:
        spoil(network)
    sampling = SamplingConfig(steps=3, guidance=2.0, time_shift=1.5)
    weights.save(network.requires_grad_(False), folder, sampling, {})
    return folder


def save_map(folder: Path, seed: int) -> Path:
    """Save a small random flow map together with its teacher."""
    from model import weights
    from model.flow_map import FlowMap

    teacher = weights.load(str(save_weights(folder.with_name("teacher"), seed)))
    weights.save(FlowMap.from_velocity(teacher.network), folder, teacher.sampling, {})
    return save_weights(folder / weights.TEACHER, seed).parent


@dataclass
class Outcome:
    """The exit status and output of a piece of Python."""

    status: int
    out: str
    err: str


def assert_sentence(outcome: Outcome | subprocess.CompletedProcess, program: str, words: str) -> None:
    """Assert that the command ended with status 2 and one line with `words`."""
    status, err = (
        (outcome.status, outcome.err) if isinstance(outcome, Outcome) else (outcome.returncode, outcome.stderr)
    )
    assert status == 2, outcome
    assert re.fullmatch(rf"{re.escape(program)}: [^\n]*{re.escape(words)}[^\n]*\n", err), outcome


class Worker:
    """The parent's end, a context manager."""

    def __init__(self, house: Path, **variables: str):
        self.house, self.variables = house, variables

    def __enter__(self) -> "Worker":
        command = [sys.executable, __file__]
        variables = self.variables | {"PYTHONPATH": str(self.house)}
        self.process = subprocess.Popen(
            command, cwd=self.house, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def run(self, code: str, limits: dict[str, float] | None = None, hurry: bool = False, **variables: str) -> Outcome:
        """Run a piece of Python with environment variables.

        `limits` temporarily replaces numbers such as `model.hub.DECISION_SECONDS`; with `hurry`, retries do not wait.
        """
        watchdog = threading.Timer(HANGS_AFTER, self.process.kill)
        watchdog.start()
        job = {"code": code, "limits": limits or {}, "hurry": hurry, "variables": variables}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        watchdog.cancel()
        assert answer, f"the process died, or hung for {HANGS_AFTER} s, in: {code}"
        return Outcome(**json.loads(answer))

    def command(self, module: str, *arguments: str, **settings) -> Outcome:
        """Run `python -m module arguments` without a new process."""
        arguments = [str(argument) for argument in arguments]
        return self.run(f"import sys; from {module} import main; sys.exit(main({arguments!r}))", **settings)

    def settle(self) -> None:
        """Wait for threads of earlier jobs that still have a request."""
        code = "import threading; [t.join(60) for t in threading.enumerate() if t.name.endswith('(run)')]"
        assert self.run(code).status == 0


@contextlib.contextmanager
def page(folder: Path, *arguments: str, **variables: str):
    """Start the page in `folder`; yields a client for it."""
    from gradio_client import Client

    from tests.server import serve

    with serve(folder / "log", *arguments, folder=folder, variables=variables) as (url, _):
        yield Client(url, verbose=False)


def work():
    """The child's end: one job and one outcome per line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        before = dict(os.environ)
        os.environ.update(job["variables"])
        status, out, err = 0, io.StringIO(), io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            for name, value in job["limits"].items():
                stack.enter_context(patch(name, value))
            if job["hurry"]:
                stack.enter_context(patch.object(time, "sleep"))
            try:
                exec(job["code"], {"__name__": "job"})
            except SystemExit as stop:
                status = stop.code or 0
            except BaseException:
                status = 1
                traceback.print_exc()
        os.environ.clear()
        os.environ.update(before)
        print(json.dumps({"status": status, "out": out.getvalue(), "err": err.getvalue()}), file=answers, flush=True)


if __name__ == "__main__":
    work()
