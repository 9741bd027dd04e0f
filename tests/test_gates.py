"""Gates: what an interval can show, what it cannot, and that better answers never make a gate worse."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import UserError
from stages.gates import FAIL, MARGINAL, PASS, check_gates, worst
from stages.params import Gate
from stages.statistics import clopper_pearson

ORDER = {FAIL: 0, MARGINAL: 1, PASS: 2}


def proportion(count: int, of: int) -> dict[str, float]:
    low, high = clopper_pearson(count, of, 0.95)
    return {"value": count / of, "low": low, "high": high, "count": count, "of": of}


def metrics(exact_match: Any = None, difference: float = 0.0) -> dict[str, Any]:
    return {
        "evaluate": {
            "adapter": {"exact_match": exact_match or proportion(47, 48), "perplexity": 1.2},
            "against_baseline": {"exact_match": {"difference": difference, "won": 1, "lost": 0, "p_value": 1.0}},
        }
    }


def check(value: Any, **threshold: Any) -> dict[str, Any]:
    """The one gate on a metric."""
    gate = Gate(metric="evaluate.m", **threshold)
    result: dict[str, Any] = check_gates({"g": gate}, {"evaluate": {"m": value}})["gates"]["g"]
    return result


@pytest.mark.parametrize(
    ("count", "of", "threshold", "state"),
    [
        (200, 200, {"minimum": 0.95}, PASS),
        (190, 200, {"minimum": 0.95}, MARGINAL),
        (48, 48, {"minimum": 0.95}, MARGINAL),
        (150, 200, {"minimum": 0.95}, FAIL),
        (0, 200, {"maximum": 0.05}, PASS),
        (8, 200, {"maximum": 0.05}, MARGINAL),
        (50, 200, {"maximum": 0.05}, FAIL),
        (1, 1, {"minimum": 0.0}, PASS),
        (0, 1, {"maximum": 1.0}, PASS),
    ],
)
def test_an_interval_passes_fails_or_cannot_tell(count: int, of: int, threshold: Any, state: str) -> None:
    assert check(proportion(count, of), **threshold)["state"] == state


@pytest.mark.parametrize(
    ("threshold", "state"),
    [
        ({"minimum": 0.4}, PASS),
        ({"minimum": 0.40001}, MARGINAL),
        ({"minimum": 0.6}, MARGINAL),
        ({"minimum": 0.60001}, FAIL),
        ({"maximum": 0.6}, PASS),
        ({"maximum": 0.59999}, MARGINAL),
        ({"maximum": 0.4}, MARGINAL),
        ({"maximum": 0.39999}, FAIL),
    ],
)
def test_the_ends_of_the_interval_decide(threshold: Any, state: str) -> None:
    assert check({"value": 0.5, "low": 0.4, "high": 0.6}, **threshold)["state"] == state


def test_a_plain_number_passes_or_fails() -> None:
    assert check(0.5, minimum=0.5)["state"] == PASS
    assert check(0.49, minimum=0.5)["state"] == FAIL
    assert check(2, maximum=2)["state"] == PASS
    assert check(2.01, maximum=2)["state"] == FAIL
    assert check(-0.06, minimum=-0.05)["reason"] == "-0.06 is below -0.05"
    assert "low" not in check(0.5, minimum=0.5)


def test_the_reason_has_the_numbers() -> None:
    gate = check(proportion(47, 48), minimum=0.95)
    assert gate["reason"] == "0.979 (0.889 to 0.999) of 48 rows: 48 rows cannot show 0.95 either way"
    assert (gate["kind"], gate["threshold"], gate["required"]) == ("minimum", 0.95, True)
    assert check(proportion(100, 200), minimum=0.95)["reason"].endswith(
        "of 200 rows: below 0.95 over the whole interval"
    )


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("threshold", [{"minimum": 0.5}, {"maximum": 0.5}])
def test_what_is_no_finite_number_fails_and_can_be_written(broken: float, threshold: Any) -> None:
    for value in (broken, {"value": 0.5, "low": broken, "high": 0.6}, {"value": broken, "low": 0.1, "high": 0.6}):
        gate = check(value, **threshold)
        assert gate["state"] == FAIL
        json.dumps(gate, allow_nan=False)


@given(
    st.integers(1, 300).flatmap(lambda of: st.tuples(st.just(of), st.integers(0, of), st.integers(0, of))),
    st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_more_right_answers_never_make_a_state_worse(case: tuple[int, int, int], threshold: float) -> None:
    of, one, other = case
    fewer, more = sorted((one, other))
    before, after = proportion(fewer, of), proportion(more, of)
    assert ORDER[check(before, minimum=threshold)["state"]] <= ORDER[check(after, minimum=threshold)["state"]]
    assert ORDER[check(before, maximum=threshold)["state"]] >= ORDER[check(after, maximum=threshold)["state"]]


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_a_larger_number_never_makes_a_minimum_worse(one: float, other: float, threshold: float) -> None:
    small, large = sorted((one, other))
    assert ORDER[check(small, minimum=threshold)["state"]] <= ORDER[check(large, minimum=threshold)["state"]]
    assert ORDER[check(small, maximum=threshold)["state"]] >= ORDER[check(large, maximum=threshold)["state"]]


@given(st.integers(0, 200), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_an_interval_never_passes_what_its_value_does_not(count: int, threshold: float) -> None:
    state = check(proportion(count, 200), minimum=threshold)["state"]
    assert state != PASS or count / 200 >= threshold
    assert state != FAIL or count / 200 < threshold


@pytest.mark.parametrize(
    ("gates", "verdict"),
    [
        ({}, PASS),
        ({"a": (1.0, True)}, PASS),
        ({"a": (1.0, True), "b": (0.0, False)}, MARGINAL),
        ({"a": (1.0, True), "b": (None, False)}, PASS),
        ({"a": (1.0, True), "b": (None, True)}, MARGINAL),
        ({"a": (None, True), "b": (0.0, True)}, FAIL),
    ],
)
def test_the_verdict_is_the_worst_that_a_required_gate_says(gates: Any, verdict: str) -> None:
    """A value of None stands for an interval that cannot tell."""
    values = {
        name: {"value": 0.5, "low": 0.1, "high": 0.9} if value is None else value for name, (value, _) in gates.items()
    }
    asked = {name: Gate(metric=f"m.{name}", minimum=0.5, required=required) for name, (_, required) in gates.items()}
    assert check_gates(asked, {"m": values})["verdict"] == verdict


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "evaluate.adaptor.exact_match",
            r"gate g: evaluate.adaptor.exact_match is not among .* evaluate.adapter.exact_match\?",
        ),
        ("evaluate.against_baseline.exact_match", r"is a group of metrics; did you mean .*exact_match.difference\?"),
        ("quantize.artefacts.nf4.bytes", "is not among the metrics; did you mean"),
        ("", "is not among the metrics; did you mean"),
    ],
)
def test_a_missing_metric_is_named_with_its_nearest(path: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_gates({"g": Gate(metric=path, minimum=0.5)}, metrics())


def test_no_metrics_at_all_is_said() -> None:
    with pytest.raises(UserError, match="there are no metrics"):
        check_gates({"g": Gate(metric="a.b", minimum=0.5)}, {})


def test_an_end_of_an_interval_and_a_label_with_dots_can_be_named() -> None:
    values = {"evaluate": {"labels": {"order.cancel": {"exact_match": proportion(10, 10)}}}}
    gate = Gate(metric="evaluate.labels.order.cancel.exact_match.low", minimum=0.6)
    assert check_gates({"g": gate}, values)["gates"]["g"]["state"] == PASS


def test_worst_of_states() -> None:
    assert worst([PASS, FAIL, MARGINAL]) == FAIL
    assert worst([PASS, MARGINAL]) == MARGINAL
    assert worst([]) == PASS
