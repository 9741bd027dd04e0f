"""Rows of CSV, also with semicolons or tabs between the fields; the first record names the columns."""

import csv
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import IO

from stages.core.errors import UserError
from stages.prepare.clean.jsonl import not_utf8, too_long
from stages.prepare.clean.lines import Line, read_lines
from stages.prepare.clean.rows import Rejected, Row

_LONGEST_FIELD = 2**31 - 1  # a record's length is limited below, field by field is no use
_BOM = "\ufeff"


class _TooLong(Exception):
    """The record grew beyond the limit."""


class _Feed:
    """Lines of text for csv.reader, which keeps the bytes of those that it took for the present record."""

    def __init__(self, handle: IO[bytes], max_bytes: int) -> None:
        self._lines = read_lines(handle, max_bytes)
        self._max_bytes = max_bytes
        self.taken: list[Line] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.taken.append(line)
        if line.content is None or self.size > self._max_bytes:
            raise _TooLong
        # Bytes that are not UTF-8 pass, so that they spoil their own record alone.
        return line.content.decode("utf-8", "surrogateescape") + "\n"

    @property
    def size(self) -> int:
        return sum(line.size + 1 for line in self.taken) - 1


def csv_rows(handle: IO[bytes], file: str, max_bytes: int) -> Iterator[Row]:
    """A row for every record after the first.

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
            values = too_long(feed.size)
        except csv.Error as error:
            values = Rejected("not_csv", str(error))
        else:
            values = _values(header, fields, feed.taken)
        yield _row(file, feed.taken, values)


def _row(file: str, lines: list[Line], values: dict[str, str] | Rejected) -> Row:
    def raw() -> Iterator[bytes]:
        for index, line in enumerate(lines):
            yield b"\n" * bool(index)
            yield from line.pieces()

    return Row(file, lines[0].number, values, raw, long=any(line.content is None for line in lines))


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


def _values(header: list[str], fields: list[str], lines: list[Line]) -> dict[str, str] | Rejected:
    if not fields:
        return Rejected("blank_line", "nothing on this line")
    try:
        for line in lines:
            (line.content or b"").decode("utf-8")
    except UnicodeDecodeError as error:
        return not_utf8(error)
    if len(fields) != len(header):
        return Rejected("wrong_fields", f"{len(fields)} fields, but the first line names {len(header)} columns")
    return dict(zip(header, fields, strict=True))
