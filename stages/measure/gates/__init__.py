"""Gates: a threshold on a metric, and what the measurement can honestly say about it."""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stages.core.errors import UserError
from stages.params import Gate

PASS, MARGINAL, FAIL = "PASS", "MARGINAL", "FAIL"
_WORST_FIRST = (FAIL, MARGINAL, PASS)
_VALUES = ("value", "difference", "ratio")  # what an interval is around
_MODELS = ("adapter", "scores")  # the parts of a metric's path that name whose it is
_RELATION = {
    ("minimum", True): "at least",
    ("minimum", False): "below",
    ("maximum", True): "at most",
    ("maximum", False): "above",
}


def check_gates(gates: Mapping[str, Gate], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Judge every gate against the metrics.

    `metrics` are the values of the metrics files by the files' names: {"evaluate": {...}}. A metric with an
    interval (value, difference or ratio beside low and high) is judged by what the interval can show. A gate whose
    evidence is `for` is PASS when the whole interval keeps the threshold, FAIL when none of it does, MARGINAL
    between. A gate whose evidence is `against` is FAIL when no part of the interval keeps the threshold; else PASS
    when the value does and MARGINAL when it does not. A plain number passes or fails; what is no finite number
    fails. An advisory gate can make the verdict MARGINAL, never FAIL.

    Returns:
        {"verdict": state, "reason": sentence, "gates": {name: {"state", "metric", "comparison", "value", "low",
        "high", "kind" (minimum or maximum), "threshold", "evidence", "required", "reason"}}}; low and high only
        where the metric has them, value only where finite. A gate against the previous release where there is
        none is PASS without a value, and its reason says "first release".

    Raises:
        UserError: when a gate names a metric that is not there.
    """
    checked = {name: _check(name, gate, metrics) for name, gate in gates.items()}
    verdict = worst(_weight(gate) for gate in checked.values())
    return {"verdict": verdict, "reason": _summary(checked), "gates": checked}


def worst(states: Iterable[str]) -> str:
    """The worst of the states; PASS when there are none."""
    return min(states, key=_WORST_FIRST.index, default=PASS)


def _weight(gate: Mapping[str, Any]) -> str:
    """What a checked gate contributes to the verdict: an advisory one can warn but not fail."""
    if gate["required"]:
        return str(gate["state"])
    return MARGINAL if gate["state"] == FAIL else PASS


def _summary(checked: Mapping[str, Mapping[str, Any]]) -> str:
    """Which gates do not pass, in one sentence."""
    if not checked:
        return "No gates are set."
    said = []
    for state, words in ((FAIL, "fail"), (MARGINAL, "cannot be told from these rows")):
        for required, kind in ((True, "required"), (False, "advisory")):
            names = [name for name, gate in checked.items() if (gate["state"], gate["required"]) == (state, required)]
            if names:
                said.append(f"{len(names)} {kind} {words}: {', '.join(names)}")
    if said:
        return f"Of {len(checked)} gates {'; '.join(said)}."
    return f"All {len(checked)} gates hold." if len(checked) > 1 else "The one gate holds."


def _check(name: str, gate: Gate, metrics: Mapping[str, Any]) -> dict[str, Any]:
    kind, threshold = ("minimum", gate.minimum) if gate.minimum is not None else ("maximum", gate.maximum)
    assert threshold is not None
    metric = _compared(name, gate, metrics)
    numbers = _numbers(metric)
    if metric is None:
        state, reason = PASS, "first release: there is no previous one to compare with"
    elif not all(map(math.isfinite, numbers.values())):
        state, reason, numbers = FAIL, "not a finite number: the measurement broke", {}
    elif "low" in numbers:
        state, reason = _judge_interval(numbers, kind, threshold, gate.evidence, _rows(metric))
    else:
        state, reason = _judge_number(numbers["value"], kind, threshold)
    return {
        "state": state,
        "metric": gate.metric,
        "comparison": gate.comparison,
        **numbers,
        "kind": kind,
        "threshold": threshold,
        "evidence": gate.evidence,
        "required": gate.required,
        "reason": reason,
    }


def _compared(name: str, gate: Gate, metrics: Mapping[str, Any]) -> Any:
    """What the gate judges: the metric, or its change; None for a change since a release that there is not."""
    # The judge and the reviewers compare by themselves: judge.against_previous.delta.
    who, previous, _ = gate.metric.partition(".against_previous.")
    if previous and isinstance(_find(metrics, who), Mapping) and _find(metrics, f"{who}.against_previous") is None:
        return None
    found = _look_up(name, gate.metric, metrics)
    if gate.comparison == "absolute":
        return found
    # The change stands beside the model's own metrics: evaluate.adapter.X and evaluate.against_baseline.X.
    model = next((part for part in gate.metric.split(".") if part in _MODELS), "")
    before, _, after = gate.metric.partition(f".{model}.")
    changes = f"{before}.against_{gate.comparison}"
    if model and gate.comparison == "previous" and _find(metrics, changes) is None:
        return None
    return _look_up(name, f"{changes}.{after}" if model else gate.metric + f" against {gate.comparison}", metrics)


def _numbers(metric: Any) -> dict[str, float]:
    if not isinstance(metric, Mapping):
        return {} if metric is None else {"value": metric}
    value = next(metric[key] for key in _VALUES if key in metric)
    return {"value": value, "low": metric["low"], "high": metric["high"]}


def _rows(metric: Mapping[str, Any]) -> str:
    """What the numbers rest on."""
    if "won" in metric:
        return f"these rows (won {metric['won']}, lost {metric['lost']})"
    return f"{metric['of']} rows" if "of" in metric else "these rows"


def _judge_number(value: float, kind: str, threshold: float) -> tuple[str, str]:
    kept = value >= threshold if kind == "minimum" else value <= threshold
    return PASS if kept else FAIL, f"{value:.4g} is {_RELATION[kind, kept]} {threshold:g}"


def _judge_interval(
    numbers: Mapping[str, float], kind: str, threshold: float, evidence: str, rows: str
) -> tuple[str, str]:
    value, low, high = numbers["value"], numbers["low"], numbers["high"]
    measured = f"{value:.3f} ({low:.3f} to {high:.3f}) of {rows}"
    sign = 1 if kind == "minimum" else -1
    nearest, farthest = (low, high) if kind == "minimum" else (high, low)
    if sign * (farthest - threshold) < 0:
        return FAIL, f"{measured}: {_RELATION[kind, False]} {threshold:g} over the whole interval"
    if sign * (nearest - threshold) >= 0:
        return PASS, f"{measured}: {_RELATION[kind, True]} {threshold:g} over the whole interval"
    if evidence == "for":
        return MARGINAL, f"{measured}: {rows} cannot show {threshold:g} either way"
    kept = sign * (value - threshold) >= 0
    if kept:
        return PASS, f"{measured}: {_RELATION[kind, kept]} {threshold:g}"
    return MARGINAL, f"{measured}: {_RELATION[kind, kept]} {threshold:g}, but {rows} cannot show that it is"


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
    return (
        isinstance(value, Mapping)
        and all(_is_number(value.get(key)) for key in ("low", "high"))
        and any(_is_number(value.get(key)) for key in _VALUES)
    )
