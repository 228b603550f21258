"""The page in a separate process, as started by `python app.py`, and a browser to view it."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent


def wait_until(ready, seconds: float, what: str):
    """The first true value of `ready()`; raises AssertionError on a timeout."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := ready():
            return value
        time.sleep(0.1)
    raise AssertionError(f"{what} within {seconds:g} s")


def close(a, b) -> bool:
    """Whether images are equal up to rounding: bfloat16 products depend on batch size and thread count.

    Rounding changes the mean by about 0.02, a lost step of four by about 1.
    """
    return np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).mean() <= 0.25


def memory_of(process: subprocess.Popen) -> float:
    """The resident memory of a process in MB; Linux only."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8"))[1]) / 1024


def ask(http, url: str, *values, endpoint: str = "draw"):
    """One API call over plain HTTP with an `httpx.Client`: ("complete" or "error", data)."""
    event = http.post(f"{url}/gradio_api/call/{endpoint}", json={"data": values}).json()["event_id"]
    lines = http.get(f"{url}/gradio_api/call/{endpoint}/{event}").text.splitlines()
    kind = [line for line in lines if line.startswith("event:")][-1].removeprefix("event: ")
    data = [line for line in lines if line.startswith("data:")][-1].removeprefix("data: ")
    return kind, json.loads(data)


@contextmanager
def serve(
    log: Path, *arguments: str, folder: Path = ROOT, variables: dict | None = None
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Start the page in `folder` on the first free port; yields its address and process, and stops it afterwards."""
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, "app.py", *arguments], cwd=folder, env=variables, stdout=out, stderr=subprocess.STDOUT
        )
    try:

        def address():
            assert process.poll() is None, log.read_text(encoding="utf-8")
            found = re.search(r"URL: +(http://[\w.:]+)", log.read_text(encoding="utf-8"))
            return found and found[1].replace("0.0.0.0", "127.0.0.1")

        yield wait_until(address, 120, "the page is up"), process
    finally:
        process.kill()
        process.wait()


class Files(SimpleHTTPRequestHandler):
    """Like `python -m http.server`, without logging."""

    def log_message(self, *_):
        pass

    def copyfile(self, *files):
        with suppress(ConnectionError):  # the page was closed while loading
            super().copyfile(*files)


@contextmanager
def serve_files(folder: Path, port: int = 0) -> Iterator[str]:
    """Serve a folder like `python -m http.server`; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(Files, directory=folder))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def chromium_path() -> str | None:
    """The path of the system's Chromium."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def browser():
    """The system's Chromium, headless and without network requests of its own."""
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-sync",
    ]
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=chromium_path(), args=[*flags, "--disable-component-update"])
        yield chromium
        chromium.close()
