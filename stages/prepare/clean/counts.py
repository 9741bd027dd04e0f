"""What happened to the rows: the metrics by source, the tables for people, examples, the refusal of many rejections."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.core.errors import UserError
from stages.prepare.clean import operators
from stages.prepare.clean.cleaning import Kept
from stages.prepare.clean.rejected_rows import Rejected, Row
from stages.prepare.clean.shapes import SHAPES
from stages.prepare.clean.sources import RawFile
from stages.text.normal_form import Unsettled
from stages.text.personal_data import NAMES, TYPES, masker

_OPERATORS = (*operators.NAMES, "completion_form")
_PLACES = 3  # shown for each reason
_COLUMNS = 100  # names of left-out columns that are counted for a source; a file can have a new one in every row
_EXAMPLES = 5  # of each reason
_LONGEST = 600
_READ = 8 * _LONGEST  # of a raw row, before masking: what is cut off must not leave half of a number


@dataclass(slots=True)
class Counts:
    """Counts over rows; all but `rejected` count kept rows only."""

    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    personal_data: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    completions: int = 0

    def add(self, outcome: Kept | Rejected) -> None:
        if isinstance(outcome, Rejected):
            self.rejected[outcome.reason] += 1
            return
        self.kept += 1
        self.changed.update(outcome.changed.keys())
        self.completions += outcome.completion_changed
        self.personal_data.update(outcome.personal_data)
        self.shapes[outcome.shape] += 1
        for column in outcome.left_out:
            if column in self.left_out or len(self.left_out) < _COLUMNS:
                self.left_out[column] += 1

    def metrics(self) -> dict[str, Any]:
        rejected = self.rejected.total()
        return {
            "rows": {"in": self.kept + rejected, "kept": self.kept, "rejected": rejected},
            "rejected": dict(sorted(self.rejected.items())),
            "changed": {operator: self.changed[operator] for operator in _OPERATORS},
            "completions_changed": {"rows": self.completions, "share": round(self.completions / max(1, self.kept), 4)},
        }

    def of_source(self) -> dict[str, Any]:
        """Without empty parts."""
        shapes = {shape: self.shapes[shape] for shape in SHAPES if self.shapes[shape]}
        metrics = {**self.metrics(), "shapes": shapes, "columns_left_out": dict(sorted(self.left_out.items()))}
        return {part: values for part, values in metrics.items() if values}


@dataclass(slots=True)
class Tally:
    """The counts of all rows and those of each source; of data sets by name also the SHA-256 of what was read."""

    total: Counts = field(default_factory=Counts)
    sources: dict[str, Counts] = field(default_factory=lambda: defaultdict(Counts))
    places: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    digests: dict[str, Any] = field(default_factory=lambda: defaultdict(hashlib.sha256))
    doubts: list[str] = field(default_factory=list)

    def add(self, file: RawFile, row: Row, outcome: Kept | Rejected) -> None:
        self.total.add(outcome)
        self.sources[file.source].add(outcome)
        if file.data is not None:
            self.digests[file.file].update(row.raw() + b"\n")
        if row.doubt:
            self.doubts.append(f"{row.file}:{row.number}: {row.doubt}")
        if isinstance(outcome, Rejected) and len(self.places[outcome.reason]) < _PLACES:
            self.places[outcome.reason].append(f"{row.file}:{row.number}: {outcome.detail}")

    def metrics(self) -> dict[str, Any]:
        """Counts of all rows and by source; `data_sets` has the SHA-256 over the rows of each, as JSON lines."""
        sources = {name: counts.of_source() for name, counts in sorted(self.sources.items())}
        personal_data = {kind: self.total.personal_data[kind] for kind in TYPES}
        digests = {name: digest.hexdigest() for name, digest in sorted(self.digests.items())}
        data_sets = {"data_sets": digests} if digests else {}
        return {**self.total.metrics(), "personal_data": personal_data, "sources": sources, **data_sets}

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
        if not kept or rejected > max_rejected_share * rows:
            raise UserError(
                f"{rejected} of {rows} raw rows rejected ({rejected / rows:.1%}); {max_rejected_share:.1%} are allowed "
                f"(clean.max_rejected_share) and at least one row must be kept\n{self._reasons()}\n{remedy}"
            )

    def warnings(self) -> list[str]:
        """The first places of rows that may not be what was meant."""
        more = len(self.doubts) - _PLACES
        return [*self.doubts[:_PLACES], *([f"{more} more like that"] if more > 0 else [])]

    def text(self) -> str:
        """All of it in words and tables."""
        rows = self.total.metrics()["rows"]
        sources = [
            (
                name,
                counts.kept + counts.rejected.total(),
                counts.kept,
                _listed(counts.shapes),
                ", ".join(sorted(counts.left_out)),
            )
            for name, counts in sorted(self.sources.items())
        ]
        parts = [
            f"{rows['in']} rows, {rows['kept']} fit, {rows['rejected']} rejected",
            self._reasons() if rows["rejected"] else "",
            _table(sources, ("source", "rows", "fit", "shapes", "columns left out")),
            f"rows that cleaning changes: {_listed(self.total.changed) or 'none'}",
            f"rows whose completion it changes: {self.total.completions}" if self.total.completions else "",
        ]
        if masked := _listed(+self.total.personal_data):
            parts.append(f"personal data that it masks: {masked}")
        parts += self.warnings()
        return "\n".join(filter(None, parts))

    def _reasons(self) -> str:
        """The rejected rows by reason, the most frequent first, and the first places of each."""
        rows: list[tuple[str, Any, str]] = []
        for reason, count in sorted(self.total.rejected.items(), key=lambda item: (-item[1], item[0])):
            first, *others = self.places[reason]
            rows += [(reason, count, first), *(("", "", place) for place in others)]
        return _table(rows, ("reason", "rows", "first at"))


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


class Examples:
    """A few examples of what cleaning did, for the report: `data/changes/clean_examples.jsonl`.

    One JSON object a line, at most five for each reason, in the order of the raw rows:

        kind     "changed" (by the operator `reason`, in a row that was kept) or "rejected"
        reason   the operator (mojibake, html, whitespace, personal_data, completion_form) or that of the rejection
        file, line, source   where the raw row is
        column   the column that changed; null for a rejected row
        before   the text before, null where it held personal data; the start of the raw row where it was rejected
        after    the text after; null for a rejected row
        detail   the sentence that says why; null for a change

    Texts are cut at 600 characters. Whatever clean.mask_personal_data says, no text here holds personal data that the
    patterns find: rows of which the data themselves would be shown are passed over or masked.
    """

    def __init__(self, region: str) -> None:
        self._mask = masker([kind for kind in TYPES if kind not in NAMES], region, "")
        self._seen: Counter[tuple[str, str]] = Counter()
        self.rows: list[dict[str, Any]] = []

    def add(self, source: str, row: Row, outcome: Kept | Rejected) -> None:
        place = {"file": row.file, "line": row.number, "source": source}
        if isinstance(outcome, Rejected):
            self._offer("rejected", outcome.reason, place, lambda: self._of_rejected(row, outcome))
            return
        for operator in outcome.changed:
            self._offer("changed", operator, place, lambda name=operator: self._of_change(name, outcome))  # type: ignore[misc]

    def _offer(
        self, kind: str, reason: str, place: Mapping[str, Any], texts: Callable[[], dict[str, str | None] | None]
    ) -> None:
        if self._seen[kind, reason] < _EXAMPLES and (found := texts()):
            self._seen[kind, reason] += 1
            self.rows.append({"kind": kind, "reason": reason, **place, **found})

    def _of_rejected(self, row: Row, rejected: Rejected) -> dict[str, str | None]:
        before = self._shown(row.raw()[:_READ].decode("utf-8", "backslashreplace"))
        return {"column": None, "before": before, "after": None, "detail": rejected.detail}

    def _of_change(self, operator: str, kept: Kept) -> dict[str, str | None] | None:
        change = kept.changed[operator]
        before, after = self._shown(change.before), self._shown(change.after)
        if operator == "personal_data":
            before = None
        elif before != _cut(change.before) or after != _cut(change.after):
            return None
        return {"column": change.column, "before": before, "after": after, "detail": None}

    def _shown(self, text: str) -> str | None:
        try:
            # JSON writes a line feed as \n, whose n would pass for a part of the number after it.
            return _cut(self._mask(text.replace("\\n", "\n")))
        except Unsettled:
            return None


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
