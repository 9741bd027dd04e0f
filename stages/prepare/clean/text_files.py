"""Rows of JSONL and CSV, read as bytes with bounded memory: one bad line costs that line, not the file.

A line ends at a line feed alone. Of a line longer than the limit only the beginning is held; its offset, length and
SHA-256 say where all of it lies in the raw file (in what a compressed file unpacks to).
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any

from stages.core.errors import UserError
from stages.prepare.clean.rejected_rows import Rejected, Row, Span, kind
from stages.text.strict_json import BrokenContract, parse_json

_CHUNK = 1 << 19
_LONGEST_FIELD = 2**31 - 1  # a record's length is limited below, field by field is no use
_BOM = "\ufeff"


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its line feed: its number from 1, where it begins, its size in bytes.

    `sha256` is set for a line longer than the limit, of which `content` is only the beginning.
    """

    number: int
    offset: int
    size: int
    content: bytes
    sha256: str | None = None


def count_lines(handle: IO[bytes]) -> int:
    """How many lines `read_lines` yields; an empty remainder after the last line feed is none."""
    count, last = 0, b"\n"
    while chunk := handle.read(_CHUNK):
        count += chunk.count(b"\n")
        last = chunk[-1:]
    return count + (last != b"\n")


def read_lines(handle: IO[bytes], max_bytes: int, before: Callable[[], bytes] = bytes) -> Iterator[Line]:
    """Yield the lines; never more than `max_bytes` and a piece of one are held in memory.

    `before` gives the bytes with which the SHA-256 of an over-long line begins: the earlier lines of its record.
    """
    number = offset = 0
    while piece := handle.readline(max_bytes + 1):
        number += 1
        content = piece.removesuffix(b"\n")
        size, sha256 = len(content), None
        if size > max_bytes:
            digest = hashlib.sha256(before() + content)
            while not piece.endswith(b"\n") and (piece := handle.readline(_CHUNK)):
                digest.update(rest := piece.removesuffix(b"\n"))
                size += len(rest)
            sha256 = digest.hexdigest()
        yield Line(number, offset, size, content, sha256)
        offset += size + 1


def jsonl_rows(handle: IO[bytes], file: str, max_bytes: int) -> Iterator[Row]:
    """A row for every line; one that is no JSON object has its reason instead of values."""
    for line in read_lines(handle, max_bytes):
        span = Span(line.offset, line.size, line.sha256) if line.sha256 else None
        yield Row(file, line.number, _json_values(line), lambda line=line: line.content, span=span)  # type: ignore[misc]


def _json_values(line: Line) -> dict[str, Any] | Rejected:
    if line.sha256:
        return _too_long(line.size)
    try:
        text = line.content.decode("utf-8")
    except UnicodeDecodeError as error:
        return _not_utf8(error)
    if line.number == 1:
        text = text.removeprefix(_BOM)
    if not text.strip(" \t\r"):
        return Rejected("blank_line", "nothing on this line")
    try:
        values = parse_json(text)
    except BrokenContract as error:
        return Rejected("not_json", str(error))
    if isinstance(values, dict):
        return values
    return Rejected("not_an_object", f"expected a JSON object, found {kind(values)}")


class _TooLong(Exception):
    """The record grew beyond the limit."""


class _Feed:
    """Lines of text for csv.reader, which keeps the bytes of those that it took for the present record."""

    def __init__(self, handle: IO[bytes], max_bytes: int) -> None:
        self._lines = read_lines(handle, max_bytes, self._before)
        self._max_bytes = max_bytes
        self.taken: list[Line] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.taken.append(line)
        if line.sha256 or self.size > self._max_bytes:
            raise _TooLong
        # Bytes that are not UTF-8 pass, so that they spoil their own record alone.
        return line.content.decode("utf-8", "surrogateescape") + "\n"

    @property
    def size(self) -> int:
        return sum(line.size + 1 for line in self.taken) - 1

    def _before(self) -> bytes:
        return b"".join(line.content + b"\n" for line in self.taken)


def csv_rows(handle: IO[bytes], file: str, max_bytes: int) -> Iterator[Row]:
    """A row for every record after the first, which names the columns; commas, semicolons or tabs separate.

    A record begins on the line after the last one's end. A quote that is never closed costs the lines up to the
    limit of a record's length, not the rest of the file.

    Raises:
        UserError: when the first record names no columns, or one twice.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    feed = _Feed(handle, max_bytes)
    try:
        first = next(feed, "").removeprefix(_BOM)
        if not first:
            return
        # Names of columns hold no separators, so the most frequent one is the separator.
        separator = max(",;\t", key=first.count)
        records = csv.reader(chain([first], feed), delimiter=separator, strict=True)
        header = _header(next(records), file)
    except (_TooLong, csv.Error) as error:
        raise UserError(f"{file}: the first line must name the columns ({error or 'it is too long'})") from None
    while True:
        feed.taken = []
        values: dict[str, str] | Rejected
        try:
            fields = next(records)
        except StopIteration:
            return
        except _TooLong:
            values = _too_long(feed.size)
        except csv.Error as error:
            values = Rejected("not_csv", str(error))
        else:
            values = _csv_values(header, fields, feed.taken)
        yield _csv_row(file, feed.taken, feed.size, values)


def _csv_row(file: str, lines: list[Line], size: int, values: dict[str, str] | Rejected) -> Row:
    digest = lines[-1].sha256
    span = Span(lines[0].offset, size, digest) if digest else None
    return Row(file, lines[0].number, values, lambda: b"\n".join(line.content for line in lines), span=span)


def _header(names: list[str], file: str) -> list[str]:
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        raise UserError(f"{file}: the first line must name the columns in UTF-8; convert the file with iconv") from None
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not names or not all(names):
        what = f"{twice[0]!r} twice" if twice and twice[0] else "a column without a name"
        raise UserError(f"{file}: the first line must name the columns, each once; it has {what}")
    return names


def _csv_values(header: list[str], fields: list[str], lines: list[Line]) -> dict[str, str] | Rejected:
    if not fields:
        return Rejected("blank_line", "nothing on this line")
    try:
        for line in lines:
            line.content.decode("utf-8")
    except UnicodeDecodeError as error:
        return _not_utf8(error)
    if len(fields) != len(header):
        return Rejected("wrong_fields", f"{len(fields)} fields, but the first line names {len(header)} columns")
    return dict(zip(header, fields, strict=True))


def _too_long(size: int) -> Rejected:
    return Rejected("line_too_long", f"{size} bytes; clean.max_line_bytes allows fewer")


def _not_utf8(error: UnicodeDecodeError) -> Rejected:
    found = error.object[error.start]
    return Rejected("not_utf8", f"byte 0x{found:02x} at position {error.start} is not UTF-8")
