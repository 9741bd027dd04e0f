"""The geometry of the charts, as the template draws it: lengths in units of the SVG's viewBox, ticks as (at, text)."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from stages.report.formats import between, number, percent
from stages.report.tables import Metric, look_up

Points = list[tuple[float, float]]

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 400, 52, 324, 14, 208  # of the chart of losses
_LABEL_HEIGHT = 15
_SMALLEST_AXIS = 0.01  # a loss axis reaches at least this far
_LOG_FROM = 20  # a curve that falls by more than this factor is drawn on a logarithmic axis
_ROUNDING = 1e-12  # below it a loss is no more than that, and the ticks of a logarithmic axis would end at zero


def loss_chart(curves: Mapping[str, Points], best_step: float | None) -> SimpleNamespace | None:
    """Training and validation loss over the steps; None when nothing was recorded."""
    drawn = {name: points for name, points in curves.items() if points}
    if not drawn:
        return None
    steps = [step for points in drawn.values() for step, _ in points]
    losses = [loss for points in drawn.values() for _, loss in points]
    logarithmic = min(losses) > _ROUNDING and max(losses) / min(losses) > _LOG_FROM
    x_ticks = _linear_ticks(0, max(steps))
    y_ticks = _log_ticks(min(losses), max(losses)) if logarithmic else _linear_ticks(0, max(*losses, _SMALLEST_AXIS))
    x = _scale(0, max(max(steps), x_ticks[-1]), LEFT, RIGHT)
    low, high = min(y_ticks[0], min(losses)), max(y_ticks[-1], max(losses))
    y = _scale(low, high, BOTTOM, TOP, math.log if logarithmic else float)
    return SimpleNamespace(
        title="Loss over the training steps",
        description=" ".join(_told(name, points) for name, points in drawn.items()),
        y_label="loss (nats per token" + (", logarithmic)" if logarithmic else ")"),
        x_ticks=[(x(tick), number(tick)) for tick in x_ticks],
        y_ticks=[(y(tick), number(tick)) for tick in y_ticks],
        lines=_apart([_line(name, points, x, y) for name, points in drawn.items()]),
        best_x=None if best_step is None else x(best_step),
        width=WIDTH,
        height=250,
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=BOTTOM,
    )


def interval_chart(
    scores: Mapping[str, Any], metric: Metric, threshold: float | None, confidence: float
) -> SimpleNamespace:
    """One metric of every model with its interval, and the gate's minimum where one is set."""
    form, left, right = percent if metric.share else number, 66, 330
    found = {name: one for name, score in scores.items() if (one := look_up(score, metric.path))}
    most = 1 if all(one["high"] <= 1 for one in found.values()) else 100
    x = _scale(0, most, left, right)
    bars = []
    for index, (name, one) in enumerate(found.items()):
        ends = {end: x(one[end]) for end in ("low", "value", "high")}
        bars.append(SimpleNamespace(name=name, y=40 + 30 * index, text=form(one["value"]), **ends))
    told = [f"{name}: {form(one['value'])}, {between(form, one['low'], one['high'])}." for name, one in found.items()]
    return SimpleNamespace(
        title=f"{metric.name} on the hold-out, with {confidence * 100:.4g} % intervals",
        description=" ".join(told),
        ticks=[(x(most * share), form(most * share).replace(".0 %", " %")) for share in (0, 0.25, 0.5, 0.75, 1)],
        bars=bars,
        threshold=None if threshold is None else (x(threshold), f"gate {form(threshold).replace('.0 %', ' %')}"),
        height=40 + 30 * len(bars) + 26,
        width=WIDTH,
        left=left,
        right=right,
    )


def _line(name: str, points: Points, x: Callable[[float], float], y: Callable[[float], float]) -> SimpleNamespace:
    dots = [(x(step), y(loss)) for step, loss in points]
    path = " ".join(f"{at_x},{at_y}" for at_x, at_y in dots)
    return SimpleNamespace(name=name, path=path, dots=dots if name == "validation" else [], label_y=dots[-1][1] + 4)


def _apart(lines: list[SimpleNamespace]) -> list[SimpleNamespace]:
    """The lines with their names moved apart where they would cover each other."""
    below = sorted(lines, key=lambda line: line.label_y)
    for above, line in pairwise(below):
        line.label_y = max(line.label_y, round(above.label_y + _LABEL_HEIGHT, 1))
    return below


def _told(name: str, points: Points) -> str:
    (first, start), (last, end) = points[0], points[-1]
    return f"{name.capitalize()}: from {number(start)} at step {number(first)} to {number(end)} at step {number(last)}."


def _scale(
    low: float, high: float, start: float, end: float, bend: Callable[[float], float] = float
) -> Callable[[float], float]:
    """Map [low, high] to [start, end], rounded so that every machine draws the same."""
    span = bend(high) - bend(low) or 1.0
    return lambda value: round(start + (bend(value) - bend(low)) / span * (end - start), 1)


def _linear_ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers from `low` to `high` or just beyond it."""
    if high <= low:
        return [low, low + 1]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(low + index * step, 12) for index in range(math.ceil((high - low) / step - 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """At most seven powers of ten, around `low` and `high`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = math.ceil((last - first) / 6)
    return [10.0**power for power in range(first, last + stride, stride)]
