"""The page's protection against strangers: allowed routes, limits, and abandoned calls."""

import re
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import torch

import app
from model import sampling, weights
from model.dit import DiT
from model.page import guard
from model.page.guard import Place, Refused
from model.page.studio import ROWS, Studio, work
from model.sampling import SamplingConfig
from tests.server import ROOT, ask, wait_until

NEEDED = {
    *[
        ("GET", path)
        for path in ("/", "/config", "/config/", "/theme.css", "/favicon.ico", "/manifest.json", "/logout")
    ],
    *[("GET", path) for path in ("/robots.txt", "/pwa_icon", "/pwa_icon/{size}", "/assets/{path}", "/static/{path}")],
    *[("GET", f"/gradio_api/{path}") for path in ("startup-events", "info", "info/", "theme.css", "queue/data")],
    *[("GET", f"/gradio_api/{path}") for path in ("heartbeat/{session_hash}", "call/{api_name}/{event_id}")],
    *[("POST", f"/gradio_api/{path}") for path in ("queue/join", "cancel", "reset", "reset/", "call/{api_name}")],
    *[("POST", f"/gradio_api/{path}") for path in ("call/{api_name}/", "call/v2/{api_name}", "call/v2/{api_name}/")],
    *[("GET", "/preview.png"), ("HEAD", "/preview.png")],
    *[("GET", "/gradio_api/call/v2/{api_name}/{event_id}"), ("HEAD", "/"), ("POST", "/login"), ("POST", "/login/")],
}


NOTHING = '{"detail":"There is nothing here."}'


class Slow:
    """A fake sampler that draws grey digits, ten per 0.2 s, and counts them."""

    def __init__(self):
        self.drawn, self.go = [], threading.Event()
        self.go.set()

    def __call__(self, network, labels, seed, sampling, turn):
        for begin in range(0, len(labels), 10):
            self.go.wait()
            time.sleep(0.2)
            self.drawn.append(10)
            yield torch.full((len(labels[begin : begin + 10]), 28, 28), 127, dtype=torch.uint8)


@pytest.fixture(scope="module")
def page():
    """A page in this process with a random network: its address, Gradio's blocks and the sampler."""
    with pytest.MonkeyPatch.context() as patch:
        slow = Slow()
        patch.setattr(sampling, "draw", slow)
        network = DiT(width=32, depth=1, heads=2).requires_grad_(False)
        blocks = app.build(Studio(weights.Weights(network, SamplingConfig(), "here", {}), listened=app.listened))
        _, url, _ = app.serve(blocks, prevent_thread_lock=True, quiet=True)
        yield url.rstrip("/"), blocks, slow
        blocks.close()


@pytest.fixture
def http():
    with httpx.Client(timeout=120) as http:
        yield http


DRAW = {"data": ["7", 1, 2, 1.0]}


def sheet(count: int) -> dict:
    """A call for a sheet of 50 steps."""
    return {"data": ["0-9", count, 1, 50, 1.0]}


# ---- routes


def test_only_what_the_page_needs_can_be_asked_for(page, http):
    """Checks every route registered by Gradio, in any version."""
    url, blocks, _ = page
    routes = {
        (method, re.sub(":path", "", route.path)) for route in flat(blocks.app.routes) for method in route.methods
    }
    assert len(routes) > 80
    assert routes >= NEEDED
    for method, path in sorted(routes):
        if path.startswith("/gradio_api/mcp"):
            continue
        with http.stream(
            method, url + re.sub(r"\{\w+\}", "x", path).replace("file=x", "file=http://127.0.0.1/x")
        ) as answer:
            length = answer.headers.get("content-length")
            closed = answer.status_code == 405 or (answer.status_code == 404 and length == str(len(NOTHING)))
        assert closed == ((method, path) not in NEEDED), (method, path, answer.status_code)


def flat(routes):
    """The routes and those of included routers."""
    for route in routes:
        yield from [route] if getattr(route, "methods", None) else flat(getattr(route, "original_router", route).routes)


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/upload", "/theme.css"])
def test_every_answer_forbids_guessed_types_and_foreign_scripts(page, http, path):
    headers = http.get(page[0] + path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "object-src 'none'" in headers["content-security-policy"]


def test_a_foreign_host_is_not_shown_to_the_next(page, http):
    for path in ("/gradio_api/info", "/gradio_api/info?page=x", "/gradio_api/info?all_endpoints=True"):
        assert "evil.example" in http.get(page[0] + path, headers={"Host": "evil.example"}).text
        assert "evil.example" not in http.get(page[0] + path).text
    http.post(f"{page[0]}/gradio_api/call/v2/draw", json={"digit": "x"}, headers={"Host": "evil.example"})
    assert "evil.example" not in http.get(f"{page[0]}/gradio_api/info").text + http.get(page[0]).text


# ---- requests


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/cancel", "/login", "/gradio_api/mcp/"])
def test_a_long_body_is_refused(page, http, path, chunked):
    body = b"x" * (guard.MAX_BODY + 1)
    try:
        answer = http.post(page[0] + path, content=iter([body] * 100) if chunked else body)
    except httpx.NetworkError:  # the server hangs up
        assert chunked
    else:
        assert (answer.status_code, answer.json()["detail"]) == (413, "A request may have at most 64 kB.")
    assert ask(http, page[0], *DRAW["data"])[0] == "complete"


def test_a_long_body_is_read_up_to_its_limit_only():
    sizes = iter([guard.MAX_BODY, 1, 1])

    async def receive():
        return {"body": b"x" * next(sizes), "more_body": True}

    with pytest.raises(Refused):
        guard.read(receive).send(None)  # not asyncio.run: Playwright may have an event loop running
    assert list(sizes) == [1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (b'{"data": ["7"]}', "4 values (digit, seed, steps, guidance), not 1"),
        (b"{}", "not 0"),
        (b'{"data": ["7", 1, {"path": "http://127.0.0.1/", "meta": {"_type": "gradio.FileData"}}, 1]}', "must be"),
        (b'{"data": [[[["7"]]], 1, 2, 1]}', "must be strings, numbers"),
        (b'{"data": "7"}', "must be a JSON object such as"),
        (b'{"data": ["7", 1, 2, 1], "session_hash": {}}', "session_hash must be a string"),
        (b"[" * 60_000, "must be JSON"),
        (b"\xff", "must be JSON"),
        (b'{"data": [' + b"1" * 5000 + b"]}", "must be JSON"),
    ],
)
def test_a_malformed_call_is_one_sentence(page, http, call, words):
    answer = http.post(f"{page[0]}/gradio_api/call/draw", content=call, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert words in answer.json()["detail"]


def test_an_unknown_function_is_one_sentence(page, http):
    for path, call in (
        ("call/nothing", {"data": []}),
        ("queue/join", {"data": [], "fn_index": 999, "session_hash": "a"}),
    ):
        answer = http.post(f"{page[0]}/gradio_api/{path}", json=call)
        assert (answer.status_code, "no such function" in answer.json()["detail"]) == (404, True)


def test_what_may_wait_is_bounded_for_each_and_for_all():
    one, other = Place("s", "1.1.1.1", 0), Place("t", "2.2.2.2", 0)
    guard.check_place(one, [one] * (guard.SESSION_PLACES - 1) + [other] * guard.SESSION_PLACES)
    guard.check_place(other, [one] * guard.SESSION_PLACES)
    free = Place(None, "1.1.1.1", 0)
    guard.check_place(free, [free] * (guard.ADDRESS_PLACES - 1))
    refused = [
        (one, [one] * guard.SESSION_PLACES),
        (free, [free] * guard.ADDRESS_PLACES),
        (other, [one._replace(session=None, address=str(i)) for i in range(guard.PLACES)]),
        (other._replace(work=1), [one._replace(work=guard.MAX_WORK)]),
    ]
    for asked, held in refused:
        with pytest.raises(Refused):
            guard.check_place(asked, held)


@pytest.mark.parametrize(
    ("count", "steps", "most"),
    [
        (100, 20, 2000),
        (400, 50, 20_000),
        (None, None, 20_000),
        (10**9, None, 20_000),
        (-1, 1, 400),
        ("7", True, 20_000),
    ],
)
def test_the_work_of_a_sheet_is_never_taken_for_less(count, steps, most):
    assert work("sheet_api", {"count": count, "steps": steps}) == most
    assert work("sheet_tab", {"asked": ["0", count], "subject": ["7", 1, steps, 1.0]}) == most


def test_the_work_of_a_foreign_call_is_that_of_the_largest():
    for values in ({}, {"asked": None, "subject": "x"}, {"asked": [], "subject": [1, 2]}, {"asked": [0] * 9}):
        assert work("sheet_tab", values) == 20_000
    assert work("sheet_api", {}) == 20_000
    assert work("digit_tab", {}) == 0


def test_every_function_of_the_page_that_draws_many_digits_counts(page):
    """All functions except those for a single digit; a new function must declare its work."""
    functions = {function.name for function in page[1].fns.values() if function.fn} - {"js_fn", "unnamed"}
    single = {name for name in functions if name.startswith(("digit_tab", "draw_api", "finish_api", "unnamed"))}
    assert len(functions - single) >= 12
    for name in functions - single:
        assert work(name, {}) >= 50, name
    assert set(ROWS) <= functions


def test_a_flood_fills_its_own_places_and_no_more(page, http):
    """While the device is busy, the places per session and the waiting work are limited, and all calls end."""
    url, blocks, slow = page
    slow.go.clear()
    try:
        busy = http.post(f"{url}/gradio_api/call/sheet", json=sheet(10)).json()["event_id"]
        wait_until(lambda: not len(blocks._queue), 60, "the device is busy")
        small = {"data": ["0-9", 1, 1, 1, 1.0], "session_hash": "one"}
        same = [http.post(f"{url}/gradio_api/call/sheet", json=small) for _ in range(20)]
        assert [answer.status_code for answer in same] == [200] * guard.SESSION_PLACES + [503] * 4
        assert "wait for one to finish" in same[-1].json()["detail"]
        long = [http.post(f"{url}/gradio_api/call/sheet", json=sheet(400)) for _ in range(8)]
        assert [answer.status_code for answer in long] == [200] * 4 + [503] * 4
        assert len(blocks._queue) == guard.SESSION_PLACES + 4
        assert ask(http, url, *DRAW["data"])[0] == "complete"  # a single digit does not wait for them
        for event in [answer.json()["event_id"] for answer in long[:4]]:
            http.post(f"{url}/gradio_api/cancel", json={"session_hash": event, "fn_index": 0, "event_id": event})
    finally:
        slow.go.set()
    assert "event: complete" in http.get(f"{url}/gradio_api/call/sheet/{busy}").text


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_line_of_the_readme(page):
    (line,) = re.findall("```sh\n(curl .*?)```", (ROOT / "model/README.md").read_text(encoding="utf-8"), re.S)
    line = line.replace("http://127.0.0.1:7860", page[0])
    answer = subprocess.run(["sh", "-c", line], capture_output=True, text=True).stdout
    assert answer.startswith("event: complete\ndata: [[[")


# ---- abandoned calls


@pytest.mark.parametrize("listens", [False, True], ids=["never reads", "leaves"])
@pytest.mark.parametrize("way", ["call", "queue"])
def test_a_sheet_that_nobody_waits_for_stops(page, http, monkeypatch, way, listens):
    url, blocks, slow = page
    slow.drawn.clear()
    monkeypatch.setattr(guard, "PATIENCE", 60 if listens else 1.0)
    if way == "call":
        event = http.post(f"{url}/gradio_api/call/sheet", json=sheet(400)).json()["event_id"]
        stream = f"/gradio_api/call/sheet/{event}"
    else:
        (index,) = [key for key, function in blocks.fns.items() if function.name == "sheet_tab"]
        call = {"data": [["7", 400], ["7", 1, 50, 1.0]], "fn_index": index, "session_hash": "leaver"}
        assert http.post(f"{url}/gradio_api/queue/join", json=call).status_code == 200
        stream = "/gradio_api/queue/data?session_hash=leaver"
    if listens:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"GET {stream} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            wait_until(lambda: len(slow.drawn) > 1, 60, "the drawing has begun")
    wait_until(lambda: slow.drawn and not any(blocks._queue.active_jobs), 60, "the device is free")
    assert 10 <= sum(slow.drawn) < 400


def test_nothing_is_kept_of_those_who_left(page, http, monkeypatch):
    url, blocks, _ = page
    queue = blocks._queue
    before = {*queue.pending_messages_per_session, *queue.pending_event_ids_session}
    monkeypatch.setattr(guard, "PATIENCE", 0.1)
    for _ in range(5):
        http.post(f"{url}/gradio_api/call/draw", json=DRAW)
        ask(http, url, *DRAW["data"])
    kept = (queue.pending_messages_per_session, queue.pending_event_ids_session, queue.event_ids_to_events)
    wait_until(lambda: not {*kept[0], *kept[1], *kept[2]} - before, 60, "everything is forgotten")


# ---- in a frame


@pytest.fixture
def framed(page):
    """The address of a page of another origin that embeds ours in a frame."""

    class Frame(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f"<iframe src='{page[0]}/?digit=4&seed=3' width=900 height=900></iframe>".encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Frame) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()


def test_a_frame_of_another_page_shows_the_link_to_copy(chromium, page, framed):
    """The frame has no clipboard permission, as may happen in a Space."""
    outside = chromium.new_page()
    outside.goto(framed)
    frame = outside.frame_locator("iframe")
    frame.locator("#film canvas").first.wait_for(timeout=120_000)  # the digit of the link is the first
    frame.get_by_role("button", name="Copy link").click(timeout=120_000)
    field = frame.get_by_label("Link to copy")
    field.wait_for()
    assert field.input_value().startswith(f"{page[0]}/?digit=4&seed=3")
    assert field.evaluate("field => field.selectionEnd - field.selectionStart === field.value.length")
    outside.close()
