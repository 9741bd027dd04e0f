"""A row of a raw file, whatever the file's format, and why a row is no record."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


class Rejected(Exception):
    """A row that is no record. `reason` is one of few words, counted in the metrics; `detail` is a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a raw file.

    `file` is its path below `clean.raw`. `number` counts from 1: the line on which the row begins, in binary
    formats the row. `group` is the row group (Parquet) or record batch (Arrow), counted from 0, in which a
    binary row lies. `values` are its columns, or why it has none. `raw` gives its bytes, as pieces where they
    are `long` and may not fit into memory; the pieces can be read until the next row is asked for.
    """

    file: str
    number: int
    values: dict[str, Any] | Rejected
    raw: Callable[[], Iterable[bytes]]
    long: bool = False
    group: int | None = None
