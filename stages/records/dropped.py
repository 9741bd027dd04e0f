"""Records that a data stage takes out, each with its reason and the record that stands against it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.records.record import Record, read_rows, record_of, record_row, write_rows


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that was taken out.

    `witness` is the id of the record because of which it was, `score` how alike their prompts are (0 to 100,
    rounded down to hundredths); both are None where no other record is the cause.
    """

    reason: str
    detail: str
    witness: str | None
    score: float | None
    record: Record


def origin_place(record: Record) -> tuple[str, int]:
    """File and line of a record's origin, for sorting: line 9 comes before line 10."""
    file, _, line = record.origin.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (record.origin, 0)


def copy_rank(record: Record) -> tuple[bool, str, str, tuple[str, int]]:
    """Of records with one id the first in this order stands for all.

    It is the labelled one, then the one with the smallest label and source, then the one from the smallest file and
    line: only `origin` can depend on the order of the raw rows.
    """
    return record.label is None, record.label or "", record.source, origin_place(record)


def write_dropped(path: Path, rows: Iterable[Dropped]) -> None:
    """Write the rows sorted by record id, then origin."""
    ordered = sorted(rows, key=lambda row: (row.record.id, origin_place(row.record)))
    write_rows(path, map(_row, ordered))


def _row(dropped: Dropped) -> dict[str, Any]:
    return {name: getattr(dropped, name) for name in Dropped.__slots__} | {"record": record_row(dropped.record)}


def read_dropped(path: Path) -> list[Dropped]:
    """Read what `write_dropped` wrote. Raises UserError when a row is something else."""
    rows = []
    for number, row in enumerate(read_rows(path), start=1):
        try:
            rows.append(Dropped(**{**row, "record": record_of(row["record"])}))
        except (TypeError, KeyError):
            raise UserError(f"{path}, line {number}: not a dropped record; run `dvc repro` to make it anew") from None
    return rows
