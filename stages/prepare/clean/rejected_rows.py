"""A row of a raw file, why a row is no record, and the side file of rejected rows."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from stages.records.record import row_line

_KINDS = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null", int: "a number"}


class Rejected(Exception):
    """A row that is no record. `reason` is one of few words, counted in the metrics; `detail` is a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Span(NamedTuple):
    """Where an over-long row lies in its raw file: bytes before it, its length in bytes, and its SHA-256."""

    offset: int
    length: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a raw file or data set.

    `file` is its path below `clean.raw`, or the data set and its split. `number` counts from 1: the line on which the
    row begins, in binary formats the row. `values` are its columns, or why it has none. `raw` gives its bytes; of an
    over-long row, which has a `span`, only the beginning. `doubt` says why what can be read may not be what was meant.
    """

    file: str
    number: int
    values: dict[str, Any] | Rejected
    raw: Callable[[], bytes]
    span: Span | None = None
    doubt: str | None = None


def kind(value: Any) -> str:
    """What a value is, in JSON's words; binary formats have types of their own."""
    return _KINDS.get(int if isinstance(value, float) else type(value), type(value).__name__)


def write_rejected(handle: IO[str], source: str, row: Row, rejected: Rejected) -> None:
    """Write one rejected row so that it can be read back byte for byte.

    Its bytes stand in `raw`, or in `raw_base64` if they are no UTF-8; of an over-long row `offset`, `length` and
    `sha256` say where they lie in the raw file.
    """
    place = {"file": row.file, "line": row.number, "source": source}
    head: dict[str, Any] = {**place, "reason": rejected.reason, "detail": rejected.detail}
    if row.span:
        head |= row.span._asdict()
    else:
        raw = row.raw()
        try:
            head["raw"] = raw.decode("utf-8")
        except UnicodeDecodeError:
            head["raw_base64"] = base64.b64encode(raw).decode("ascii")
    handle.write(row_line(head))
