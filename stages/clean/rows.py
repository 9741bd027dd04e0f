"""One raw line to one raw row, strictly: what is no row is rejected with its reason."""

import difflib
from dataclasses import dataclass
from typing import Any

from stages.clean.lines import Line
from stages.completions import BrokenContract, parse_json

COLUMNS = ("prompt", "completion", "label", "source", "id")
_BOM = "\ufeff"
_JSON_NAMES = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}


class Rejected(Exception):
    """A line that is no record. `reason` is one of few words, counted in the metrics; `detail` is a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class RawRow:
    prompt: str
    completion: str
    label: str | None
    source: str | None


def parse_row(line: Line, ignore_columns: list[str]) -> RawRow:
    """Read one line.

    Raises:
        Rejected: blank_line, line_too_long, not_utf8, not_json, not_an_object, unknown_column,
            missing_field or wrong_type.
    """
    row = _parse_object(_decode(line), first=line.number == 1)
    for column in row:
        if column not in COLUMNS and column not in ignore_columns:
            raise Rejected("unknown_column", _unknown(column))
    return RawRow(
        prompt=_text(row, "prompt"),
        completion=_text(row, "completion"),
        label=_optional_text(row, "label"),
        source=_optional_text(row, "source"),
    )


def _decode(line: Line) -> str:
    if line.content is None:
        raise Rejected("line_too_long", f"{line.size} bytes; clean.max_line_bytes allows fewer")
    try:
        return line.content.decode("utf-8")
    except UnicodeDecodeError as error:
        found = line.content[error.start]
        raise Rejected("not_utf8", f"byte 0x{found:02x} at position {error.start} is not UTF-8") from None


def _parse_object(text: str, first: bool) -> dict[str, Any]:
    if first:
        text = text.removeprefix(_BOM)
    if not text.strip(" \t\r"):
        raise Rejected("blank_line", "nothing on this line")
    try:
        row = parse_json(text)
    except BrokenContract as error:
        raise Rejected("not_json", str(error)) from None
    if not isinstance(row, dict):
        raise Rejected("not_an_object", f"expected a JSON object, found {_kind(row)}")
    return row


def _unknown(column: str) -> str:
    near = difflib.get_close_matches(column.lower(), COLUMNS, n=1, cutoff=0.7)
    meant = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(COLUMNS)};"
    return f"column {column!r} is unknown; {meant} To leave it out, name it in clean.ignore_columns"


def _text(row: dict[str, Any], column: str) -> str:
    if column not in row:
        raise Rejected("missing_field", f"{column!r} is missing; the row has {', '.join(map(repr, row)) or 'nothing'}")
    value = row[column]
    if isinstance(value, str):
        return value
    hint = "; write the JSON into a string, as json.dumps does" if isinstance(value, dict | list) else ""
    raise Rejected("wrong_type", f"{column!r} must be a string, found {_kind(value)}{hint}")


def _optional_text(row: dict[str, Any], column: str) -> str | None:
    return None if row.get(column) is None else _text(row, column)


def _kind(value: Any) -> str:
    return _JSON_NAMES.get(type(value), "a number")
