"""The groups of a record field beside each other: whom the model serves worst, and whether the rows show it."""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.params import Scoring
from stages.records.record import Record
from stages.scoring import RowScore
from stages.scoring.intervals import independent_difference
from stages.scoring.summary import proportion

_NONE = "(none)"


def measure_slices(
    records: Sequence[Record], scores: Sequence[RowScore], fields: Sequence[str], min_rows: int, scoring: Scoring
) -> dict[str, Any]:
    """{FIELD: {groups: {VALUE: P}, worst: {group, value}, best: {group, value}, gap: {value, low, high}, left_out}}.

    P is the share of right answers (valid ones in a text task, where hardly any answer is the reference to the
    letter). A field is label, source, task or fields.NAME; groups of fewer than `min_rows` rows are left out, a
    field with less than two groups too. The gap is best less worst. Which two those are was seen in the same rows,
    so the interval's confidence is that of all pairs of groups together (Bonferroni).
    """
    by_id = {record.id: record for record in records}
    found = {}
    for field in fields:
        groups: dict[str, list[bool]] = {}
        for score in scores:
            right = score.valid if score.kind == "text" else score.exact_match
            groups.setdefault(_value(by_id[score.id], field), []).append(right)
        large = {name: rows for name, rows in sorted(groups.items()) if len(rows) >= min_rows}
        if len(large) > 1:
            left_out = len(scores) - sum(map(len, large.values()))
            found[field] = {**_compare(large, scoring), "left_out": left_out}
    return found


def _value(record: Record, field: str) -> str:
    """The record's value of a field; `fields.NAME` is one of its further columns."""
    if field.startswith("fields."):
        return record.fields.get(field.removeprefix("fields."), _NONE)
    return {"label": record.label, "source": record.source, "task": record.task}[field] or _NONE


def _compare(groups: Mapping[str, list[bool]], scoring: Scoring) -> dict[str, Any]:
    shares = {name: proportion(rows, scoring) for name, rows in groups.items()}
    worst = min(shares, key=lambda name: shares[name]["value"])
    best = max(shares, key=lambda name: shares[name]["value"])
    pairs = len(groups) * (len(groups) - 1) / 2
    low, high = independent_difference(
        sum(groups[best]),
        len(groups[best]),
        sum(groups[worst]),
        len(groups[worst]),
        1 - (1 - scoring.confidence) / pairs,
    )
    return {
        "groups": shares,
        "worst": {"group": worst, "value": shares[worst]["value"]},
        "best": {"group": best, "value": shares[best]["value"]},
        "gap": {"value": shares[best]["value"] - shares[worst]["value"], "low": low, "high": high},
    }
