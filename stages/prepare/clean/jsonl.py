"""Rows of JSONL: one JSON object a line."""

from collections.abc import Iterator
from typing import IO, Any

from stages.prepare.clean.lines import Line, read_lines
from stages.prepare.clean.rows import Rejected, Row
from stages.text.strict_json import BrokenContract, parse_json

_BOM = "\ufeff"
_KINDS = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    type(None): "null",
    int: "a number",
    float: "a number",
}


def jsonl_rows(handle: IO[bytes], file: str, max_bytes: int) -> Iterator[Row]:
    """A row for every line; one that is no JSON object has its reason instead of values."""
    for line in read_lines(handle, max_bytes):
        yield Row(file, line.number, _values(line), line.pieces, long=line.content is None)


def kind(value: Any) -> str:
    """What a value is, in JSON's words; binary formats have types of their own."""
    return _KINDS.get(type(value), type(value).__name__)


def too_long(size: int) -> Rejected:
    return Rejected("line_too_long", f"{size} bytes; clean.max_line_bytes allows fewer")


def not_utf8(error: UnicodeDecodeError) -> Rejected:
    found = error.object[error.start]
    return Rejected("not_utf8", f"byte 0x{found:02x} at position {error.start} is not UTF-8")


def _values(line: Line) -> dict[str, Any] | Rejected:
    if line.content is None:
        return too_long(line.size)
    try:
        text = line.content.decode("utf-8")
    except UnicodeDecodeError as error:
        return not_utf8(error)
    if line.number == 1:
        text = text.removeprefix(_BOM)
    if not text.strip(" \t\r"):
        return Rejected("blank_line", "nothing on this line")
    try:
        values = parse_json(text)
    except BrokenContract as error:
        return Rejected("not_json", str(error))
    return (
        values
        if isinstance(values, dict)
        else Rejected("not_an_object", f"expected a JSON object, found {kind(values)}")
    )
