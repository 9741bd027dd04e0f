"""The client: what it sends, what it retries, what it says when it gives up, and that the key stays where it is."""

import datetime
import email.utils
import gzip
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from asked_servers import Proxy, Rule, judging, reply
from judge_project import KEY, judge_params, right_one

from stages.core import paths
from stages.core.errors import UserError
from stages.engines.asked_models import Endpoint, Reply
from stages.measure.judge.__main__ import SYSTEM, Question

TEXT = (
    "=== reference answer {0} ===\nRIGHT\n=== answer A {0} ===\n{1}\n"
    "=== answer B {0} ===\nRIGHT\n=== end {0} ===\nWhich?"
)
OVERLOADED = reply("503 Service Unavailable", "<html>try later</html>")


def question(number: int, first: str = "wrong") -> Question:
    return Question(f"row {number}", "against_baseline", True, 0, TEXT.format(f"{number:012x}", first))


@pytest.fixture
def server() -> Iterator[type[Rule]]:
    with judging(right_one) as handler:
        yield handler


@pytest.fixture
def proxy(server: Any) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


def ask(proxy: Proxy, *questions: Question, **changes: Any) -> dict[Question, Reply]:
    return dict(Endpoint(judge_params(endpoint=proxy.endpoint, **changes), SYSTEM, paths.JUDGE_REPLIES).ask(questions))


def refusal(proxy: Proxy, *questions: Question, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        ask(proxy, *(questions or (question(1),)), **changes)
    assert KEY not in str(caught.value)
    return str(caught.value)


def test_every_sampling_parameter_is_sent(proxy: Proxy, server: type[Rule], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    assert ask(proxy, question(1), key_variable="SOME_KEY") == {question(1): Reply("B", 100, 2)}
    ((headers, body),) = server.seen
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert [message["role"] for message in body.pop("messages")] == ["system", "user"]
    assert body == {
        "model": "judge",
        "stream": False,
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 16,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "n": 1,
    }


@pytest.mark.parametrize(
    "fault",
    [
        0,  # reset before the first byte
        25,  # reset in the head
        120,  # reset in the body
        b"",  # closed without a word
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",  # ends before its length
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}\r\n",
        OVERLOADED,
        reply("500 Internal Server Error"),
        reply("408 Request Timeout"),
        reply("429 Too Many Requests", Retry_After="0"),
        reply("200 OK", "<html>a proxy's own page</html>"),
        reply("200 OK", "{}"),
        reply("200 OK", '{"choices": []}'),
        reply("200 OK", '{"choices": [{"message": null}]}'),
        reply("200 OK", "[1]"),
        reply("200 OK", '"\\ud800"'),
        reply("200 OK", "x" * 5_000_000),
    ],
)
def test_a_fault_that_may_pass_is_tried_again(proxy: Proxy, fault: bytes | int) -> None:
    proxy.faults = [fault, fault]
    assert ask(proxy, question(1))[question(1)].text == "B"
    assert proxy.connections == 3


def test_a_server_that_hangs_is_left(proxy: Proxy) -> None:
    proxy.faults = [-1]
    assert ask(proxy, question(1), timeout=0.2)[question(1)].text == "B"
    proxy.faults = [(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", *[b" "] * 100)]
    assert ask(proxy, question(2), timeout=0.2)[question(2)].text == "B"
    assert proxy.connections == 4


def test_a_compressed_reply_in_small_pieces_is_read_whole(proxy: Proxy) -> None:
    body = gzip.compress(json.dumps({"choices": [{"message": {"content": "A"}}]}).encode())
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    proxy.faults = [(head, *[body[at : at + 5] for at in range(0, len(body), 5)])]
    assert ask(proxy, question(1)) == {question(1): Reply("A", None, None)}
    assert proxy.connections == 1


def test_a_server_that_stays_broken_ends_in_a_sentence(proxy: Proxy) -> None:
    proxy.faults = [OVERLOADED] * 20
    told = refusal(proxy)
    assert told == (
        f"the judge at {proxy.endpoint} answers with HTTP 503 (4 attempts); replies so far are kept in "
        ".tunetrail/judge/replies.jsonl: run the same command again to go on"
    )
    assert proxy.connections == 4
    proxy.faults = [0] * 20
    assert "broke the connection (" in refusal(proxy)
    proxy.faults = [-1] * 20
    assert "did not reply within 0.1 s (4 attempts)" in refusal(proxy, timeout=0.1)
    proxy.faults = [reply("200 OK", "hm")] * 20
    assert "sends what is no chat completion (4 attempts)" in refusal(proxy)


def test_nobody_there_ends_in_a_sentence(proxy: Proxy) -> None:
    proxy.close()
    assert "broke the connection (ConnectionRefusedError) (2 attempts)" in refusal(proxy, attempts=2)


def test_the_server_says_how_long_to_wait(proxy: Proxy) -> None:
    proxy.faults = [reply("429 Too Many Requests", Retry_After="0.3")]
    began = time.monotonic()
    ask(proxy, question(1), longest_wait=1.0)
    assert time.monotonic() - began >= 0.3


def test_a_wait_that_is_too_long_is_not_begun(proxy: Proxy) -> None:
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    for wait in ("86400", email.utils.format_datetime(tomorrow, usegmt=True)):
        proxy.faults = [reply("429 Too Many Requests", Retry_After=wait)]
        assert "answers with HTTP 429, and wants 86" in refusal(proxy)
    proxy.faults = [reply("429 Too Many Requests", Retry_After="soon")]
    assert ask(proxy, question(1))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("401 Unauthorized", "refuses the key in SOME_KEY (HTTP 401)"),
        ("403 Forbidden", "refuses the key in SOME_KEY (HTTP 403)"),
        ("400 Bad Request", "refuses the request with HTTP 400: no such model, ***"),
        ("307 Temporary Redirect", "sends the request elsewhere (HTTP 307)"),
    ],
)
def test_what_does_not_pass_is_not_tried_again(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, status: str, words: str
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    with judging(right_one) as other:
        elsewhere = f"http://localhost:{other.port}/v1/chat/completions"
        proxy.faults = [reply(status, f"no such model,\n{KEY}", Location=elsewhere)]
        assert words in refusal(proxy, key_variable="SOME_KEY")
        assert other.seen == []
    assert proxy.connections == 1


def test_a_key_in_a_reply_is_not_kept(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    proxy.faults = [reply("200 OK", json.dumps({"choices": [{"message": {"content": f"A {KEY}"}}]}))]
    assert ask(proxy, question(1), key_variable="SOME_KEY") == {question(1): Reply("A ***", None, None)}


@pytest.mark.parametrize(
    ("key", "endpoint", "words"),
    [
        ("", "https://judge.example/v1", "environment variable SOME_KEY"),
        (f"{KEY}\nHost: elsewhere", "https://judge.example/v1", "SOME_KEY holds characters that no key has"),
        (f"{KEY}ü", "https://judge.example/v1", "SOME_KEY holds characters that no key has"),
        (KEY, "http://judge.example/v1", "would cross the network in the clear"),
        (KEY, "http://127.0.0.1.example/v1", "would cross the network in the clear"),
    ],
)
def test_a_key_that_cannot_be_sent_is_said(
    monkeypatch: pytest.MonkeyPatch, key: str, endpoint: str, words: str
) -> None:
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(UserError, match=words) as caught:
        Endpoint(judge_params(key_variable="SOME_KEY", endpoint=endpoint), SYSTEM, paths.JUDGE_REPLIES)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"endpoint": f"https://user:{KEY}@judge.example/v1"}, "no user, password or query"),
        ({"endpoint": f"https://judge.example/v1?key={KEY}"}, "no user, password or query"),
        ({"endpoint": "judge.example/v1"}, "http or https address"),
        ({"endpoint": "file:///etc/passwd"}, "http or https address"),
        ({"key_variable": KEY}, "key_variable"),
        ({"provider": "local", "temperature": 0.5}, "a local model decodes greedily"),
    ],
)
def test_parameters_that_cannot_be_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        judge_params(**change)


def test_without_a_key_none_is_sent(proxy: Proxy, server: type[Rule], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    ask(proxy, question(1), key_variable=None)
    assert "Authorization" not in server.seen[0][0]


def test_what_the_client_finds_in_the_environment_goes_nowhere(
    proxy: Proxy, server: type[Rule], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID")
    for name in names:
        monkeypatch.setenv(name, f"planted-{name}")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Planted: planted")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://planted.example/v1")
    monkeypatch.setenv("SOME_KEY", KEY)
    ask(proxy, question(1))
    ask(proxy, question(2), key_variable="SOME_KEY")
    assert len(server.seen) == 2
    assert not any("planted-" in str(headers).replace(KEY, "") or "X-Planted" in headers for headers, _ in server.seen)


def test_without_the_client_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match="pip install 'tunetrail\\[judge\\]'"):
        Endpoint(judge_params(), SYSTEM, paths.JUDGE_REPLIES)


def test_many_questions_are_under_way_at_once_and_none_is_lost(proxy: Proxy) -> None:
    proxy.faults = [OVERLOADED, 0, 120, None, b""] * 4
    questions = [question(n, first="RIGHT" if n % 2 else "wrong") for n in range(30)]
    replies = ask(proxy, *questions, parallel=8, attempts=30)
    assert {q: r.text for q, r in replies.items()} == {q: "TIE" if n % 2 else "B" for n, q in enumerate(questions)}


def test_a_failure_loses_no_reply_that_came(proxy: Proxy, server: type[Rule]) -> None:
    proxy.faults = [None] * 5 + [reply("400 Bad Request")]
    came: list[Question] = []

    def collect() -> None:
        client = Endpoint(judge_params(endpoint=proxy.endpoint, parallel=3), SYSTEM, paths.JUDGE_REPLIES)
        came.extend(asked for asked, _ in client.ask([question(n) for n in range(40)]))

    with pytest.raises(UserError, match="HTTP 400"):
        collect()
    assert len(came) == len(server.seen) < 40
