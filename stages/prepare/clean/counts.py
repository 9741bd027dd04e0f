"""What happened to the rows: the metrics by source, the tables for people, and the refusal of too many rejections."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from stages.core.errors import UserError
from stages.prepare.clean import operators
from stages.prepare.clean.cleaning import Kept
from stages.prepare.clean.rejected_rows import Rejected, Row, short
from stages.prepare.clean.shapes import SHAPES
from stages.prepare.clean.sources import RawFile
from stages.text.personal_data import TYPES

_OPERATORS = (*operators.NAMES, "completion_form")
_PLACES = 3  # shown for each reason
_COLUMNS = 100  # names of left-out columns that are counted for a source; a file can have a new one in every row


@dataclass(slots=True)
class Counts:
    """Counts over rows; all but `rejected` count kept rows only."""

    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    personal_data: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        return self.kept + self.rejected.total()

    def add(self, outcome: Kept | Rejected) -> None:
        if isinstance(outcome, Rejected):
            self.rejected[outcome.reason] += 1
            return
        self.kept += 1
        self.changed.update(outcome.changed.keys())
        self.personal_data.update(outcome.personal_data)
        self.shapes[outcome.shape] += 1
        for column in outcome.left_out:
            if column in self.left_out or len(self.left_out) < _COLUMNS:
                self.left_out[column] += 1

    def metrics(self) -> dict[str, Any]:
        return {
            "rows": {"in": self.rows, "kept": self.kept, "rejected": self.rejected.total()},
            "rejected": dict(sorted(self.rejected.items())),
            "changed": {operator: self.changed[operator] for operator in _OPERATORS},
            "personal_data": {kind: self.personal_data[kind] for kind in TYPES},
        }


@dataclass(slots=True)
class Tally:
    """The counts of all rows and those of each source; of data sets by name also the SHA-256 of what was read."""

    total: Counts = field(default_factory=Counts)
    sources: dict[str, Counts] = field(default_factory=lambda: defaultdict(Counts))
    places: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    digests: dict[str, Any] = field(default_factory=lambda: defaultdict(hashlib.sha256))

    def add(self, file: RawFile, row: Row, outcome: Kept | Rejected) -> None:
        self.total.add(outcome)
        self.sources[file.source].add(outcome)
        if file.data is not None:
            self.digests[file.file].update(row.raw() + b"\n")
        if isinstance(outcome, Rejected) and len(self.places[outcome.reason]) < _PLACES:
            self.places[outcome.reason].append(f"{row.file}:{row.number}: {short(outcome.detail)}")

    def metrics(self) -> dict[str, Any]:
        """Counts of all rows and by source; `data_sets` has the SHA-256 over the rows of each, as JSON lines."""
        sources = {name: _of_source(counts) for name, counts in sorted(self.sources.items())}
        digests = {name: digest.hexdigest() for name, digest in sorted(self.digests.items())}
        return {**self.total.metrics(), "sources": sources, **({"data_sets": digests} if digests else {})}

    def check(self, rows: int, max_rejected_share: float, remedy: str) -> None:
        """Hold the tally against the `rows` that were counted beforehand.

        Raises:
            UserError: when rows are unaccounted for, none is kept, or too many are rejected; with the table and
                the `remedy`.
        """
        kept, rejected = self.total.kept, self.total.rejected.total()
        if kept + rejected != rows:
            raise UserError(f"{rows} raw rows, but {kept} kept and {rejected} rejected; a raw file changed, run again")
        if rows == 0:
            raise UserError("the raw files hold no rows; put some into them")
        if kept and rejected <= max_rejected_share * rows:
            return
        raise UserError(
            f"{rejected} of {rows} raw rows rejected ({rejected / rows:.1%}); {max_rejected_share:.1%} are allowed "
            f"(clean.max_rejected_share) and at least one row must be kept\n{self._reasons()}\n{remedy}"
        )

    def text(self) -> str:
        """All of it in words and tables."""
        total = self.total
        parts = [f"{total.rows} rows, {total.kept} fit, {total.rejected.total()} rejected"]
        parts += [self._reasons()] if total.rejected else []
        parts.append(self._sources())
        parts.append(f"rows that cleaning changes: {_listed(total.changed) or 'none'}")
        if masked := _listed(+total.personal_data):
            parts.append(f"personal data that it masks: {masked}")
        return "\n".join(parts)

    def _reasons(self) -> str:
        """The rejected rows by reason, the most frequent first, and the first places of each."""
        rows: list[tuple[str, Any, str]] = []
        for reason, count in sorted(self.total.rejected.items(), key=lambda item: (-item[1], item[0])):
            first, *others = self.places[reason]
            rows += [(reason, count, first), *(("", "", place) for place in others)]
        return _table(rows, ("reason", "rows", "first at"))

    def _sources(self) -> str:
        rows = [
            (name, counts.rows, counts.kept, _listed(counts.shapes), ", ".join(sorted(counts.left_out)))
            for name, counts in sorted(self.sources.items())
        ]
        return _table(rows, ("source", "rows", "fit", "shapes", "columns left out"))


def _table(rows: list[Any], columns: tuple[str, ...]) -> str:
    from pandas import DataFrame  # late: the stage itself has no use for it

    frame = DataFrame(rows, columns=columns).astype(str)
    for column in columns:  # words begin at the left, numbers end at the right
        if column not in ("rows", "fit"):
            frame[column] = frame[column].str.ljust(max(len(column), *frame[column].str.len()))
            frame = frame.rename(columns={column: column.ljust(len(frame[column].iloc[0]))})
    return "\n".join(line.rstrip() for line in frame.to_string(index=False).splitlines())


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def _of_source(counts: Counts) -> dict[str, Any]:
    """Without empty parts."""
    metrics = counts.metrics()
    del metrics["personal_data"]
    metrics["shapes"] = {shape: counts.shapes[shape] for shape in SHAPES if counts.shapes[shape]}
    metrics["columns_left_out"] = dict(sorted(counts.left_out.items()))
    return {part: values for part, values in metrics.items() if values}
