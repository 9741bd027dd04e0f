"""The review server is for one browser on one machine: it refuses everyone and everything else."""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from project import ROOT
from review_project import make_review_project, reviewing

from stages.measure.review.server import Server

PAIRS = [("wrong", "right"), ("<script>alert(1)</script>", "b"), ("same", "same")]
GOOD = {"number": 0, "best": [1], "comment": "clear"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with reviewing(make_review_project(tmp_path_factory.mktemp("review"), PAIRS), "anna") as server:
        yield server


def ask(
    server: Server, method: str, name: str, body: bytes | None = None, path: str | None = None, **headers: str | None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; a header given as None is not sent."""
    host = f"127.0.0.1:{server.server_port}"
    sent = {"Host": host}
    if method == "POST":
        sent |= {
            "Origin": f"http://{host}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body or b"")),
        }
    for key, value in headers.items():
        sent.pop(key.replace("_", "-"), None)
        if value is not None:
            sent[key.replace("_", "-")] = value
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    connection.putrequest(method, f"/{server.secret}/{name}" if path is None else path, skip_host=True)
    for key, value in sent.items():
        connection.putheader(key, value)
    connection.endheaders(body)
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply.status, dict(reply.headers), content


def saved(server: Server) -> str:
    file = server.session.file
    return file.read_text() if file.exists() else ""


def test_it_listens_on_the_loopback_interface_alone(server: Server) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.address.startswith(f"http://127.0.0.1:{server.server_port}/")


@pytest.mark.parametrize("name", ["", "page.css", "shared.js", "page.js", "state"])
def test_every_reply_forbids_foreign_content(server: Server, name: str) -> None:
    status, headers, _ = ask(server, "GET", name)
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")


def test_the_page_is_static_and_the_models_words_are_json(server: Server) -> None:
    assert b"script>alert" not in ask(server, "GET", "")[2]
    _, headers, content = ask(server, "GET", "state")
    assert headers["Content-Type"] == "application/json"
    assert "<script>alert(1)</script>" in str(json.loads(content))
    assert b"tuned" not in content
    assert b'"base' not in content


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "evil.example:80", "127.0.0.1.evil.example:1", "", None])
def test_another_host_is_refused(server: Server, host: str | None) -> None:
    assert ask(server, "GET", "state", Host=host)[0] == 403
    assert ask(server, "POST", "answer", json.dumps(GOOD).encode(), Host=host)[0] == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", None, "http://127.0.0.1:1", "http://localhost"])
def test_another_origin_is_refused(server: Server, origin: str | None) -> None:
    before = saved(server)
    assert ask(server, "POST", "answer", json.dumps(GOOD).encode(), Origin=origin)[0] == 403
    assert saved(server) == before


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "//",
        "/state",
        "/wrong/state",
        "/{0}x/state",
        "/{0}/../state",
        "/{0}/page.py",
        "/{0}/%2e%2e/x",
        "/{1}/state",
        "*",
    ],
)
def test_other_addresses_are_not_there(server: Server, path: str) -> None:
    assert ask(server, "GET", "", path=path.format(server.secret, server.secret[:-1]))[0] == 404


def test_localhost_is_this_machine_too(server: Server) -> None:
    here = f"localhost:{server.server_port}"
    assert ask(server, "POST", "answer", json.dumps(GOOD).encode(), Host=here, Origin=f"http://{here}")[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_what_a_form_can_send_is_refused(server: Server, kind: str | None) -> None:
    assert ask(server, "POST", "answer", json.dumps(GOOD).encode(), Content_Type=kind)[0] == 415


@pytest.mark.parametrize("length", ["-1", "0", "x", "999999999", None])
def test_a_length_that_cannot_be_is_refused(server: Server, length: str | None) -> None:
    assert ask(server, "POST", "answer", b"", Content_Length=length)[0] == 400


@pytest.mark.parametrize(
    "change",
    [
        {"number": 2},
        {"number": -1},
        {"number": True},
        {"number": "0"},
        {"best": [2]},
        {"best": [-1]},
        {"best": [True]},
        {"best": "0"},
        {"best": 0},
        {"comment": None},
        {"comment": "x" * 2001},
        {"more": 1},
    ],
)
def test_an_answer_that_cannot_be_is_refused(server: Server, change: dict[str, object]) -> None:
    before = saved(server)
    assert ask(server, "POST", "answer", json.dumps({**GOOD, **change}).encode())[0] == 400
    assert saved(server) == before


@given(JSON)
def test_no_message_breaks_the_server(server: Server, message: object) -> None:
    assert ask(server, "POST", "answer", json.dumps(message).encode())[0] == 400


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 60_000, b'{"number": 1e999, "best": null, "comment": ""}'])
def test_what_is_no_json_is_refused(server: Server, body: bytes) -> None:
    assert ask(server, "POST", "answer", body)[0] == 400


def test_an_answer_is_on_the_disk_before_the_reply(server: Server) -> None:
    assert ask(server, "POST", "answer", json.dumps(GOOD).encode())[0] == 200
    (line,) = [json.loads(line) for line in saved(server).splitlines() if json.loads(line)["comment"] == "clear"]
    assert line["best"] == [line["shown"][1]]


def test_a_file_that_breaks_meanwhile_is_said_to_the_page(server: Server) -> None:
    before = saved(server)
    server.session.file.write_text("<<<<<<< HEAD\n")
    answers = ask(server, "POST", "answer", json.dumps(GOOD).encode()), ask(server, "GET", "state")
    server.session.file.write_text(before)
    for status, _, content in answers:
        assert status == 500
        assert b"reviews/anna.jsonl, line 1" in content


@pytest.mark.parametrize("sent", ["GET /x", "GET /{secret}/state HTTP/1.1\r\nHost: {host}\r\n\r\n"])
def test_a_page_that_is_closed_too_early_is_no_traceback(
    server: Server, sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, ended = list[Any](), threading.Event()
    monkeypatch.setattr(server, "handle_error", lambda *_: told.append(sys.exc_info()))
    shutdown = server.shutdown_request

    def and_say_so(request: Any) -> None:
        shutdown(request)
        ended.set()

    monkeypatch.setattr(server, "shutdown_request", and_say_so)
    monkeypatch.setattr(server.session, "state", lambda: "long" * 1_000_000)
    host = f"127.0.0.1:{server.server_port}"
    with socket.create_connection(("127.0.0.1", server.server_port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
        client.sendall(sent.format(secret=server.secret, host=host).encode())
        client.settimeout(1)
        if "HTTP" in sent:
            client.recv(1)  # the reply has begun
    assert ended.wait(10)
    assert told == []


@contextlib.contextmanager
def command(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`tunetrail review` in a repository."""
    (folder / "dvc.yaml").touch()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "stages.cli", "review", *options]
    process = subprocess.Popen(
        program, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_command_says_where_to_look_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    folder = make_review_project(tmp_path, PAIRS)
    with command(folder, "--reviewer", "anna") as process:
        assert process.stdout
        found = re.fullmatch(
            r"0 of 2 rows answered by anna; review at http://127\.0\.0\.1:(\d+)/[\w-]{20,}/ and stop with Ctrl-C\n",
            process.stdout.readline(),
        )
        assert found
        with socket.create_connection(("127.0.0.1", int(found.group(1)))):
            pass
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
        assert process.returncode == 0
        assert "0 of 2 rows answered by anna, in reviews/anna.jsonl; commit it" in said


@pytest.mark.parametrize(
    ("pairs", "options", "words", "code"),
    [
        ([("same", "same")], ["--reviewer", "anna"], "there is nothing to compare", 0),
        (PAIRS, ["--reviewer", "../anna"], "error: reviewer '../anna': use a to z", 2),
        (PAIRS, ["--reviewer", "anna", "--port", "99999"], "error: port 99999 cannot be used", 2),
        (PAIRS, [], "--reviewer", 2),
    ],
)
def test_the_command_refuses_in_a_sentence(
    tmp_path: Path, pairs: list[tuple[str, str]], options: list[str], words: str, code: int
) -> None:
    with command(make_review_project(tmp_path, pairs), *options) as process:
        said = "".join(process.communicate(timeout=30))
    assert process.returncode == code
    assert words in said
    assert "Traceback" not in said
