"""Gates: a threshold on a metric, and what the measurement can honestly say about it."""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stages.errors import UserError
from stages.params import Gate

PASS, MARGINAL, FAIL = "PASS", "MARGINAL", "FAIL"
_WORST_FIRST = (FAIL, MARGINAL, PASS)


def check_gates(gates: Mapping[str, Gate], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Judge every gate against the metrics.

    `metrics` are the values of the metrics files by the files' names: {"evaluate": {...}}. A metric
    with an interval (a mapping with value, low and high) passes a minimum when its low end does, fails
    it when even its high end does not reach it, and is MARGINAL between; a maximum is the mirror image.
    A plain number passes or fails. What is no finite number fails.

    Returns:
        {"verdict": state, "gates": {name: {"state", "value", "low", "high", "threshold", "kind",
        "required", "reason"}}}; low and high only where the metric has them, value only where finite.
        Being widened: each gate also has "metric" (its path), "comparison" (absolute, baseline, previous,
        adapter) and "evidence" (for: PASS must be shown; against: FAIL must be shown); the whole also has
        "reason", a sentence. A gate against the previous release where there is none is PASS without a
        value, its reason begins with "first release".

    Raises:
        UserError: when a gate names a metric that is not there.
    """
    checked = {name: _check(gate, _look_up(name, gate.metric, metrics)) for name, gate in gates.items()}
    return {"verdict": worst(_weight(gate) for gate in checked.values()), "gates": checked}


def worst(states: Iterable[str]) -> str:
    """The worst of the states; PASS when there are none."""
    return min(states, key=_WORST_FIRST.index, default=PASS)


def _weight(gate: Mapping[str, Any]) -> str:
    """What a checked gate contributes to the verdict: an advisory one can warn but not fail."""
    if gate["required"]:
        return str(gate["state"])
    return MARGINAL if gate["state"] == FAIL else PASS


def _check(gate: Gate, metric: Any) -> dict[str, Any]:
    kind, threshold = ("minimum", gate.minimum) if gate.minimum is not None else ("maximum", gate.maximum)
    assert threshold is not None
    interval = _is_interval(metric)
    numbers = {key: metric[key] for key in ("value", "low", "high")} if interval else {"value": metric}
    if not all(math.isfinite(number) for number in numbers.values()):
        state, reason, numbers = FAIL, "not a finite number: the measurement broke", {}
    elif interval:
        state, reason = _judge_interval(metric, kind, threshold)
    else:
        state, reason = _judge_number(metric, kind, threshold)
    return {
        "state": state,
        **numbers,
        "threshold": threshold,
        "kind": kind,
        "required": gate.required,
        "reason": reason,
    }


def _judge_number(value: float, kind: str, threshold: float) -> tuple[str, str]:
    if kind == "minimum":
        passed, relation = value >= threshold, "at least" if value >= threshold else "below"
    else:
        passed, relation = value <= threshold, "at most" if value <= threshold else "above"
    return PASS if passed else FAIL, f"{value:.4g} is {relation} {threshold:g}"


def _judge_interval(metric: Mapping[str, Any], kind: str, threshold: float) -> tuple[str, str]:
    low, high = metric["low"], metric["high"]
    rows = f"{metric['of']} rows" if "of" in metric else "these rows"
    measured = f"{metric['value']:.3f} ({low:.3f} to {high:.3f}) of {rows}"
    if (low >= threshold) if kind == "minimum" else (high <= threshold):
        relation = "at least" if kind == "minimum" else "at most"
        return PASS, f"{measured}: {relation} {threshold:g} over the whole interval"
    if (high < threshold) if kind == "minimum" else (low > threshold):
        relation = "below" if kind == "minimum" else "above"
        return FAIL, f"{measured}: {relation} {threshold:g} over the whole interval"
    return MARGINAL, f"{measured}: {rows} cannot show {threshold:g} either way"


def _look_up(gate: str, path: str, metrics: Mapping[str, Any]) -> Any:
    """The number or interval at `path`. Raises UserError when there is none."""
    found = _find(metrics, path)
    if _is_number(found) or _is_interval(found):
        return found
    known = list(_paths(metrics))
    below = [one for one in known if one.startswith(f"{path}.")]
    near = below or difflib.get_close_matches(path, known, n=1, cutoff=0)
    problem = "is a group of metrics" if below else "is not among the metrics"
    meant = f"; did you mean {near[0]}?" if near else "; there are no metrics"
    raise UserError(f"gate {gate}: {path} {problem}{meant}")


def _find(node: Any, path: str) -> Any:
    """The value at a dotted path, or None; a key may have dots itself, as labels may."""
    if not isinstance(node, Mapping):
        return None
    if path in node:
        return node[path]
    inner = (_find(node[key], path[len(key) + 1 :]) for key in node if path.startswith(f"{key}."))
    return next((found for found in inner if found is not None), None)


def _paths(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every path that a gate can name."""
    for key, value in node.items():
        path = f"{prefix}{key}"
        if _is_number(value) or _is_interval(value):
            yield path
        elif isinstance(value, Mapping):
            yield from _paths(value, f"{path}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_interval(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_number(value.get(key)) for key in ("value", "low", "high"))
