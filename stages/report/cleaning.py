"""What cleaning did: by reason with examples before and after, and by source."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stages.report.differences import Piece, differences, whole
from stages.report.formats import excerpt, words
from stages.report.inputs import Row


@dataclass(frozen=True)
class Sample:
    """A row that cleaning changed or rejected; `before` is None where it held personal data, `after` where rejected."""

    where: str
    before: list[Piece] | None
    after: list[Piece] | None
    detail: str


@dataclass(frozen=True)
class Reason:
    name: str
    rows: int
    samples: list[Sample]


@dataclass(frozen=True)
class Source:
    """The rows of a source, with the reasons for which they were rejected or changed."""

    name: str
    rows: int
    kept: int
    rejected: str
    changed: str


def changed(clean: Mapping[str, Any], samples: Iterable[Row]) -> list[Reason]:
    """What cleaning changed in rows that it kept, the most frequent first."""
    return _reasons("changed", clean["changed"], samples)


def rejected(clean: Mapping[str, Any], samples: Iterable[Row]) -> list[Reason]:
    """Why rows were rejected, the most frequent first."""
    return _reasons("rejected", clean["rejected"], samples)


def masked(clean: Mapping[str, Any]) -> str:
    """The personal data that was masked, as "email 4, phone 3"."""
    return _listed(clean["personal_data"])


def sources(clean: Mapping[str, Any]) -> list[Source]:
    return [
        Source(
            name=excerpt(name, 80),
            rows=one["rows"]["in"],
            kept=one["rows"]["kept"],
            rejected=_listed(one.get("rejected", {})),
            changed=_listed(one.get("changed", {})),
        )
        for name, one in clean["sources"].items()
    ]


def _reasons(kind: str, counts: Mapping[str, int], samples: Iterable[Row]) -> list[Reason]:
    found: dict[str, list[Sample]] = {}
    for row in samples:
        if row["kind"] == kind:
            found.setdefault(row["reason"], []).append(_sample(row))
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [Reason(words(name), count, found.get(name, [])) for name, count in most_first if count]


def _sample(row: Row) -> Sample:
    before, after = (None if row[key] is None else excerpt(row[key]) for key in ("before", "after"))
    old = None if before is None else whole(before)
    new = None if after is None else whole(after)
    if before is not None and after is not None:
        old, new = differences(before, after)
    column = f", {excerpt(row['column'], 40)}" if row["column"] else ""
    return Sample(f"{row['file']}, line {row['line']}{column}", old, new, excerpt(row["detail"] or ""))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{words(name)} {count:,}" for name, count in counts.items() if count)
