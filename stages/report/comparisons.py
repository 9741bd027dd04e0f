"""What a comparison of two models on the same rows shows, and what it does not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.report.formats import between, number, p_value, percent, plural, points, signed
from stages.report.metrics import METRICS, Metric, look_up

BETTER, WORSE, SAME, UNSHOWN, CHANGED = "better", "worse", "nothing changed", "no change shown", "changed"


@dataclass(frozen=True)
class Change:
    """One metric from one model to another.

    `reading` is BETTER or WORSE (CHANGED where neither is good) when the rows show it at the confidence asked,
    UNSHOWN when they do not, SAME when nothing changed at all. `p` is the McNemar test's; `interval` the paired
    bootstrap's; either may be missing. `rises` says which way the number went.
    """

    metric: Metric
    amount: str
    interval: str
    won: int | None
    lost: int | None
    p: str
    reading: str
    rises: bool

    @property
    def symbol(self) -> str:
        return {SAME: "=", UNSHOWN: "≈"}.get(self.reading, "▲" if self.rises else "▼")

    @property
    def tone(self) -> str:
        return {BETTER: "good", WORSE: "bad"}.get(self.reading, "soft")

    def rows(self) -> str:
        """The rows that changed sides, as "46 won, 0 lost"; empty for what is no right or wrong."""
        return "" if self.won is None else f"{self.won:,} won, {self.lost:,} lost"

    def evidence(self) -> str:
        """The numbers behind the reading."""
        return ", ".join(text for text in (self.rows(), self.p, self.interval) if text)


@dataclass(frozen=True)
class Comparison:
    """All that changed from model `before` to model `after`; `main` is the change of the main metric."""

    before: str
    after: str
    changes: list[Change]
    main: Change | None

    @property
    def title(self) -> str:
        return f"{self.before} to {self.after}"

    def of(self, metric: Metric) -> Change | None:
        return next((change for change in self.changes if change.metric is metric), None)


def compare(before: str, after: str, raw: Mapping[str, Any], main: Metric, confidence: float) -> Comparison:
    """A COMPARISON of a metrics file (stages.scoring.comparison) in words."""
    changes = list(_changes(raw, confidence))
    return Comparison(before, after, changes, next((one for one in changes if one.metric is main), None))


def read_change(metric: Metric, raw: Mapping[str, Any], confidence: float) -> Change:
    """A difference {difference, low, high, won, lost, p_value} or a ratio {ratio, low, high} of a metrics file.

    A p-value decides where there is one; else the interval, which must leave out "no change".
    """
    ratio = "ratio" in raw
    amount, none = (raw["ratio"], 1.0) if ratio else (raw["difference"], 0.0)
    shown = raw["p_value"] < 1 - confidence if "p_value" in raw else raw["low"] > none or raw["high"] < none
    form = _times if ratio else points if metric.share else signed
    return Change(
        metric=metric,
        amount=form(amount),
        interval=between(form, raw["low"], raw["high"]) if "low" in raw else "",
        won=raw.get("won"),
        lost=raw.get("lost"),
        p=p_value(raw["p_value"]) if "p_value" in raw else "",
        reading=_reading(metric, amount - none, shown, same=amount == none and not raw.get("won")),
        rises=amount > none,
    )


def say_change(change: Change, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """One sentence: from which value to which, and on what evidence; `before` and `after` are SCORES."""
    metric = change.metric
    form = percent if metric.share else number
    old, new = (form(_value(look_up(scores, metric.path))) for scores in (before, after))
    on = f" on {plural(after['rows'], 'row')}" if "rows" in after else ""
    return f"{metric.name} {old} → {new}{on}: {change.evidence() or change.amount}."


def _changes(raw: Mapping[str, Any], confidence: float) -> Iterator[Change]:
    for metric in METRICS:
        found = look_up(raw, metric.path)
        if isinstance(found, Mapping) and ("difference" in found or "ratio" in found):
            yield read_change(metric, found, confidence)


def _reading(metric: Metric, amount: float, shown: bool, same: bool) -> str:
    if same:
        return SAME
    if not shown:
        return UNSHOWN
    return CHANGED if metric.better == 0 else BETTER if amount * metric.better > 0 else WORSE


def _times(ratio: float) -> str:
    return f"× {number(ratio)}"


def _value(found: Any) -> float:
    return float(found["value"] if isinstance(found, Mapping) else found)
