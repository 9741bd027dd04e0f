"""What happened to the rows: the metrics by source, and the refusal when too many were rejected."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from stages.core.errors import UserError
from stages.prepare.clean import operators
from stages.prepare.clean.cleaning import Kept
from stages.prepare.clean.rejected_rows import short
from stages.prepare.clean.rows import Rejected, Row
from stages.prepare.clean.shapes import SHAPES
from stages.text.personal_data import TYPES

_OPERATORS = (*operators.NAMES, "completion_form")
_PLACES = 3  # shown for each reason
_COLUMNS = 100  # names of left-out columns that are counted for a source; a file can have a new one in every row


@dataclass(slots=True)
class Counts:
    """Counts over rows; all but `rejected` and `places` count kept rows only."""

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
    """The counts of all rows and those of each source."""

    total: Counts = field(default_factory=Counts)
    sources: dict[str, Counts] = field(default_factory=lambda: defaultdict(Counts))
    places: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, source: str, row: Row, outcome: Kept | Rejected) -> None:
        self.total.add(outcome)
        self.sources[source].add(outcome)
        if isinstance(outcome, Rejected) and len(self.places[outcome.reason]) < _PLACES:
            self.places[outcome.reason].append(f"{row.file}:{row.number}: {short(outcome.detail)}")

    def metrics(self) -> dict[str, Any]:
        sources = {name: _of_source(counts) for name, counts in sorted(self.sources.items())}
        return {**self.total.metrics(), "sources": sources}

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
            f"(clean.max_rejected_share) and at least one row must be kept\n{self.table()}\n{remedy}"
        )

    def table(self) -> str:
        """The rejected rows by reason, the most frequent first, and the first places of each."""
        width = max(map(len, self.total.rejected), default=0)
        lines = [f"  {'reason':<{width}}  {'rows':>6}  first at"]
        for reason, count in sorted(self.total.rejected.items(), key=lambda item: (-item[1], item[0])):
            first, *others = self.places[reason]
            lines.append(f"  {reason:<{width}}  {count:>6}  {first}")
            lines += [f"  {'':<{width}}  {'':>6}  {place}" for place in others]
        return "\n".join(lines)


def _of_source(counts: Counts) -> dict[str, Any]:
    """Without empty parts, which `dvc metrics` would drop."""
    metrics = counts.metrics()
    del metrics["personal_data"]
    metrics["shapes"] = {shape: counts.shapes[shape] for shape in SHAPES if counts.shapes[shape]}
    metrics["columns_left_out"] = dict(sorted(counts.left_out.items()))
    return {part: values for part, values in metrics.items() if values}
