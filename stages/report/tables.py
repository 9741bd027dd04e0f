"""The metrics of every model beside each other, with an arrow for each change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.report.comparisons import BETTER, SAME, WORSE, Change, Comparison
from stages.report.formats import between, excerpt, number, percent, percents, size
from stages.report.measured import Measured
from stages.report.metrics import ALL, METRICS, Metric, look_up


@dataclass(frozen=True)
class Arrow:
    """A change beside a value: what it is against is in `text` for the eye and in `told` for the ear."""

    symbol: str
    tone: str
    text: str
    told: str


@dataclass(frozen=True)
class Cell:
    value: str
    interval: str = ""
    count: str = ""
    arrows: list[Arrow] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    name: str
    cells: list[Cell]
    brief: bool = False


@dataclass(frozen=True)
class Group:
    title: str
    rows: list[Row]


def metric_groups(measured: Measured, *, shared: bool = False) -> list[Group]:
    """The metrics that any model has, a cell for each model, by kind of task; `shared` are those of every task."""
    groups: dict[str, list[Row]] = {}
    for metric in METRICS:
        if shared and metric.group != ALL:
            continue
        found = {name: look_up(one, metric.path) for name, one in measured.scores.items()}
        if any(value is not None for value in found.values()):
            cells = [_cell(metric, name, value, measured.compared) for name, value in found.items()]
            groups.setdefault(metric.group, []).append(Row(metric.name, cells, metric.brief))
    return [Group(title, rows) for title, rows in groups.items()]


def size_row(scores: Mapping[str, Any], artefacts: Mapping[str, Any]) -> Row:
    cells = [Cell(size(artefacts[name]["bytes"])) if name in artefacts else Cell("–") for name in scores]
    return Row("Size of the files", cells)


def part_rows(scores: Mapping[str, Any], part: str, inner: str = "") -> list[Row]:
    """A proportion for each field or label of the adapter: `part` names the group, `inner` the key in it."""
    rows = []
    for key in scores["adapter"].get(part, {}):
        found = [one.get(part, {}).get(key) for one in scores.values()]
        cells = [proportion(value.get(inner) if inner and value else value) for value in found]
        rows.append(Row(excerpt(key, 80), cells))
    return rows


def proportion(found: Mapping[str, Any] | None) -> Cell:
    if found is None:
        return Cell("–")
    return Cell(percent(found["value"]), percents(found["low"], found["high"]), f"{found['count']} of {found['of']}")


def _cell(metric: Metric, model: str, found: Any, compared: Sequence[Comparison]) -> Cell:
    if found is None:
        return Cell("–")
    arrows = [_arrow(one.before, change) for one in compared if one.after == model and (change := one.of(metric))]
    if not isinstance(found, Mapping):
        return Cell(number(found), arrows=arrows)
    form = percent if metric.share else number
    count = f"{found['count']} of {found['of']}" if "count" in found else ""
    return Cell(form(found["value"]), between(form, found["low"], found["high"]), count, arrows)


def _arrow(before: str, change: Change) -> Arrow:
    amount = change.amount.removesuffix(" points")
    return Arrow(
        symbol=change.symbol,
        tone=change.tone,
        text=f"{amount} vs {before}" if change.reading != SAME else f"as {before}",
        told=f"{change.reading} than {before}" if change.reading in (BETTER, WORSE) else change.reading,
    )
