"""What happened to the rows: the metrics by source, the tables for people, examples, the refusal of many rejections."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from stages.core.errors import UserError
from stages.prepare.clean import operators
from stages.prepare.clean.cleaning import Kept, cut
from stages.prepare.clean.rejected_rows import Rejected, Row
from stages.prepare.clean.shapes import SHAPES
from stages.prepare.clean.sources import RawFile
from stages.text.personal_data import TYPES

_OPERATORS = (*operators.NAMES, "completion_form")
_PLACES = 3  # shown for each reason
_COLUMNS = 100  # names of left-out columns that are counted for a source; a file can have a new one in every row
_EXAMPLES = 5  # of each reason
_LONGEST = 600

Counts = Counter[tuple[str, str]]  # by what is counted and its name; all but rejections are of kept rows
Shown = Callable[[str, int], str]


def count_part(file: RawFile, outcomes: Iterable[tuple[Row, Kept | Rejected]], shown: Shown) -> dict[str, Any]:
    """What happened to a run of rows of one file, as JSON has it, for a `Tally` to add up."""
    rows, counts, left_out, seen = 0, Counts(), Counter[str](), Counter[tuple[str, str]]()
    examples, doubts, raw = list[dict[str, Any]](), list[str](), list[str]()
    for row, outcome in outcomes:
        rows += 1
        counts.update(_counted(outcome))
        left_out.update(() if isinstance(outcome, Rejected) else outcome.left_out)
        if file.format == "data set":
            raw.append(row.raw().decode("latin-1"))
        if row.doubt:
            doubts.append(f"{row.file}:{row.number}: {row.doubt}")
        kind = "rejected" if isinstance(outcome, Rejected) else "changed"
        for reason in [outcome.reason] if isinstance(outcome, Rejected) else outcome.changed:
            if seen[kind, reason] < _EXAMPLES and (texts := _texts(reason, row, outcome, shown)):
                seen[kind, reason] += 1
                place = {"file": row.file, "line": row.number, "source": file.source}
                examples.append({"kind": kind, "reason": reason, **place, **texts})
    said = {"counts": [(*key, count) for key, count in counts.items()], "left_out": left_out}
    place = {"file": file.file, "source": file.source, "rows": rows}
    return {**place, **said, "examples": examples, "doubts": doubts, "raw": raw}


def _texts(reason: str, row: Row, outcome: Kept | Rejected, shown: Shown) -> dict[str, str | None] | None:
    def short(text: str) -> str:
        # JSON writes a line feed as \n, whose n would pass for a part of the number after it.
        return shown(text.replace("\\n", "\n"), _LONGEST)

    if isinstance(outcome, Rejected):
        before = short(row.raw()[: 8 * _LONGEST].decode("utf-8", "backslashreplace"))
        return {"column": None, "before": before, "after": None, "detail": outcome.detail}
    change = outcome.changed[reason]
    texts = {"before": short(change.before), "after": short(change.after)}
    if reason != "personal_data" and texts != {name: cut(getattr(change, name), _LONGEST) for name in texts}:
        return None
    masked = {"before": None} if reason == "personal_data" else {}
    return {"column": change.column, **texts, **masked, "detail": None}


def _counted(outcome: Kept | Rejected) -> Iterator[tuple[str, str]]:
    if isinstance(outcome, Rejected):
        yield "rejected", outcome.reason
        return
    yield "kept", ""
    yield "shapes", outcome.shape
    yield from (("changed", operator) for operator in outcome.changed)
    yield from (("personal_data", kind) for kind in outcome.personal_data.elements())
    if any(change.column == "completion" for change in outcome.changed.values()):
        yield "completions", ""


def _of(counts: Counts, what: str) -> Counter[str]:
    return Counter({name: count for (one, name), count in sorted(counts.items()) if one == what})


class Tally:
    """The counts of all rows and those of each source, and a few examples of what cleaning did.

    `examples` are for the report, at most five for each reason, in the order of the raw rows:

        kind     "changed" (by the operator `reason`, in a row that was kept) or "rejected"
        reason   the operator (mojibake, html, whitespace, personal_data, completion_form) or that of the rejection
        file, line, source   where the raw row is
        column   the column that changed; null for a rejected row
        before   the text before, null where it held personal data; the start of the raw row where it was rejected
        after    the text after; null for a rejected row
        detail   the sentence that says why; null for a change

    Whatever clean.mask_personal_data says, no text here holds personal data that the patterns of `shown` find.
    """

    def __init__(self) -> None:
        self._total, self._sources = Counts(), defaultdict[str, Counts](Counts)
        self._left_out: dict[str, Counter[str]] = defaultdict(Counter)
        self._seen: Counter[tuple[str, str]] = Counter()
        self._digests: dict[str, Any] = defaultdict(hashlib.sha256)  # of the rows of data sets by name
        self._doubts: list[str] = []
        self.examples: list[dict[str, Any]] = []

    def add(self, part: Mapping[str, Any]) -> None:
        """Add what `count_part` made of a shard; shards come in the order of the rows."""
        source = part["source"]
        for counts in (self._total, self._sources[source]):
            counts.update({(what, name): count for what, name, count in part["counts"]})
        for column, count in part["left_out"].items():
            if column in self._left_out[source] or len(self._left_out[source]) < _COLUMNS:
                self._left_out[source][column] += count
        for raw in part["raw"]:
            self._digests[part["file"]].update(raw.encode("latin-1") + b"\n")
        self._doubts += part["doubts"]
        for example in part["examples"]:
            key = example["kind"], example["reason"]
            if self._seen[key] < _EXAMPLES:
                self._seen[key] += 1
                self.examples.append(example)

    def metrics(self) -> dict[str, Any]:
        """Counts of all rows and by source; `data_sets` has the SHA-256 over the rows of each, as JSON lines."""
        personal_data = {kind: self._total["personal_data", kind] for kind in TYPES}
        sources = {}
        for name, counts in sorted(self._sources.items()):
            shapes = {shape: counts["shapes", shape] for shape in SHAPES if counts["shapes", shape]}
            left_out = dict(sorted(self._left_out[name].items()))
            parts = {**_metrics(counts), "shapes": shapes, "columns_left_out": left_out}
            sources[name] = {part: values for part, values in parts.items() if values}
        digests = {name: digest.hexdigest() for name, digest in sorted(self._digests.items())}
        data_sets = {"data_sets": digests} if digests else {}
        return {**_metrics(self._total), "personal_data": personal_data, "sources": sources, **data_sets}

    def check(self, rows: int, max_rejected_share: float, remedy: str) -> None:
        """Hold the tally against the `rows` that were counted beforehand."""
        kept, rejected = self._total["kept", ""], _of(self._total, "rejected").total()
        if kept + rejected != rows:
            raise UserError(f"{rows} raw rows, but {kept} kept and {rejected} rejected; a raw file changed, run again")
        if rows == 0:
            raise UserError("the raw files hold no rows; put some into them")
        if not kept or rejected / rows > max_rejected_share:  # as written: 0.29 * 100 is below 29
            raise UserError(
                f"{rejected} of {rows} raw rows rejected ({rejected / rows:.1%}); {max_rejected_share:.1%} are allowed "
                f"(clean.max_rejected_share) and at least one row must be kept\n{self._reasons()}\n{remedy}"
            )

    def warnings(self) -> list[str]:
        """The first places of rows that may not be what was meant."""
        more = len(self._doubts) - _PLACES
        return [*self._doubts[:_PLACES], *([f"{more} more like that"] if more > 0 else [])]

    def text(self) -> str:
        """All of it in words and tables."""
        rows = _metrics(self._total)["rows"]
        sources = []
        for name, counts in sorted(self._sources.items()):
            own = _metrics(counts)["rows"]
            left_out = ", ".join(sorted(self._left_out[name]))
            sources.append((name, own["in"], own["kept"], _listed(counts, "shapes"), left_out))
        masked, completions = _listed(self._total, "personal_data"), self._total["completions", ""]
        parts = [
            f"{rows['in']} rows, {rows['kept']} fit, {rows['rejected']} rejected",
            self._reasons() if rows["rejected"] else "",
            _table(sources, ("source", "rows", "fit", "shapes", "columns left out")),
            f"rows that cleaning changes: {_listed(self._total, 'changed') or 'none'}",
            f"rows whose completion it changes: {completions}" if completions else "",
            f"personal data that it masks: {masked}" if masked else "",
            *self.warnings(),
        ]
        return "\n".join(filter(None, parts))

    def _reasons(self) -> str:
        """The rejected rows by reason, the most frequent first, and the first places of each."""
        rows: list[tuple[str, Any, str]] = []
        for reason, count in _of(self._total, "rejected").most_common():
            found = [one for one in self.examples if (one["kind"], one["reason"]) == ("rejected", reason)]
            first, *others = [f"{one['file']}:{one['line']}: {one['detail']}" for one in found[:_PLACES]]
            rows += [(reason, count, first), *(("", "", place) for place in others)]
        return _table(rows, ("reason", "rows", "first at"))


def _metrics(counts: Counts) -> dict[str, Any]:
    kept, rejected = counts["kept", ""], _of(counts, "rejected")
    completions = counts["completions", ""]
    return {
        "rows": {"in": kept + rejected.total(), "kept": kept, "rejected": rejected.total()},
        "rejected": dict(rejected),
        "changed": {operator: counts["changed", operator] for operator in _OPERATORS},
        "completions_changed": {"rows": completions, "share": round(completions / max(1, kept), 4)},
    }


def _listed(counts: Counts, what: str) -> str:
    return ", ".join(f"{name} {count}" for name, count in _of(counts, what).most_common())


def _table(rows: list[Any], columns: tuple[str, ...]) -> str:
    from pandas import DataFrame  # late: the stage itself has no use for it

    frame = DataFrame(rows, columns=columns).astype(str)
    for column in columns:  # words begin at the left, numbers end at the right
        if column not in ("rows", "fit"):
            frame[column] = frame[column].str.ljust(max(len(column), *frame[column].str.len()))
            frame = frame.rename(columns={column: column.ljust(len(frame[column].iloc[0]))})
    return "\n".join(line.rstrip() for line in frame.to_string(index=False).splitlines())
