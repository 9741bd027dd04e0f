"""Gates: what an interval can show, what it cannot, and that better answers never make a gate worse."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.measure.gates import FAIL, MARGINAL, PASS, check_gates, worst
from stages.params import Gate
from stages.scoring.intervals import clopper_pearson

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


def change(difference: float, low: float, high: float, won: int = 0, lost: int = 0) -> dict[str, Any]:
    return {"difference": difference, "low": low, "high": high, "won": won, "lost": lost, "p_value": 1.0}


def compared(changes: dict[str, Any] | None, comparison: Any = "previous", **threshold: Any) -> dict[str, Any]:
    """The one gate on the change of exact match."""
    known = metrics()
    if changes is not None:
        known["evaluate"][f"against_{comparison}"] = {"exact_match": changes, "perplexity": {**changes, "ratio": 1.0}}
    gate = Gate(metric="evaluate.adapter.exact_match", comparison=comparison, **threshold)
    found: dict[str, Any] = check_gates({"g": gate}, known)["gates"]["g"]
    return found


@pytest.mark.parametrize(
    ("interval", "evidence", "state"),
    [
        ((0.05, 0.01, 0.09), "for", PASS),
        ((0.05, -0.01, 0.09), "for", MARGINAL),
        ((-0.05, -0.09, 0.01), "for", MARGINAL),
        ((-0.05, -0.09, -0.01), "for", FAIL),
        ((0.05, 0.01, 0.09), "against", PASS),
        ((0.0, -0.07, 0.07), "against", PASS),
        ((0.05, -0.01, 0.09), "against", PASS),
        ((-0.05, -0.09, 0.01), "against", MARGINAL),
        ((-0.05, -0.09, -0.01), "against", FAIL),
    ],
)
def test_evidence_says_which_side_must_be_shown(
    interval: tuple[float, float, float], evidence: Any, state: str
) -> None:
    """Against a minimum of 0: `for` wants a gain shown, `against` a loss."""
    assert compared(change(*interval), minimum=0, evidence=evidence)["state"] == state
    mirrored = change(-interval[0], -interval[2], -interval[1])
    assert compared(mirrored, maximum=0, evidence=evidence)["state"] == state


def test_no_leak_in_few_rows_passes_and_one_fails_only_where_against_is_asked() -> None:
    """What must never happen: none of 48 rows cannot show that it never does, but one shows that it does."""
    assert check(proportion(0, 48), maximum=0, evidence="against")["state"] == PASS
    assert check(proportion(0, 48), maximum=0)["state"] == MARGINAL
    assert check(proportion(1, 48), maximum=0, evidence="against")["state"] == FAIL


def test_a_comparison_judges_the_change_beside_the_metric() -> None:
    found = compared(change(-0.1, -0.2, -0.01, won=1, lost=6), minimum=0, evidence="against")
    assert (found["state"], found["comparison"], found["value"]) == (FAIL, "previous", -0.1)
    assert found["metric"] == "evaluate.adapter.exact_match"
    assert "won 1, lost 6" in found["reason"]
    artefacts = {
        "nf4": {"scores": {"exact_match": proportion(9, 10)}, "against_adapter": {"exact_match": change(0, 0, 0)}}
    }
    gate = Gate(metric="quantize.artefacts.nf4.scores.exact_match", comparison="adapter", minimum=-0.1)
    assert check_gates({"g": gate}, {"quantize": {"artefacts": artefacts}})["verdict"] == PASS
    ratio = {
        "adapter": {"perplexity": 3.0},
        "against_baseline": {"perplexity": {"ratio": 1.2, "low": 1.1, "high": 1.3}},
    }
    gate = Gate(metric="evaluate.general.adapter.perplexity", comparison="baseline", maximum=1.05, evidence="against")
    checked = check_gates({"g": gate}, {"evaluate": {"general": ratio}})
    assert (checked["verdict"], checked["gates"]["g"]["value"]) == (FAIL, 1.2)


def test_a_first_release_has_nothing_to_lose_against() -> None:
    found = compared(None, minimum=0, evidence="against")
    assert found["state"] == PASS
    assert found["reason"].startswith("first release")
    assert "value" not in found


@pytest.mark.parametrize(
    ("metric", "comparison", "words"),
    [
        ("evaluate.adapter.exact_mach", "previous", "exact_mach is not among"),
        ("evaluate.adapter.perplexity", "previous", "against_previous.perplexity is not among"),
        ("evaluate.adapter.exact_match", "adapter", "against_adapter.exact_match is not among"),
        ("evaluate.against_baseline.exact_match", "baseline", "against baseline is not among"),
    ],
)
def test_a_comparison_that_is_not_measured_is_an_error(metric: str, comparison: Any, words: str) -> None:
    known = metrics()
    known["evaluate"]["against_previous"] = {"exact_match": change(0, 0, 0)}
    known["evaluate"]["against_baseline"]["exact_match"] |= {"low": 0.0, "high": 0.0}
    with pytest.raises(UserError, match=words):
        check_gates({"g": Gate(metric=metric, comparison=comparison, minimum=0)}, known)


@pytest.mark.parametrize(
    ("states", "sentence"),
    [
        ({}, "No gates are set."),
        ({"a": (0.9, True)}, "The one gate holds."),
        ({"a": (0.1, True), "b": (0.2, True), "c": (0.9, True)}, "Of 3 gates 2 required fail: a, b."),
        (
            {"a": (0.1, False), "b": (None, True)},
            "Of 2 gates 1 advisory fail: a; 1 required cannot be told from these rows: b.",
        ),
    ],
)
def test_the_verdict_has_a_sentence(states: Any, sentence: str) -> None:
    values = {
        name: {"value": 0.5, "low": 0.1, "high": 0.9} if value is None else value for name, (value, _) in states.items()
    }
    asked = {name: Gate(metric=f"m.{name}", minimum=0.5, required=required) for name, (_, required) in states.items()}
    assert check_gates(asked, {"m": values})["reason"] == sentence
