"""`python app.py` in unusual environments: proxies, foreign folders, ports in use, passwords, Ctrl-C."""

import os
import re
import signal
import socket

import httpx
import pytest

import app
from model import weights
from model.common import masked
from tests.server import ask, serve

SECRET = "sesame"


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A page with proxies, secrets and another user's temporary folder in its environment: address, process, log."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "gradio").write_text("whoever made this, no folder can be made here")
    proxy, hub = "http://127.0.0.1:9", {"HF_ENDPOINT": f"http://user:{SECRET}@127.0.0.1:9", "HF_TOKEN": f"hf_{SECRET}"}
    variables = {**os.environ, "http_proxy": proxy, "https_proxy": proxy, "ALL_PROXY": "socks5://127.0.0.1:9", **hub}
    variables |= {"TMPDIR": str(folder), "HF_HOME": str(folder), "STATIC_PAGE": "https://digits.example/?a=1&b"}
    arguments = [
        "--weights",
        "nobody/<img src=x>" + "*_" * 100,
        "--auth",
        f"me:{SECRET} {SECRET}",
        "--root-path",
        "/sub",
    ]
    with serve(folder / "log", *arguments, "--host", "0.0.0.0", variables=variables) as (url, process):
        yield url, process, folder / "log"


@pytest.fixture
def http(odd):
    with httpx.Client(base_url=odd[0], timeout=60, trust_env=False) as http:
        yield http


def test_only_who_knows_the_password_is_let_in(odd, http):
    assert http.get("/config").status_code == 401
    assert http.post("/gradio_api/call/draw", json={"data": ["7", 1, 1, 1.0]}).status_code == 401
    assert http.post("/login", data={"username": "me", "password": "guess"}).status_code == 400
    assert http.post("/login", data={"username": "me", "password": f"{SECRET} {SECRET}"}).status_code == 200
    assert ask(http, odd[0], "7", 1, 1, 1.0)[0] == "complete"


def test_visitors_read_what_they_need_and_the_log_keeps_no_secret(odd, http):
    http.post("/login", data={"username": "me", "password": f"{SECRET} {SECRET}"})
    seen = http.get("/").text + http.get("/config").text
    assert "Drawn with the bundled weights, because nobody/" in seen
    assert "could not be loaded." in seen
    log = odd[2].read_text()
    assert "Using the bundled weights instead: nobody/" in log
    for text in (seen, log):
        assert SECRET not in text
        assert "<img src=x" not in text or text is log
        assert "Traceback" not in text


def test_a_proxy_shows_the_page_under_its_path(http):
    http.post("/login", data={"username": "me", "password": f"{SECRET} {SECRET}"})
    text = http.get("/", headers={"Host": "digits.example"}).text
    assert '"root":"http://digits.example/sub"' in text
    assert '"og:url" content="http://digits.example/sub/"' in text
    assert '"og:image" content="http://digits.example/sub/preview.png"' in text
    assert http.get("/sub/preview.png").headers["content-type"] == "image/png"
    assert http.get("/sub/config").status_code == 200
    assert http.get("/sub/gradio_api/upload").status_code == 404


def test_the_page_links_to_the_one_that_needs_no_server(http):
    http.post("/login", data={"username": "me", "password": f"{SECRET} {SECRET}"})
    (footer,) = [part for part in http.get("/config").json()["components"] if part["props"].get("elem_id") == "about"]
    assert '<a id="static" href="https://digits.example/?a=1&amp;b">' in footer["props"]["value"]


def test_an_address_that_is_none_is_one_sentence(capsys):
    with pytest.raises(SystemExit):
        app.main(["--static-page", "javascript:alert(1)"])
    assert capsys.readouterr().err == (
        "python app.py: --static-page must begin with https:// or http://, not javascript:alert(1)\n"
    )


def test_control_c_is_quiet(odd):
    """Must be the last test that uses this page."""
    _, process, log = odd
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert "Traceback" not in log.read_text()


def test_a_port_in_use_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setenv("no_proxy", "")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemExit) as stop:
            app.main(["--port", str(taken.getsockname()[1])])
    assert stop.value.code == 2
    said = r"python app.py: cannot listen on port \d+ of this machine: already in use .* --port or --host\n"
    assert re.fullmatch(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:secret@hub.example/a", "http://***@hub.example/a"),
        ("https://user:p@ss@hub.example", "https://***@hub.example"),
        ("token “hf_abcDEF123” is\n not valid\x1b[2J", "token “hf_***” is not valid?[2J"),
        ("a/b@main, me@home.example", "a/b@main, me@home.example"),
    ],
)
def test_secrets_are_masked(text, shown):
    assert masked(text) == shown


def test_the_notice_is_one_short_sentence(capsys):
    notice = weights.load_or_bundled("http://user:secret@" + "x" * 500).notice
    assert notice.startswith("Drawn with the bundled weights, because http://***@xxx")
    assert len(notice) < 150
    assert "secret" not in capsys.readouterr().err
