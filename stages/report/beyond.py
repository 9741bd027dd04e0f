"""What the model was asked beyond the hold-out: general knowledge, malformed input, safety; and where it is uneven."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.report.comparisons import Change, read_change
from stages.report.formats import between, excerpt, number, percent, plural, points, whole, words
from stages.report.metrics import Metric
from stages.report.tables import Cell, Row, proportion

_FORGETTING = (
    Metric("perplexity", "Perplexity of the references", "", better=-1, share=False),
    Metric("agreement", "Agreement with the references", ""),
)
_REFUSALS = Metric("refusals", "Refusals", "")
_LEAKS = {
    "personal_data": "Answers with personal data that is not in the prompt",
    "verbatim": "Answers that repeat training text word for word",
    "forbidden": "Answers with forbidden content",
}


@dataclass(frozen=True)
class Forgetting:
    """Base beside adapter on general rows: a row for each metric, and each metric's change by name."""

    rows: int
    table: list[Row]
    changes: list[tuple[str, Change]]


@dataclass(frozen=True)
class Check:
    """A thing that should not happen, and how often it did."""

    name: str
    cell: Cell
    bad: bool


@dataclass(frozen=True)
class Slot:
    """A group of a slice; `low`, `value` and `high` in per cent of the width."""

    name: str
    cell: Cell
    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Slice:
    field: str
    groups: list[Slot]
    sentence: str


def forgetting(evaluate: Mapping[str, Any], confidence: float) -> Forgetting | None:
    """How the tuned model does on what everybody asks, beside the base model; None when it was not measured."""
    general = evaluate.get("general")
    if general is None:
        return None
    table, changes = [], []
    for metric in _FORGETTING:
        form = percent if metric.share else number
        cells = [
            Cell(form(one["value"]), between(form, one["low"], one["high"]))
            for one in (general["base"][metric.path], general["adapter"][metric.path])
        ]
        table.append(Row(metric.name, cells))
        change = read_change(metric, general["against_baseline"][metric.path], confidence)
        changes.append((metric.name, change))
    return Forgetting(general["rows"], table, changes)


def robustness(evaluate: Mapping[str, Any]) -> list[Row]:
    """Valid and exactly right answers to each kind of damaged input."""
    return [
        Row(words(kind), [proportion(one.get(key)) for key in ("valid", "exact_match")])
        for kind, one in evaluate.get("robustness", {}).items()
    ]


def safety(evaluate: Mapping[str, Any], confidence: float) -> tuple[list[Check], list[str]]:
    """What should not happen, with its counts; and in words the refusals and the canaries."""
    found = evaluate.get("safety", {})
    checks = [
        Check(name, proportion(found[key]), bad=found[key]["count"] > 0) for key, name in _LEAKS.items() if key in found
    ]
    return checks, list(_safety_notes(found, confidence))


def slices(evaluate: Mapping[str, Any]) -> list[Slice]:
    """The main score by the groups of each field, the worst group first."""
    return [
        Slice(
            field=excerpt(field, 80),
            groups=[_slot(name, one) for name, one in sorted(found["groups"].items(), key=_worst_first)],
            sentence=_gap(found),
        )
        for field, found in evaluate.get("slices", {}).items()
    ]


def _safety_notes(found: Mapping[str, Any], confidence: float) -> Iterator[str]:
    if refusals := found.get("refusals"):
        change = read_change(_REFUSALS, refusals["against_baseline"], confidence)
        base, adapter = (percent(refusals[name]["value"]) for name in ("base", "adapter"))
        yield (
            f"Of {plural(refusals['adapter']['of'], 'request')} to refuse, the base model refuses {base} and the "
            f"adapter {adapter}: {change.reading} ({change.evidence()})"
        )
    if canaries := found.get("canaries"):
        exposure = canaries["exposure"]
        yield (
            f"{plural(canaries['count'], 'canary', 'canaries')} among {whole(canaries['candidates'])} candidates: "
            f"exposure {number(exposure['mean'])} on average and {number(exposure['max'])} at most, of "
            f"{number(exposure['limit'])} for one that is known by heart"
        )


def _worst_first(item: tuple[str, Mapping[str, Any]]) -> tuple[float, str]:
    return item[1]["value"], item[0]


def _slot(name: str, one: Mapping[str, Any]) -> Slot:
    low, value, high = (round(100 * one[end], 1) for end in ("low", "value", "high"))
    return Slot(excerpt(name, 60), proportion(one), low, value, high)


def _gap(found: Mapping[str, Any]) -> str:
    gap = found["gap"]
    interval = between(points, gap["low"], gap["high"])
    shown = "the rows show it" if gap["low"] > 0 else "which chance may explain"
    left = f"; {plural(found['left_out'], 'row')} in groups too small to measure" if found["left_out"] else ""
    return (
        f"{excerpt(found['worst']['group'], 60)} is {points(gap['value']).removeprefix('+')} behind "
        f"{excerpt(found['best']['group'], 60)} ({interval}): {shown}{left}."
    )
