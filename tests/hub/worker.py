"""A process that runs Python on request: `HF_ENDPOINT` and `HF_HOME` are read at import, and torch is imported once for many tests.

Also the house that it runs in: a copy of this repository with small weights, and things beside them that must never leave.
"""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

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
)
PLANTED += (
    "model/__pycache__/a.pyc",
    "weights/.env",
    "weights/token.json",
    "weights/.token.png",
    "weights/old/model.safetensors",
)


def environment(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    """The variables of a process that talks to `endpoint` alone, with a cache of its own and a token that is valid nowhere else."""
    ours = re.compile("HF_|WEIGHTS$|PYTHONPATH$|.*PROXY$", re.IGNORECASE)
    return {name: value for name, value in os.environ.items() if not ours.match(name)} | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_writer",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        **more,
    }


def build(house: Path) -> Path:
    """Fill the folder `house` with the code of this repository, small weights and what must never leave."""
    import torch

    from model import images

    for name in ("model", "training"):
        shutil.copytree(ROOT / name, house / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("app.py", "requirements.txt", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copyfile(ROOT / name, house / name)
    save_weights(house / "weights", 0)
    images.sheet(torch.zeros(1, 28, 28, dtype=torch.uint8), 1).save(house / "weights" / "samples.png")
    for name in PLANTED:
        (house / name).parent.mkdir(parents=True, exist_ok=True)
        (house / name).write_text(SECRET)
    return house


def save_weights(folder: Path, seed: int, spoil=None) -> Path:
    """A folder with small weights that nobody trained; `spoil(network)` may change them first."""
    import torch

    from model import weights
    from model.dit import DiT

    torch.manual_seed(seed)
    network = DiT(width=32, heads=2, depth=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if spoil:
        spoil(network)
    weights.save(network.requires_grad_(False), folder, {})
    return folder


@dataclass
class Outcome:
    """What a piece of Python came to: its exit status, what it wrote, and how long it took."""

    status: int
    out: str
    err: str
    seconds: float


class Worker:
    """The parent's end, a context."""

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
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()

    def run(self, code: str, **variables: str) -> Outcome:
        print(json.dumps({"code": code, "variables": variables}), file=self.process.stdin, flush=True)
        return Outcome(**json.loads(self.process.stdout.readline()))

    def command(self, module: str, *arguments: str, **variables: str) -> Outcome:
        """`python -m module arguments`, without starting Python anew."""
        arguments = [str(argument) for argument in arguments]
        return self.run(f"import sys; from {module} import main; sys.exit(main({arguments!r}))", **variables)


@contextlib.contextmanager
def page(folder: Path, *arguments: str, **variables: str):
    """The page, started in `folder`; yields a client of it."""
    from gradio_client import Client

    from tests.server import serve

    with serve(folder / "log", *arguments, folder=folder, variables=variables) as (url, _):
        yield Client(url, verbose=False)


def work():
    """The child's end: one job a line, one outcome a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        before, started = dict(os.environ), time.monotonic()
        os.environ.update(job["variables"])
        status, out, err = 0, io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                exec(job["code"], {"__name__": "job"})
            except SystemExit as stop:
                status = stop.code or 0
            except BaseException:
                status = 1
                traceback.print_exc()
        os.environ.clear()
        os.environ.update(before)
        outcome = {
            "status": status,
            "out": out.getvalue(),
            "err": err.getvalue(),
            "seconds": time.monotonic() - started,
        }
        print(json.dumps(outcome), file=answers, flush=True)


if __name__ == "__main__":
    work()
