"""Rows that were dropped as duplicates, or kept out of training because of the hold-out."""

from collections.abc import Iterable
from dataclasses import dataclass

from stages.report.inputs import Row
from stages.report.wording import excerpt, words


@dataclass(frozen=True)
class SetAside:
    """A row that a data stage set aside."""

    where: str
    reason: str
    text: str
    detail: str


def set_aside(rows: Iterable[Row]) -> list[SetAside]:
    """Duplicates or quarantined rows, with the row that each one repeats."""
    return [
        SetAside(
            where=row["record"]["origin"],
            reason=words(row["reason"]),
            text=excerpt(row["record"]["prompt"]),
            detail=_witness(row),
        )
        for row in rows
    ]


def _witness(row: Row) -> str:
    if not row["witness"]:
        return ""
    score = "" if row["score"] is None else f", similarity {row['score']:g}"
    return f"matches row {row['witness'][:12]}{score}"
