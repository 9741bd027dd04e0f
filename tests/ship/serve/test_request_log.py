"""The log of the front: a line for each request, whatever becomes of the file, and text only where it is asked for."""

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from served import HELLO, get, make_version, post, rows_of, stubbed

from stages.core.errors import UserError
from stages.ship.serve.canary_release import judge_canary
from stages.ship.serve.front import Front
from stages.ship.serve.served_version import Version


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return make_version(tmp_path_factory.mktemp("version"), "a@v1.0.0", engine="stub")


def test_a_full_disk_stops_the_log_and_no_answer(version: Version, capfd: pytest.CaptureFixture[str]) -> None:
    with stubbed(version) as (_, target), Front(target, log=Path("/dev/full")).answering() as url:
        assert get(url, "/health")["unlogged"] == 0
        assert [post(url, {"messages": HELLO})[0] for _ in range(3)] == [200] * 3
        assert get(url, "/health")["unlogged"] == 3
    said = capfd.readouterr().err
    assert said.startswith("requests are answered, and not logged: ")
    assert said.count("No space left on device") == 1


def test_a_half_written_line_swallows_no_other_and_a_log_that_was_moved_is_begun_anew(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, moved = tmp_path / "requests.jsonl", tmp_path / "requests.jsonl.1"
    log.write_text('{"id": "killed')
    with stubbed(version) as (_, target), Front(target, log=log, log_text=True).answering() as url:
        post(url, {"messages": HELLO}, X_Request_Id="one")
        half, one = log.read_text().splitlines()
        assert (half, json.loads(one)["id"]) == ('{"id": "killed', "one")
        with log.open("a") as other:
            other.write('{"id": "of a full disk')  # while it serves
        post(url, {"messages": HELLO}, X_Request_Id="two")
        assert json.loads(log.read_text().splitlines()[3])["id"] == "two"
        log.rename(moved)  # as logrotate does
        monkeypatch.setattr("stages.ship.serve.front._LOG_BYTES", moved.stat().st_size)
        for name in ("three", "four"):
            post(url, {"messages": HELLO}, X_Request_Id=name)
    assert [row["id"] for row in rows_of(log)] == ["three", "four"]
    assert log.stat().st_mode & 0o777 == 0o600
    assert {file.name for file in tmp_path.iterdir()} == {log.name, moved.name}


def test_a_log_may_be_a_pipe(version: Version, tmp_path: Path) -> None:
    """As /dev/stdout is in a container."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with stubbed(version) as (_, target), Front(target, log=tmp_path / "pipe").answering() as url:
        post(url, {"messages": HELLO}, X_Request_Id="one")
        assert json.loads(os.read(reader, 10_000))["id"] == "one"
    os.close(reader)


def test_what_is_refused_has_a_line_without_its_text_and_counts_for_no_version(
    version: Version, tmp_path: Path
) -> None:
    log = tmp_path / "requests.jsonl"
    with stubbed(version) as (_, target):
        front = Front(target, "the-key", log, True)
        with front.answering() as url:
            key = {"Authorization": "Bearer the-key"}
            asked = [post(url, {"messages": "secret words"}, X_Request_Id="mine", **key)[0]]
            asked += [post(url, {"messages": HELLO})[0], post(url, b" " * (17 << 20), **key)[0]]
            asked += [post(url, {"messages": HELLO}, "/secret words"[:7], **key)[0]]
            front.adapters = {"one": target}
            asked += [post(url, {"messages": HELLO, "model": "two"}, **key)[0]]
            get(url, "/health")
    assert asked == [400, 401, 413, 404, 404]
    rows = rows_of(log)
    assert [row["status"] for row in rows] == asked
    assert rows[0]["id"] == "mine"
    assert all(row.keys() == {"time", "id", "seconds", "status"} for row in rows)
    with pytest.raises(UserError, match="has no request of a canary"):
        judge_canary(log, 0.02, 0.95)


def test_a_canary_gets_its_share_by_the_request_s_id_and_the_log_has_no_text(version: Version, tmp_path: Path) -> None:
    new, log = dataclasses.replace(version, id="a@v2.0.0"), tmp_path / "logs" / "requests.jsonl"
    with stubbed(version) as (_, target), stubbed(new) as (_, canary):
        front = Front(target, log=log)
        front.canary = canary, 0.25
        with front.answering() as url:
            answered = {n: post(url, {"messages": HELLO}, X_Request_Id=f"id-{n}")[1]["model"] for n in range(80)}
            again = {n: post(url, {"messages": HELLO}, X_Request_Id=f"id-{n}")[1]["model"] for n in range(80)}
            assert post(url, {"messages": HELLO}, X_Request_Id="no id")[2]["X-Request-Id"] != "no id"
    assert answered == again
    assert 8 < sum(name == new.id for name in answered.values()) < 36  # 20 by chance, give or take three deviations
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert {row["id"]: row["release"] for row in rows}.items() >= {
        f"id-{n}": name for n, name in answered.items()
    }.items()
    assert all(row["canary"] == (row["release"] == new.id) for row in rows)
    assert all(row.items() >= {"status": 200, "tokens": 3, "stopped": True, "valid": True}.items() for row in rows)
    assert "secret" not in log.read_text()


def test_a_log_with_text_is_its_owner_s_and_a_stream_of_something_else_harms_nobody(
    version: Version, tmp_path: Path
) -> None:
    log = tmp_path / "requests.jsonl"
    log.touch(0o644)
    with stubbed(version) as (stub, target), Front(target, log=log, log_text=True).answering() as url:
        said = post(url, {"messages": HELLO})[1]["choices"][0]["message"]["content"]
        assert post(url, {"messages": HELLO, "stream": True})[:2] == (200, b"data: one\n\ndata: [DONE]\n\n")
        assert stub.asked[0].items() >= {"logprobs": True, "top_logprobs": 1}.items()
    plain, stream = (json.loads(line) for line in log.read_text().splitlines())
    assert plain["request"] == stream["request"] == {"messages": HELLO}
    assert plain["response"]["choices"][0]["message"]["content"] == said
    assert stream["response"]["choices"][0]["message"]["content"] == ""
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_full_log_is_kept_under_another_name(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "requests.jsonl"
    monkeypatch.setattr("stages.ship.serve.front._LOG_BYTES", 700)
    with stubbed(version) as (_, target), Front(target, log=log).answering() as url, ThreadPoolExecutor() as pool:
        list(pool.map(lambda n: post(url, {"messages": HELLO}, X_Request_Id=f"id-{n}"), range(40)))
    files = list(tmp_path.iterdir())
    assert len(files) > 5
    assert all(file.stat().st_size < 1000 for file in files)
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == sorted(f"id-{n}" for n in range(40))
