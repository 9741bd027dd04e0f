"""A hold-out that people bring: all rows of one source, such as a published test set."""

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stages.core.errors import UserError
from stages.prepare.split.lock import Drawn, Lock
from stages.prepare.split.partition import restore_locked
from stages.prepare.split.strata import Label, label_name
from stages.records.dropped import Rejected
from stages.records.record import Record

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class SourceRows:
    """The rows of a source: how many have each id, and one record for each.

    `copied` are the ids that another source has too, `restored` those that dedup had dropped.
    """

    rows: Counter[str]
    records: list[Record]
    copied: set[str]
    restored: set[str]

    def labels(self) -> dict[Label, tuple[int, int]]:
        """For each label its rows and its records; a row counts for the label of the record that stands for it."""
        rows: Counter[Label] = Counter()
        for record in self.records:
            rows[record.label] += self.rows[record.id]
        records = Counter(record.label for record in self.records)
        ordered = sorted(rows, key=lambda label: (label is None, label or ""))
        return {label: (rows[label], records[label]) for label in ordered}


def take_source(unique: Sequence[Record], duplicates: Sequence[Rejected], source: str) -> SourceRows:
    """All rows of the source, each id once: the set as published but for its exact repeats.

    A row that dedup dropped for a near one is locked itself, and not the one that stood for it, for what is near the
    former need not be near the latter. The split brings it back and keeps from training all that is near it.

    Raises:
        UserError: when there is no such source, or nothing else.
    """
    everything = [*unique, *(rejected.record for rejected in duplicates)]
    rows = Counter(row.id for row in everything if row.source == source)
    if not rows:
        raise UserError(f"no row is of the source {source!r}; {_known(source, {row.source for row in everything})}")
    if all(row.id in rows for row in unique):
        raise UserError(f"every row is of the source {source!r}, and none would be left to train on; add other rows")
    restored = restore_locked(unique, duplicates, rows.keys())
    return SourceRows(
        rows=rows,
        records=sorted([row for row in unique if row.id in rows] + restored, key=lambda row: row.id),
        copied={row.id for row in everything if row.source != source and row.id in rows},
        restored={row.id for row in restored},
    )


def came_later(unique: Sequence[Record], duplicates: Sequence[Rejected], lock: Lock) -> int:
    """How many rows, each id once, have come to the source that was locked; 0 where none was."""
    if isinstance(lock.drawn, Drawn):
        return 0
    everything = [*unique, *(rejected.record for rejected in duplicates)]
    return len({row.id for row in everything if row.source == lock.drawn.source} - {row.id for row in lock.rows})


def source_table(found: SourceRows) -> Iterator[str]:
    """The lines of a table with one line for each label and the sum, and where the locked rows were found."""
    labels = {label_name(label): counts for label, counts in found.labels().items()}
    labels["all"] = (found.rows.total(), len(found.records))
    width = max(map(len, ["label", *labels]))
    yield f"{'label':{width}}  {'rows':>7}  {'locked':>7}  {'repeats of locked rows':>22}"
    for name, (rows, locked) in labels.items():
        yield f"{name:{width}}  {rows:7}  {locked:7}  {rows - locked:22}"
    yield f"{len(found.copied)} of the locked rows are in other sources too, and are taken from them"
    yield f"{len(found.restored)} of the locked rows dedup had dropped for a row like them; the split brings them back"


def _known(source: str, sources: set[str]) -> str:
    if near := difflib.get_close_matches(source, sources, n=1):
        return f"did you mean {near[0]!r}?"
    more = f" and {len(sources) - _SHOWN} more" if len(sources) > _SHOWN else ""
    return f"the sources are {', '.join(sorted(sources)[:_SHOWN])}{more}"
