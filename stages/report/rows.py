"""Rows that were dropped as duplicates, or kept out of training because of the hold-out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.report.formats import excerpt, percent, percents, plural, whole, words
from stages.report.inputs import Row


@dataclass(frozen=True)
class SetAside:
    """A row that a data stage set aside."""

    where: str
    reason: str
    text: str
    detail: str


def duplicate_facts(dedup: Mapping[str, Any]) -> list[str]:
    """Sentences from metrics/dedup.json: what was found, and whether the search could miss any."""
    return list(_facts(dedup))


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


def _facts(dedup: Mapping[str, Any]) -> Iterator[str]:
    pairs, clusters, search = dedup["pairs"], dedup["clusters"], dedup["search"]
    same, near = plural(pairs["exact"], "pair"), whole(pairs["near"])
    yield f"{same} of the same row, {near} of prompts that are near or the same"
    count, largest = plural(clusters["count"], "cluster"), plural(clusters["largest"], "row")
    yield f"{count} of near-duplicates; the largest has {largest}"
    if clusters["giant"]:
        giant = plural(clusters["giant"], "cluster is suspiciously large", "clusters are suspiciously large")
        yield f"{giant}: {plural(clusters['giant_rows'], 'row')}"
    if search["exact"]:
        yield f"searched exactly, as by comparing all pairs; {whole(search['comparisons'])} comparisons"
    elif search["recall"]["of"]:
        recall = search["recall"]
        yield (
            f"searched by hashing, which found {percent(recall['value'])} of the near pairs of a sample "
            f"({percents(recall['low'], recall['high'])} of {whole(recall['of'])})"
        )
    else:
        yield "searched by hashing; a sample had no near pairs to measure its recall by"


def _witness(row: Row) -> str:
    if not row["witness"]:
        return ""
    score = "" if row["score"] is None else f", similarity {row['score']:g}"
    return f"matches row {row['witness'][:12]}{score}"
