"""Signs of poisoning and bias in the training rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.report.formats import excerpt, number, percent, plural, whole
from stages.report.inputs import Row

_EACH = 5  # rows shown of a finding


@dataclass(frozen=True)
class Place:
    """A training row: where it is from, its label and its prompt."""

    where: str
    label: str
    prompt: str


@dataclass(frozen=True)
class Finding:
    """A suspected trigger, or a cluster of near-duplicates with different labels."""

    title: str
    rows: list[Place]


@dataclass(frozen=True)
class Tie:
    """An n-gram that goes with one label; `lift` is how much more often than all rows."""

    ngram: str
    label: str
    rows: str
    lift: str


@dataclass(frozen=True)
class SourceRow:
    """A source of training rows, with its distances from the others from 0 to 1."""

    name: str
    cells: list[str]


def check_facts(found: Mapping[str, Any]) -> list[str]:
    """Sentences from metrics/checks.json."""
    sources, triggers, conflicts = found["sources"], found["triggers"], found["conflicts"]
    return [
        f"{plural(triggers['tested'], 'word or run of words', 'words and runs of words')} tested: "
        f"{whole(triggers['found'])} suspected as triggers, in {plural(triggers['rows'], 'row')}; "
        f"{whole(triggers['tied'])} go with one label, as words of the task do",
        f"{plural(conflicts['clusters'], 'cluster')} of near-duplicates with different labels, "
        f"{plural(conflicts['rows'], 'row')} ({percent(conflicts['share'])} of all)",
        f"{plural(sources['count'], 'source')}; the largest has {percent(sources['largest_share'])} of the rows. "
        f"Furthest from the others: {number(sources['largest_distance'])} (0 alike, 1 nothing in common)",
    ]


def triggers(rows: Sequence[Row]) -> list[Finding]:
    """Suspected triggers with the rows whose label they turned."""
    return [
        Finding(
            title=f"“{excerpt(row['ngram'], 80)}”: {row['turned']} of {plural(row['count'], 'row')} are labelled "
            f"{excerpt(row['label'], 60)} against their other words",
            rows=[_place(one) for one in row["rows"][:_EACH]],
        )
        for row in rows
    ]


def conflicts(rows: Sequence[Row]) -> list[Finding]:
    """Near-duplicates with different labels."""
    return [
        Finding(
            title=", ".join(f"{excerpt(label, 60)} {count}" for label, count in row["labels"].items()),
            rows=[_place(one) for one in row["rows"][:_EACH]],
        )
        for row in rows
    ]


def ties(rows: Sequence[Row]) -> list[Tie]:
    """The words that go with one label most clearly."""
    return [
        Tie(
            ngram=excerpt(row["ngram"], 80),
            label=excerpt(row["label"], 60),
            rows=f"{row['with_label']} of {row['count']}",
            lift=f"× {number(row['lift'])}",
        )
        for row in rows
    ]


def source_rows(found: Mapping[str, Any]) -> list[SourceRow]:
    distances = ("label_distance", "prompt_length_distance", "completion_length_distance")
    return [
        SourceRow(
            excerpt(name, 80), [whole(one["rows"]), percent(one["share"]), *(number(one[key]) for key in distances)]
        )
        for name, one in found["sources"]["by_source"].items()
    ]


def _place(row: Row) -> Place:
    where = f"{row['origin']}, source {excerpt(row['source'], 60)}"
    return Place(where, excerpt(row["label"], 60), excerpt(row["prompt"]))
