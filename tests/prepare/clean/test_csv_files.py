"""CSV: records against Python's csv module, bytes that can be read back, errors that cost no more than they must."""

import csv
import hashlib
import io
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_formats import separated

from stages.core.errors import UserError
from stages.prepare.clean.rejected_rows import Rejected, Row
from stages.prepare.clean.text_files import csv_rows

PIECES = st.sampled_from(
    [b'"', b'""', b",", b"\n", b"\r\n", b"\r", b"a", b"\xff", b"\x00", b"\xc3\xa9", b"\xed\xa0\x80"]
)
CONTENT = st.lists(PIECES, max_size=30).map(b"".join)
FIELD = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def read(content: bytes, max_bytes: int = 1000) -> list[tuple[Row, bytes]]:
    """Every row with its bytes; those of an over-long one are where it says, and hash to what it says."""
    return [(row, _bytes(row, content)) for row in csv_rows(io.BytesIO(content), "rows.csv", max_bytes)]


def _bytes(row: Row, content: bytes) -> bytes:
    if not row.span:
        return row.raw()
    raw = content[row.span.offset : row.span.offset + row.span.length]
    assert hashlib.sha256(raw).hexdigest() == row.span.sha256
    assert raw.startswith(row.raw())
    return raw


def reason(row: Row) -> str | None:
    return row.values.reason if isinstance(row.values, Rejected) else None


@given(content=CONTENT, max_bytes=st.integers(min_value=5, max_value=40))
def test_every_byte_after_the_header_is_in_one_row(content: bytes, max_bytes: int) -> None:
    rows = read(b"a,b\n" + content, max_bytes)
    lines = content.split(b"\n")
    lines = lines[:-1] if lines[-1] == b"" else lines
    assert b"\n".join(raw for _, raw in rows) == b"\n".join(lines)
    number = 2
    for row, raw in rows:
        assert row.number == number
        number += raw.count(b"\n") + 1
        if isinstance(row.values, dict):
            assert set(row.values) == {"a", "b"}
            "".join(row.values.values()).encode()


@given(rows=st.lists(st.fixed_dictionaries({"a": FIELD, "b": FIELD}), min_size=1, max_size=4))
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_the_csv_module_wrote_is_read_as_it_was(rows: list[dict[str, Any]], delimiter: str) -> None:
    found = read(separated(rows, delimiter), 10**6)
    expected = list(rows)
    assert [row.values for row, _ in found] == expected


def test_each_fault_spoils_its_own_record_alone() -> None:
    content = b'a,b\n1,2\n\n1,2,3\ncaf\xe9,2\n"x"y,2\n1,"two\nlines"\n'
    rows = read(content)
    assert [reason(row) for row, _ in rows] == [None, "blank_line", "wrong_fields", "not_utf8", "not_csv", None]
    assert rows[-1][0].values == {"a": "1", "b": "two\nlines"}
    assert [row.number for row, _ in rows] == [2, 3, 4, 5, 6, 7]


def test_a_bare_carriage_return_spoils_its_line_and_is_named() -> None:
    rows = read(b"a,b\n1,2\n3\r4,5\n6,7\r\n")
    assert [reason(row) for row, _ in rows] == [None, "not_csv", None]
    assert getattr(rows[1][0].values, "detail", "").startswith("a carriage return without a line feed")


def test_a_quote_that_is_never_closed_does_not_swallow_the_file() -> None:
    content = b'a,b\n1,2\n"open,2\n' + b"1,2\n" * 100
    rows = read(content, max_bytes=50)
    assert [reason(row) for row, _ in rows[:2]] == [None, "line_too_long"]
    assert len(rows[1][1]) < 60
    assert {reason(row) for row, _ in rows[2:]} == {None}
    assert b"\n".join(raw for _, raw in rows) + b"\n" == content[4:]


def test_a_line_longer_than_the_limit_is_a_row_of_its_own() -> None:
    rows = read(b"a,b\n1,2\n" + b"x" * 300 + b",2\n3,4\n", max_bytes=50)
    assert [(reason(row), bool(row.span)) for row, _ in rows] == [(None, False), ("line_too_long", True), (None, False)]
    assert rows[1][1] == b"x" * 300 + b",2"


def test_an_empty_file_has_no_rows_and_needs_no_header() -> None:
    assert read(b"") == []
    assert read(b"a,b\n") == []


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"a,a\n1,2\n", "each once"),
        (b"a,\n1,2\n", "none empty"),
        (b'"a,b', "must name"),
        (b"\n", "none empty"),
        (b"a,caf\xe9\n1,2\n", "in UTF-8"),
        (b"a,b\r1,2\r3,4\r", r"a carriage return without a line feed; .* tr '\\r' '\\n'"),
        (b"a,b\r" + b"1,2\r" * 500, "a carriage return without a line feed"),
    ],
)
def test_a_header_that_names_no_columns_is_an_error(content: bytes, what: str) -> None:
    with pytest.raises(UserError, match=f"rows.csv: the first line .*{what}"):
        read(content)


def test_a_field_may_be_longer_than_the_csv_module_allows_by_itself() -> None:
    assert csv.field_size_limit() >= 0
    (row, _) = read(b"a,b\n" + b"x" * 200_000 + b",2\n", 10**6)[0]
    assert row.values == {"a": "x" * 200_000, "b": "2"}


SHORT = st.text("abcdefgh ", min_size=1, max_size=6).filter(str.strip)
PLAIN = st.tuples(SHORT, SHORT | SHORT.map(lambda text: f'{text}, {text} "{text}"'))
BAD = ['"5 inch pipe,x', '5 inch,"pipe', '"5" pipe,x', '"a "b" c,x', '"', '"x"y,2', '"5 inch, "wide",x', 'a,b,"c']


@given(rows=st.lists(PLAIN, min_size=1, max_size=120), bad=st.sampled_from(BAD), at=st.integers(0, 120))
def test_a_line_with_a_bad_quote_costs_that_line_alone(rows: list[tuple[str, str]], bad: str, at: int) -> None:
    lines = separated([{"a": a, "b": b} for a, b in rows]).decode().split("\r\n")
    lines.insert(1 + at % len(rows), bad)
    found = read("\n".join(lines).encode(), 10**6)
    assert [tuple(row.values.values()) for row, _ in found if isinstance(row.values, dict)] == rows
    assert [raw.decode() for row, raw in found if reason(row)] == [bad]


def test_two_thousand_rows_survive_one_inch_mark() -> None:
    lines = [f"pipe {number},answer {number}" for number in range(2000)]
    lines[100] = '"5 inch pipe,answer'
    rows = read("\n".join(["a,b", *lines, ""]).encode(), 10**6)
    assert [row.number for row, _ in rows if reason(row)] == [102]
    assert len(rows) == 2000


PROSE = ["I waited, and waited", "", "no comma here", "one, two, three", "Yours, Jane"]


@given(
    before=st.lists(st.sampled_from(PROSE[1:4]), max_size=4),
    after=st.lists(st.sampled_from(PROSE[1:4]), max_size=4),
    stray=st.sampled_from(['he said "stop" and left', 'he said "stop, now', 'a pipe of 5" or more', 'to "them"']),
    one_comma=st.booleans(),
)
def test_no_line_of_a_field_with_a_quote_that_is_not_doubled_becomes_a_row(
    before: list[str], after: list[str], stray: str, one_comma: bool
) -> None:
    text = "\n".join([*before, stray, *after, *(PROSE[:1] if one_comma and after else []), "the end"])
    good = [f"question {number},answer" for number in range(60)]
    content = "\n".join(["a,b", *good[:30], f'"{text}",answer', *good[30:], ""])
    rows = read(content.encode(), 10**6)
    kept = [row.values["a"] for row, _ in rows if isinstance(row.values, dict)]
    assert kept == [line.split(",")[0] for line in good]
    assert len(rows) - len(kept) == text.count("\n") + 1


@pytest.mark.parametrize("lines", [1, 3, 9, 10, 500])
def test_rows_that_melt_into_one_are_doubted_and_many_are_read_again(lines: int) -> None:
    content = "a,b\n1,2\n" + 'x,"5 inch\n' + "in,between\n" * lines + '7 inch"\n3,4\n'
    rows = read(content.encode(), 10**6)
    reasons = [reason(row) for row, _ in rows]
    if lines < 10:
        assert reasons == [None] * 3
        assert f"takes in {lines} lines that could be rows" in str(rows[1][0].doubt)
    else:
        assert reasons == [None, "not_csv", *[None] * lines, "wrong_fields", None]
        assert f"takes in {lines} lines that are rows" in getattr(rows[1][0].values, "detail", "")


@given(text=st.lists(st.sampled_from([*PROSE, "- a list", 'a "quote"']), min_size=2, max_size=30).map("\n".join))
def test_letters_of_many_lines_are_rows(text: str) -> None:
    found = read(separated([{"a": text, "b": "answer"}] * 2), 10**6)
    inner = text.split("\n")[1:-1]
    if sum(line in ("I waited, and waited", "Yours, Jane") for line in inner) < 0.9 * len(inner):
        assert [row.values for row, _ in found] == [{"a": text, "b": "answer"}] * 2


@pytest.mark.parametrize(
    "pattern", [b'"open\n', b'"open\nx"y\n', b'"x"y\n', b'x"\n', b'"\n', b'a,"b\n' + b"a,b\n" * 30, b'""x\n"\n']
)
def test_the_work_on_a_hostile_file_grows_with_its_length(pattern: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    reader = csv.reader

    def counting(texts: Iterator[str], **options: Any) -> Any:
        return reader((looked_at.append(text) or text for text in texts), **options)  # type: ignore[func-returns-value]

    monkeypatch.setattr(csv, "reader", counting)
    work = []
    for repeats in (300, 600):
        looked_at.clear()
        read(b"a,b\n" + pattern * repeats, 10**6)
        work.append(len(looked_at))
    assert work[1] <= 2.2 * work[0] + 200
