"""The front: what a client may ask, what an engine is told, and that no request is lost while engines change."""

import dataclasses
import http.client
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import HELLO, Stub, make_version, post, stubbed

from stages.core.errors import UserError
from stages.engines.engine_server import CHAT, Server
from stages.ship.serve.front import Front, Target, choice_of_stream
from stages.ship.serve.served_version import Version
from stages.ship.serve.serving_loop import follow, point, switch

SWITCHES, CLIENTS, GONE = 20, 4, "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return make_version(tmp_path_factory.mktemp("version"), "a@v1.0.0", engine="stub")


def test_an_engine_is_told_every_sampling_parameter_and_a_client_has_the_last_word(version: Version) -> None:
    with stubbed(version) as (stub, target), Front(target).answering() as url:
        status, said, headers = post(url, {"messages": HELLO, "temperature": 0.7, "model": "whatever"})
    assert (status, said["model"], headers["X-Release"]) == (200, version.id, version.id)
    told = stub.asked[0]
    assert told.items() >= {"temperature": 0.7, "seed": 0, "top_k": 0, "repeat_penalty": 1.0, "max_tokens": 8}.items()
    assert (told["model"], told["messages"]) == (version.id, HELLO)


def test_a_release_that_was_judged_with_a_schema_is_served_with_it(tmp_path: Path, version: Version) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    task = {**version.params["task"], "kind": "json", "schema_file": "schema.json"}
    enforced = dataclasses.replace(version, tree=tmp_path)
    enforced.__dict__["params"] = {"task": task, "generation": {"max_new_tokens": 8, "enforce": "schema"}}
    enforced.__dict__["task"] = version.task.model_copy(update=task | {"schema_file": str(tmp_path / "schema.json")})
    with stubbed(enforced) as (stub, target), Front(target).answering() as url:
        post(url, {"messages": HELLO})
        post(url, {"messages": HELLO, "response_format": {"type": "text"}})
    assert stub.asked[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert stub.asked[1]["response_format"] == {"type": "text"}


@pytest.mark.parametrize(
    ("body", "path", "status"),
    [
        (b"{", CHAT, 400),
        (b"[" * 100_000, CHAT, 400),
        ([1], CHAT, 400),
        ({"messages": 7}, CHAT, 400),
        ({"messages": ["hi"]}, CHAT, 400),
        (b" " * (17 << 20), CHAT, 413),
        ({"messages": HELLO}, "/load_model", 404),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_is_no_request_reaches_no_engine_and_no_operator(
    version: Version, body: Any, path: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with stubbed(version) as (stub, target), Front(target).answering() as url:
        assert post(url, body, path)[0] == status
        assert post(url, {"messages": HELLO}, Content_Type="text/plain")[0] == 400
        assert post(url, {"messages": HELLO}, Content_Type="application/json; charset=unheard-of")[0] == 400
        assert post(url, {"messages": HELLO}, Content_Encoding="gzip")[0] == 400
        assert post(url, {"messages": HELLO}, "/load_model", Content_Encoding="br")[0] in (400, 404)
        assert not stub.asked
        assert post(url, {"messages": HELLO})[0] == 200
    assert not caplog.records


def test_without_the_key_or_under_another_name_nobody_is_answered(version: Version) -> None:
    with stubbed(version) as (_, target):
        with (
            pytest.raises(UserError, match=r"--host 0\.0\.0\.0 lets other machines in"),
            Front(target).answering("0.0.0.0"),
        ):
            pass
        with Front(target).answering() as url:
            assert post(url, {"messages": HELLO}, Host="evil.example")[0] == 401
            with pytest.raises(UserError, match="--port"), Front(target).answering(port=urlsplit(url).port or 0):
                pass
        with Front(target, "the-key").answering("0.0.0.0") as url:
            assert post(url, {"messages": HELLO})[0] == 401
            assert post(url, {"messages": HELLO}, Authorization="Bearer no-kéy".encode().decode("latin-1"))[0] == 401
            assert post(url, {"messages": HELLO}, Authorization="Bearer \xff")[0] == 401
            assert post(url, {"messages": HELLO}, Authorization="Bearer the-key")[0] == 200


def test_a_stream_is_passed_on_piece_by_piece(version: Version) -> None:
    with stubbed(version) as (_, target), Front(target).answering() as url:
        status, said, headers = post(url, {"messages": HELLO, "stream": True})
    assert (status, said, headers["Content-Type"]) == (200, b"data: one\n\ndata: [DONE]\n\n", "text/event-stream")


class _Streams(BaseHTTPRequestHandler):
    """An engine that streams: for ever, or until it breaks, or what it refuses."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        how = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        self.send_response(400 if how == "refuse" else 200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(OSError):
            for _ in range(1000 if how == "on" else 2):
                self.wfile.write(b"6\r\ndata: \r\n")
                time.sleep(0.01)
            if how == "refuse":
                self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def test_a_stream_that_breaks_ends_broken_and_who_hangs_up_is_no_failure_of_a_version(
    version: Version, tmp_path: Path
) -> None:
    log, engine = tmp_path / "log.jsonl", ThreadingHTTPServer(("127.0.0.1", 0), _Streams)
    threading.Thread(target=engine.serve_forever, args=(0.02,), daemon=True).start()
    target = Target(version, Server(f"http://127.0.0.1:{engine.server_port}/v1", "m", "llama.cpp"))
    with Front(target, log=log, log_text=True).answering() as url:
        for how in ("break", "refuse", "on"):
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
            body = json.dumps({"messages": [{"role": "user", "content": how}], "stream": True})
            connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            if how == "break":
                with pytest.raises((http.client.IncompleteRead, ConnectionResetError)) as broken:
                    reply.read()
                assert b"502" not in getattr(broken.value, "partial", b"")
            elif how == "refuse":
                assert reply.read() == b"data: " * 2
            else:
                reply.read(6)
            reply.close()
            connection.close()
        while target.busy:
            time.sleep(0.01)
    engine.shutdown()
    engine.server_close()
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["status"] for row in rows] == [502, 400, 499]
    assert not any("response" in row for row in rows)  # nothing that `tunetrail collect` would take for an answer


@pytest.mark.parametrize("log_text", [False, True])
def test_no_depth_of_a_request_is_a_fault_of_the_server(version: Version, tmp_path: Path, log_text: bool) -> None:
    depths = [*range(900, 1000, 3), 10_000]
    with stubbed(version) as (_, target), Front(target, log=tmp_path / "log", log_text=log_text).answering() as url:
        bodies = [b'{"messages": [{"role": "user", "content": "x", "y": %s%s}]}' % (b"[" * n, b"]" * n) for n in depths]
        told = [post(url, body)[0] for body in bodies]
    assert set(told) == {200, 400}
    assert list(map(int, re.findall('"status": ([0-9]+)', (tmp_path / "log").read_text()))) == told


def test_an_engine_that_is_gone_is_a_502_and_no_health(version: Version) -> None:
    with stubbed(version) as (stub, target), Front(target).answering() as url:
        stub.close()
        assert post(url, {"messages": HELLO})[0] == 502
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 503


@given(pieces=st.lists(st.text(max_size=9), max_size=5), noise=st.binary(max_size=20))
def test_a_stream_s_pieces_make_its_answer(pieces: list[str], noise: bytes) -> None:
    events = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    text = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in [*events, end])
    choice = choice_of_stream(text + b": " + noise.replace(b"{", b""))
    assert choice == {"message": {"content": "".join(pieces)}, "finish_reason": "stop"}


def test_a_canary_whose_engine_ends_or_a_switch_without_memory_takes_nobody_s_answers(
    version: Version, tmp_path: Path
) -> None:
    link, stopped, closed = tmp_path / "current", threading.Event(), list[str]()
    point(link, "v1")

    def start(name: str) -> Target:
        raise OSError(12, "Cannot allocate memory")

    dead = subprocess.Popen(["true"])
    dead.wait()
    with stubbed(version) as (stub, target):
        front = Front(target)
        server = dataclasses.replace(stub.server_for(), process=dead)
        front.canary = Target(dataclasses.replace(version, id="new"), server, lambda: closed.append("new")), 0.99
        with front.answering() as url, ThreadPoolExecutor(1) as pool:
            following = pool.submit(follow, front, start, "v1", link, stopped)
            while not closed:
                stopped.wait(0.01)
            assert front.note == f"the engine of new ended by itself; {version.id} answers all requests"
            assert post(url, {"messages": HELLO})[1]["model"] == version.id
            point(link, "v2")
            while "v2 is not served, v1 still is" not in front.note:
                stopped.wait(0.01)
            stopped.set()
            following.result()
    assert link.readlink().name == "v1"


def test_a_switch_asks_the_front_first(version: Version, tmp_path: Path) -> None:
    link, other = tmp_path / "current", "no `tunetrail serve current`"
    point(link, "v1")
    with stubbed(version) as (stub, target), Front(target).answering() as fixed:  # both well
        for url, said in ((f"http://127.0.0.1:{stub.server_port}/v1", other), (fixed, other), (GONE, "be asked")):
            with pytest.raises(UserError, match=said):
                switch(version, link, url)
    assert link.readlink().name == "v1"


@pytest.fixture
def clients(version: Version) -> Iterator[tuple[Front, str, list[tuple[int, str]], threading.Event]]:
    """A front, asked without a pause by some clients until the event is set; the list has what each was told."""
    told: list[tuple[int, str]] = []
    enough = threading.Event()

    def client() -> None:
        while not enough.is_set():
            status, said, _ = post(url, {"messages": HELLO})
            told.append((status, said["choices"][0]["message"]["content"] if status == 200 else str(said)))

    stub = Stub("0", seconds=0.01)
    front = Front(Target(dataclasses.replace(version, id="0"), stub.server_for(), stub.close))
    with front.answering() as url, ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(client) for _ in range(CLIENTS)]
        yield front, url, told, enough
        enough.set()
        for one in asking:
            one.result()
    front.target.close()


def test_without_its_link_a_version_is_served_on(version: Version, tmp_path: Path) -> None:
    link, stopped = tmp_path / "current", threading.Event()
    started: list[str] = []

    def start(name: str) -> Target:
        started.append(name)
        link.unlink()  # and while a version starts that does not come up
        raise UserError("no")

    with stubbed(version) as (_, target):
        front = Front(target)
        with front.answering() as url, ThreadPoolExecutor(1) as pool:
            following = pool.submit(follow, front, start, "v1", link, stopped)
            while not front.note:
                stopped.wait(0.01)
            assert front.note.startswith("there is no link current any more, v1 is served on")
            assert post(url, {"messages": HELLO})[1]["model"] == version.id
            point(link, "v2")
            while front.note.startswith("there is"):
                stopped.wait(0.01)
            assert front.note == "v2 is not served, v1 still is: no"
            while not front.note.startswith("there is"):
                stopped.wait(0.01)
            stopped.set()
            following.result()
    assert started == ["v2"]


def test_no_request_is_lost_through_20_switches_of_which_some_fail(
    clients: tuple[Front, str, list[tuple[int, str]], threading.Event], version: Version, tmp_path: Path
) -> None:
    front, _, told, enough = clients
    link, stopped, stubs = tmp_path / "current", threading.Event(), dict[str, Stub]()
    point(link, "0")

    def start(name: str) -> Target:
        if int(name) % 5 == 0:
            raise UserError(f"engine {name} does not come up")
        stubs[name] = Stub(name, seconds=0.01)
        return Target(dataclasses.replace(version, id=name), stubs[name].server_for(), stubs[name].close)

    follower = threading.Thread(target=follow, args=(front, start, "0", link, stopped))
    follower.start()
    for number in range(1, SWITCHES + 1):
        before, asked = front.target.version.id, len(told)
        point(link, str(number))
        while front.target.version.id == before and not front.note.startswith(f"{number} is not served"):
            stopped.wait(0.01)
        while len(told) < asked + 2 * CLIENTS:
            stopped.wait(0.01)
        while link.readlink().name != front.target.version.id:  # back where the version did not come up
            stopped.wait(0.01)
    enough.set()
    stopped.set()
    follower.join()
    assert {status for status, _ in told} == {200}
    names = {said.partition(":")[0] for _, said in told}
    assert names >= {str(n) for n in range(1, SWITCHES) if n % 5} - {"19"}
    assert link.readlink().name == front.target.version.id == "19"
    assert "20 is not served, 19 still is: engine 20 does not come up" in front.note
    assert sum(len(stub.asked) for stub in stubs.values()) <= len(told)  # nothing was asked twice
