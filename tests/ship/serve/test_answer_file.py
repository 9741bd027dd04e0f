"""answer: a file row by row; wherever a run was killed, the next one ends with the same file."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import Stub, make_version

from stages.core.errors import Refusal, UserError
from stages.engines.engine_server import Server
from stages.ship.serve.answer_file import answer_file
from stages.ship.serve.served_version import Version

ROWS = [
    {"prompt": "one", "id": 7},
    {"prompt": "two «é»", "task": "t", "answered": {"by": None}},
    {"prompt": "three", "context": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"prompt": "one", "id": 7},
    {"prompt": "x" * 12_000},
]


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return make_version(tmp_path_factory.mktemp("answers"), "a@v1.0.0", engine="stub")


@pytest.fixture(scope="module")
def stub(version: Version) -> Iterator[Stub]:
    stub = Stub(version.id)
    yield stub
    stub.close()


@pytest.fixture
def server(stub: Stub) -> Server:
    return dataclasses.replace(stub.server_for(), slots=3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("source") / "in.jsonl"
    file.write_text("\n\n".join(json.dumps(row) for row in ROWS))
    return file


@pytest.fixture(scope="module")
def whole(version: Version, stub: Stub, source: Path) -> bytes:
    answer_file(source, source.with_name("whole.jsonl"), version, stub.server_for())
    return source.with_name("whole.jsonl").read_bytes()


def test_every_row_comes_back_with_its_answer_and_the_release(whole: bytes, stub: Stub, version: Version) -> None:
    rows = [json.loads(line) for line in whole.splitlines()]
    answers = [row.pop("answer") for row in rows]
    assert rows == ROWS
    assert [one["release"] for one in answers] == [version.id] * len(ROWS)
    first = {"release": version.id, "output": f"{version.id}: one", "tokens": 3, "stopped": True}
    assert answers[0] == answers[3] == first
    assert "HTTP 400" in answers[4]["error"]  # too long: said in its row, and the others are answered
    conversation = [m["role"] for m in stub.asked[2]["messages"]]
    assert conversation == ["system", "user", "assistant", "user"]
    assert stub.asked[0].items() >= {"temperature": 0.0, "top_k": 0, "seed": 0}.items()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_after_a_kill_at_any_byte_no_row_is_lost_or_there_twice(
    data: st.DataObject, whole: bytes, source: Path, version: Version, server: Server, stub: Stub
) -> None:
    target, cut = source.with_name("killed.jsonl"), data.draw(st.integers(0, len(whole)))
    target.write_bytes(whole[:cut])
    asked = len(stub.asked)
    said = answer_file(source, target, version, server)
    assert target.read_bytes() == whole
    done = whole[:cut].count(b"\n")
    assert len(stub.asked) - asked == len(ROWS) - done
    assert said.startswith(f"{len(ROWS) - done} rows answered")


def test_an_answer_of_another_release_or_row_is_not_gone_on_with(
    whole: bytes, source: Path, version: Version, server: Server, tmp_path: Path
) -> None:
    new = dataclasses.replace(version, id="a@v2.0.0")
    target = tmp_path / "out.jsonl"
    target.write_bytes(whole.splitlines(keepends=True)[0])
    with pytest.raises(Refusal, match=r"line 1: no answer of a@v2\.0\.0 to this row"):
        answer_file(source, target, new, server)
    target.write_bytes(whole.splitlines(keepends=True)[1])
    with pytest.raises(Refusal, match="line 1: no answer"):
        answer_file(source, target, version, server)
    target.write_bytes(b"")
    with pytest.raises(Refusal, match=r"answers with a@v1\.0\.0, and not with a@v2\.0\.0"):
        answer_file(source, target, new, server)
    assert target.read_bytes() == b""


@pytest.mark.parametrize(
    "text", ["notes, not ended by a line feed", '{"prompt": "one", "id": 7}', "[1]\n", "7", "\x00"]
)
def test_a_file_of_something_else_is_left_as_it_is(
    text: str, source: Path, version: Version, server: Server, whole: bytes, tmp_path: Path
) -> None:
    for before in (b"", whole):  # and beyond the last row
        (tmp_path / "out.jsonl").write_bytes(before + text.encode())
        with pytest.raises(Refusal, match=r"out\.jsonl, line [16]: no answer"):
            answer_file(source, tmp_path / "out.jsonl", version, server)
        assert (tmp_path / "out.jsonl").read_bytes() == before + text.encode()
    with pytest.raises(UserError, match="nowhere"):
        answer_file(source, tmp_path / "nowhere" / "out.jsonl", version, server)


@pytest.mark.parametrize(
    "line", ['{"prompt": 1}', "{}", "[1]", "{", '{"prompt": "a", "answer": 1}', '{"prompt": "a", "context": [1]}']
)
def test_a_line_that_is_no_row_is_named_before_anything_is_asked(
    line: str, version: Version, server: Server, stub: Stub, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text(f'{{"prompt": "a"}}\n{line}\n')
    asked = len(stub.asked)
    with pytest.raises(UserError, match=r"in\.jsonl, line 2: expected"):
        answer_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl", version, server)
    assert len(stub.asked) == asked


def test_an_engine_that_ends_is_no_answer(version: Version, source: Path, tmp_path: Path) -> None:
    stub = Stub(version.id)
    stub.close()
    with pytest.raises(UserError, match="cannot be asked"):
        answer_file(source, tmp_path / "out.jsonl", version, stub.server_for())
    assert (tmp_path / "out.jsonl").read_bytes() == b""
