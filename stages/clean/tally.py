"""What happened to the rows: the metrics, and the refusal when too many were rejected."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from stages import paths
from stages.clean.cleaning import Kept
from stages.clean.lines import Line
from stages.clean.personal_data import TYPES
from stages.clean.rejected import short
from stages.clean.rows import Rejected
from stages.errors import UserError

_OPERATORS = ("mojibake", "html", "whitespace", "personal_data", "completion_form")


@dataclass(slots=True)
class Tally:
    """Counts over all rows; `changed`, `personal_data` and `sources` count kept rows only."""

    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first: dict[str, tuple[str, str]] = field(default_factory=dict)
    changed: Counter[str] = field(default_factory=Counter)
    personal_data: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)

    def add(self, line: Line, outcome: Kept | Rejected) -> None:
        if isinstance(outcome, Rejected):
            self.rejected[outcome.reason] += 1
            self.first.setdefault(outcome.reason, (f"{line.path.name}:{line.number}", short(outcome.detail)))
            return
        self.kept += 1
        self.changed.update(outcome.changed)
        self.personal_data.update(outcome.personal_data)
        self.sources[outcome.record.source] += 1

    def check(self, rows: int, max_rejected_share: float) -> None:
        """Hold the tally against the `rows` that were counted beforehand.

        Raises:
            UserError: when rows are unaccounted for, none is kept, or too many are rejected.
        """
        rejected = self.rejected.total()
        if self.kept + rejected != rows:
            raise UserError(
                f"{rows} raw rows, but {self.kept} kept and {rejected} rejected; a raw file changed, run again"
            )
        if rows == 0:
            raise UserError("the raw files hold no rows; put a JSON object a line into them")
        if self.kept and rejected <= max_rejected_share * rows:
            return
        raise UserError(
            f"{rejected} of {rows} raw rows rejected ({rejected / rows:.1%}); clean.max_rejected_share allows "
            f"{max_rejected_share:.1%} and at least one row must be kept\n{self._table()}\n"
            f"{paths.REJECTED_CLEAN} has them all. Mend the raw files, or the parameter that a reason names; "
            "raise clean.max_rejected_share if the loss is meant"
        )

    def _table(self) -> str:
        width = max(map(len, self.rejected))
        rows = [f"  {'reason':<{width}}  {'rows':>6}  first at"]
        for reason, count in self._by_count():
            place, detail = self.first[reason]
            rows.append(f"  {reason:<{width}}  {count:>6}  {place}: {detail}")
        return "\n".join(rows)

    def _by_count(self) -> list[tuple[str, int]]:
        return sorted(self.rejected.items(), key=lambda item: (-item[1], item[0]))

    def metrics(self) -> dict[str, Any]:
        rejected = self.rejected.total()
        return {
            "rows": {"in": self.kept + rejected, "kept": self.kept, "rejected": rejected},
            "rejected": dict(sorted(self.rejected.items())),
            "changed": {operator: self.changed[operator] for operator in _OPERATORS},
            "personal_data": {kind: self.personal_data[kind] for kind in TYPES},
            "sources": dict(sorted(self.sources.items())),
        }
