"""Rows that the data stages changed or set aside."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stages.report.inputs import Row
from stages.report.wording import excerpt, plural, words


@dataclass(frozen=True)
class SetAside:
    """A row that a data stage set aside."""

    where: str
    reason: str
    text: str
    detail: str


def changes(metrics: Mapping[str, Any]) -> list[str]:
    """What cleaning changed in the rows that it kept."""
    clean = metrics["clean"]
    changed = [f"{words(name)} in {plural(count, 'row')}" for name, count in clean["changed"].items() if count]
    masked = [f"{words(name)} {count}" for name, count in clean["personal_data"].items() if count]
    return changed + ([f"personal data masked: {', '.join(masked)}"] if masked else [])


def rejected_lines(rows: Iterable[Row]) -> list[SetAside]:
    """Raw lines that cleaning rejected."""
    return [
        SetAside(
            where=f"{row['file']}, line {row['line']}",
            reason=words(row["reason"]),
            text=excerpt(row["raw"]) if "raw" in row else f"in base 64: {excerpt(row['raw_base64'])}",
            detail=excerpt(row["detail"]),
        )
        for row in rows
    ]


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
