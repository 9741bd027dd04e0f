"""A few examples of what cleaning did, for the report: `data/changes/clean_examples.jsonl`.

One JSON object a line, at most five for each reason, in the order of the raw rows:

    kind     "changed" (by the operator `reason`, in a row that was kept) or "rejected"
    reason   the operator (mojibake, html, whitespace, personal_data, completion_form) or the reason of the rejection
    file, line, source   where the raw row is
    column   the column that changed; null for a rejected row
    before   the text before, null where it held personal data; the start of the raw row where it was rejected
    after    the text after; null for a rejected row
    detail   the sentence that says why; null for a change

Texts are cut at 600 characters. Whatever clean.mask_personal_data says, no text here holds personal data that the
patterns find: rows of which the data themselves would be shown are passed over or masked.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from stages.prepare.clean.cleaning import Change, Kept
from stages.prepare.clean.rejected_rows import Rejected, Row, short
from stages.text.fixpoint import Unsettled
from stages.text.personal_data import NAMES, TYPES, masker

Texts = dict[str, str | None]

_EACH = 5
_LONGEST = 600
_READ = 8 * _LONGEST  # of a raw row, before masking: what is cut off must not leave half of a number


class Examples:
    """Picks the first rows of each reason."""

    def __init__(self, region: str) -> None:
        self._mask = masker([kind for kind in TYPES if kind not in NAMES], region, "")
        self._seen: Counter[tuple[str, str]] = Counter()
        self.rows: list[dict[str, Any]] = []

    def add(self, source: str, row: Row, outcome: Kept | Rejected) -> None:
        place = {"file": row.file, "line": row.number, "source": source}
        if isinstance(outcome, Rejected):
            self._offer("rejected", outcome.reason, place, partial(self._of_rejected, row, outcome))
            return
        for operator, change in outcome.changed.items():
            self._offer("changed", operator, place, partial(self._of_change, operator, change))

    def _offer(self, kind: str, reason: str, place: Mapping[str, Any], texts: Callable[[], Texts | None]) -> None:
        if self._seen[kind, reason] < _EACH and (found := texts()):
            self._seen[kind, reason] += 1
            self.rows.append({"kind": kind, "reason": reason, **place, **found})

    def _of_rejected(self, row: Row, rejected: Rejected) -> Texts:
        before = self._shown(_start(row.raw()))
        return {"column": None, "before": before, "after": None, "detail": short(rejected.detail)}

    def _of_change(self, operator: str, change: Change) -> Texts | None:
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


def _start(raw: bytes) -> str:
    """The first characters of a raw row; bytes that are not UTF-8 are shown as such."""
    return raw[:_READ].decode("utf-8", "backslashreplace")


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
