"""Rows of JSONL and CSV, read as bytes with bounded memory: one bad line costs that line, not the file.

A line ends at a line feed alone. Of a line longer than the limit only the beginning is held; its offset, length and
SHA-256 say where all of it lies in the raw file (in what a compressed file unpacks to).
"""

import csv
import hashlib
import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import IO, Any, NamedTuple, cast

from stages.core.errors import UserError
from stages.prepare.clean.rejected_rows import Rejected, Row, Span, kind
from stages.text.strict_json import BrokenContract, parse_json

_CHUNK = 1 << 19
_LONGEST_FIELD = 2**31 - 1  # a record's length is limited below, field by field is no use
_BOM = "\ufeff"
_ELEMENT = re.compile(r"[^ \t\r\n,]")  # begins behind spaces and a comma
_MANY = 10  # lines inside of one record that are rows by themselves: no text of so many looks like that by chance
_BROKEN = ("not_csv", "line_too_long")  # so is a record of several lines that is rejected for another reason
_AHEAD = 50  # lines in which the end of a broken record is looked for
_BARE_RETURN = "a carriage return without a line feed; where all lines end so, change that: tr '\\r' '\\n' < OLD > NEW"


class Line(NamedTuple):
    """One line without its line feed; `sha256` is set where it is over the limit and `content` its beginning."""

    number: int
    offset: int
    size: int
    content: bytes
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines in one piece, which is quick to send; `content` has the line feeds between them."""

    number: int
    offset: int
    content: bytes

    def __iter__(self) -> Iterator[Line]:
        offset = self.offset
        for number, content in enumerate(self.content.split(b"\n"), self.number):
            yield Line(number, offset, len(content), content)
            offset += len(content) + 1


def count_lines(handle: IO[bytes]) -> int:
    """How many lines `read_lines` yields; an empty remainder after the last line feed is none."""
    count, last = 0, b"\n"
    while chunk := handle.read(_CHUNK):
        count += chunk.count(b"\n")
        last = chunk[-1:]
    return count + (last != b"\n")


def read_lines(handle: IO[bytes], max_bytes: int) -> Iterator[Line]:
    """Yield the lines; never more than `max_bytes` and a piece of one are held in memory."""
    number = offset = 0
    while piece := handle.readline(max_bytes + 1):
        number += 1
        content = piece.removesuffix(b"\n")
        size, sha256 = len(content), None
        if size > max_bytes:
            digest = hashlib.sha256(content)
            while not piece.endswith(b"\n") and (piece := handle.readline(_CHUNK)):
                digest.update(rest := piece.removesuffix(b"\n"))
                size += len(rest)
            sha256 = digest.hexdigest()
        yield Line(number, offset, size, content, sha256)
        offset += size + 1


def jsonl_row(file: str, line: Line) -> Row:
    """The row of a line; one that is no JSON object has its reason instead of values."""
    return _row(file, [line], _json_values(line))


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
    is_object = isinstance(values, dict)
    return values if is_object else Rejected("not_an_object", f"expected a JSON object, found {kind(values)}")


def json_rows(handle: IO[bytes], file: str, max_bytes: int) -> Iterator[Row | Line]:
    """The elements of a JSON array, counted from 1, each with its bytes; of any other text the lines."""
    if not cast(Any, handle).peek(_CHUNK).removeprefix(_BOM.encode()).lstrip().startswith(b"["):
        yield from read_lines(handle, max_bytes)
        return
    decoder = json.JSONDecoder(parse_int=str, parse_float=str)  # what they hold is looked at later
    try:
        text = handle.read().decode("utf-8")
        count, at, offset = len(decoder.decode(text.removeprefix(_BOM))), 0, 0
        for number in range(1, count + 1):
            start = cast(Any, _ELEMENT.search(text, at or text.index("[") + 1)).start()
            offset, (_, end) = offset + len(text[at:start].encode()), decoder.raw_decode(text, start)
            content, at = text[start:end].encode(), end
            sha256 = hashlib.sha256(content).hexdigest() if len(content) > max_bytes else None
            yield jsonl_row(file, Line(number, offset, len(content), content, sha256))
            offset += len(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: no whole JSON array ({error}); mend it, or write its rows as lines (JSONL)") from None


class _Lines(Iterator[Line]):
    """Lines, of which those that were read too early can be given back."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._given_back: deque[Line] = deque()

    def __next__(self) -> Line:
        return self._given_back.popleft() if self._given_back else next(self._lines)

    def give_back(self, lines: list[Line]) -> None:
        self._given_back.extendleft(reversed(lines))


def csv_rows(handle: IO[bytes], file: str, max_bytes: int) -> Iterator[Row]:
    """A row for every record after the first, which names the columns; commas, semicolons or tabs separate.

    A record begins on the line after the last one's end. Where its quotes cannot be right, it is rejected line by
    line, for parts of a broken record must not pass for rows; if more than half of the lines behind its first are
    whole rows by themselves, that one alone is, and reading goes on behind it.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    lines = _Lines(read_lines(handle, max_bytes))
    if (first := next(lines, None)) is None:
        return
    lines.give_back([first._replace(content=first.content.removeprefix(_BOM.encode()))])
    # Names of columns hold no separators, so the most frequent one is the separator.
    table = _Csv(max(",;\t", key=first.content.decode("utf-8", "replace").count), [], max_bytes)
    try:
        table.columns.extend(_header(table.fields(lines, []), file))
    except (Rejected, csv.Error) as error:
        fault = _BARE_RETURN if b"\r" in first.content.rstrip(b"\r") else error
        raise UserError(f"{file}: the first line must name the columns ({fault})") from None
    while (record := table.next_record(lines))[0]:
        taken, values = record
        doubt, inner = None, len(taken) - 2
        rows = table.whole_rows(taken[1:-1]) if inner > 0 else 0
        if isinstance(values, dict) and inner >= _MANY and rows >= 0.9 * inner:
            values = Rejected("not_csv", f"the quote here takes in {inner} lines that are rows by themselves")
        elif isinstance(values, dict) and 2 * rows > inner > 0:
            doubt = f"a field takes in {inner} lines that could be rows by themselves; is a quote missing or too many?"
        if not isinstance(values, Rejected) or (values.reason not in _BROKEN and inner < 0):
            yield _row(file, taken, values, doubt)
            continue
        part = Rejected(values.reason, f"part of the record that begins on line {taken[0].number}")
        for line in table.spoiled(taken, lines, look_ahead=values.reason == "not_csv"):
            yield _row(file, [line], values if line is taken[0] else part)


@dataclass(frozen=True)
class _Csv:
    """How the records of a file are written."""

    separator: str
    columns: list[str]
    max_bytes: int

    def next_record(self, lines: Iterator[Line]) -> tuple[list[Line], dict[str, str] | Rejected]:
        """The lines of the next record as RFC 4180 has it, and its values; no lines at the end of the file."""
        taken: list[Line] = []
        try:
            return taken, _csv_values(self.columns, self.fields(lines, taken), taken)
        except csv.Error as error:
            return taken, Rejected("not_csv", _BARE_RETURN if "new-line character" in str(error) else str(error))
        except Rejected as rejected:
            return taken, rejected

    def fields(self, lines: Iterator[Line], taken: list[Line]) -> list[str]:
        """The fields of the next record, whose lines go to `taken`. Raises csv.Error or Rejected."""

        def texts() -> Iterator[str]:
            size = -1
            for line in lines:
                taken.append(line)
                size += line.size + 1
                if size > self.max_bytes:
                    raise _too_long(size)
                # Bytes that are not UTF-8 pass, so that they spoil their own record alone.
                yield line.content.decode("utf-8", "surrogateescape") + "\n"

        return next(csv.reader(texts(), delimiter=self.separator, strict=True), [])

    def spoiled(self, taken: list[Line], lines: _Lines, look_ahead: bool) -> list[Line]:
        """The lines that go with a broken record, the others of `taken` given back.

        A quote that is not doubled ends a field of several lines too early: what is left of it reaches to the next
        line with an odd quote inside of a field, unless whole rows lie between.
        """
        if 2 * self.whole_rows(taken[1:]) > len(taken[1:]):
            lines.give_back(taken[1:])
            return taken[:1]
        ahead = list(islice(lines, _AHEAD)) if look_ahead else []
        lines.give_back(ahead)
        rest, end = iter(ahead), 0
        while (record := self.next_record(rest))[0]:
            end += len(record[0])
            if len(record[0]) == 1 and record[0][0].content.count(b'"') % 2:
                if 2 * self.whole_rows(ahead[:end]) > end:
                    break
                return taken + [next(lines) for _ in range(end)]
        return taken

    def whole_rows(self, lines: list[Line]) -> int:
        """How many of the lines belong to records that are sound by themselves, without a quote inside of a field."""
        count, rest = 0, iter(lines)
        while (record := self.next_record(rest))[0]:
            taken, values = record
            raw = b"\n".join(line.content for line in taken)
            if isinstance(values, dict) and "".join(values.values()).count('"') <= raw.count(b'""'):
                count += len(taken)
        return count


def _row(file: str, lines: list[Line], values: dict[str, str] | Rejected, doubt: str | None = None) -> Row:
    first = lines[0]
    span = Span(first.offset, first.size, first.sha256) if first.sha256 else None
    raw = partial(b"\n".join, [line.content for line in lines])
    return Row(file, first.number, values, raw, span=span, doubt=doubt)


def _header(names: list[str], file: str) -> list[str]:
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        raise UserError(f"{file}: the first line must name the columns in UTF-8; convert the file with iconv") from None
    if len({*names}) < len(names) or not names or not all(names):
        raise UserError(f"{file}: the first line must name the columns, each once and none empty")
    return names


def _csv_values(header: list[str], fields: list[str], lines: list[Line]) -> dict[str, Any] | Rejected:
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
