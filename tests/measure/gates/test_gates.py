"""Gates: what an interval can show, what it cannot, and that better answers never make a gate worse."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.measure.gates.__main__ import check_gates, worst
from stages.params.measure import Gate
from stages.scoring.catalogue import Key, catalogue_of
from stages.scoring.intervals import proportion_interval
from stages.scoring.metrics import FAIL, MARGINAL, PASS

ORDER = {FAIL: 0, MARGINAL: 1, PASS: 2}


def proportion(count: int, n: int) -> dict[str, float]:
    low, high = proportion_interval(count, n, 0.95)
    return {"value": count / n, "low": low, "high": high, "count": count, "n": n}


def metrics(exact_match: Any = None, difference: float = 0.0) -> dict[str, Any]:
    return {
        "evaluate": {
            "adapter": {"exact_match": exact_match or proportion(47, 48), "perplexity": 1.2},
            "against_baseline": {"exact_match": change(difference, -1.0, 1.0, won=1)},
        }
    }


def check(value: Any, **threshold: Any) -> dict[str, Any]:
    """The one gate on a metric."""
    gate = Gate(model="checks", metric="m", **threshold)
    result: dict[str, Any] = check_gates({"g": gate}, {"checks": {"m": value}})["gates"]["g"]
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
    asked = {
        name: Gate(model="checks", metric=name, minimum=0.5, required=required) for name, (_, required) in gates.items()
    }
    assert check_gates(asked, {"checks": values})["verdict"] == verdict


@pytest.mark.parametrize(
    ("model", "metric", "words"),
    [
        ("adapter", "exact_mach", "gate g: adapter exact_mach is not among .* adapter exact_match"),
        ("adaptor", "exact_match", "is not among the metrics; did you mean adapter exact_match"),
        ("base", "bytes", "is not among the metrics; did you mean"),
        ("", "", "is not among the metrics; did you mean"),
    ],
)
def test_a_missing_metric_is_named_with_its_nearest(model: str, metric: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_gates({"g": Gate(model=model, metric=metric, minimum=0.5)}, metrics())


def test_no_metrics_at_all_is_said() -> None:
    with pytest.raises(UserError, match="did you mean nothing"):
        check_gates({"g": Gate(model="adapter", metric="b", minimum=0.5)}, {})


HOSTILE = [
    "order.cancel",
    "adapter",
    ".against_previous.",
    "a b",
    "exact_match",
    "scores",
    "value",
    "low",
    "labels",
    "ünïcode\n",
]


@pytest.mark.parametrize("label", HOSTILE)
def test_a_label_may_have_any_name(label: str) -> None:
    """Names were once joined by dots and cut apart again."""
    files = metrics()
    files["evaluate"]["adapter"]["labels"] = {label: {"exact_match": proportion(10, 10)}}
    files["evaluate"]["against_baseline"]["tasks"] = {label: {"rows": 3, "exact_match": change(0.2, 0.1, 0.3)}}
    gates = {
        "all": Gate(model="adapter", metric="exact_match", minimum=0.9),
        "label": Gate(model="adapter", metric="exact_match", of={"label": label}, minimum=0.6),
        "task": Gate(model="adapter", metric="exact_match", against="base", of={"task": label}, minimum=0),
        "before": Gate(model="adapter", metric="exact_match", against="previous", minimum=0),
    }
    found = check_gates(gates, files)["gates"]
    assert {name: one.get("value") for name, one in found.items()} == {
        "all": 47 / 48, "label": 1.0, "task": 0.2, "before": None,
    }  # fmt: skip
    assert found["before"]["reason"].startswith("first release")


def test_two_numbers_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two metrics have the name"):
        catalogue_of({"checks": {"a": {"b": 1}, "a.b": 2}})


def test_every_number_of_a_run_has_one_name() -> None:
    found = catalogue_of(metrics())
    assert found.get(Key("adapter", "perplexity")) == 1.2
    assert found.get(Key("adapter", "exact_match", "base")) == change(0.0, -1.0, 1.0, won=1)
    assert found.get(Key("adapter", "exact_match", "linear")) is None


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
    gate = Gate(model="adapter", metric="exact_match", against=comparison, **threshold)
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


def test_the_number_alone_decides_where_that_is_asked() -> None:
    assert check(proportion(46, 48), minimum=0.95, evidence="value")["state"] == PASS
    assert check(proportion(45, 48), minimum=0.95, evidence="value")["state"] == FAIL


def test_a_comparison_judges_the_change_and_not_the_metric() -> None:
    found = compared(change(-0.1, -0.2, -0.01, won=1, lost=6), minimum=0, evidence="against")
    assert (found["state"], found["against"], found["value"]) == (FAIL, "previous", -0.1)
    assert (found["model"], found["metric"]) == ("adapter", "exact_match")
    assert "won 1, lost 6" in found["reason"]
    artefacts = {
        "nf4": {"scores": {"exact_match": proportion(9, 10)}, "against_adapter": {"exact_match": change(0, 0, 0)}}
    }
    gate = Gate(model="nf4", metric="exact_match", against="adapter", minimum=-0.1)
    assert check_gates({"g": gate}, {"quantize": {"artefacts": artefacts}})["verdict"] == PASS
    ratio = {
        "adapter": {"perplexity": 3.0},
        "against_baseline": {"perplexity": {"ratio": 1.2, "low": 1.1, "high": 1.3}},
    }
    gate = Gate(model="adapter", metric="general_perplexity", against="base", maximum=1.05, evidence="against")
    checked = check_gates({"g": gate}, {"evaluate": {"general": ratio}})
    assert (checked["verdict"], checked["gates"]["g"]["value"]) == (FAIL, 1.2)


def test_without_labels_there_is_no_linear_baseline_to_beat() -> None:
    found = compared(None, "linear", minimum=0)
    assert (found["state"], found["reason"]) == (PASS, "no linear baseline: rows or answers have no labels to compare")


@pytest.mark.parametrize("against", ["linear", "sft", "previous"])
def test_only_what_was_never_measured_is_nothing_to_compare_with(against: str) -> None:
    """An artefact is compared with the adapter alone: a gate on another change of it once passed as if nothing was."""
    files = metrics()
    there = {"label_accuracy": proportion(9, 10), "exact_match": proportion(9, 10)}
    files["baseline"] = {"linear": there}
    files["evaluate"] |= {"sft": there, "previous": {"scores": there}}
    files["evaluate"] |= {f"against_{name}": {"exact_match": change(0, 0, 0)} for name in ("linear", "sft", "previous")}
    files["quantize"] = {
        "artefacts": {"merged": {"scores": there, "against_adapter": {"exact_match": change(0, 0, 0)}}}
    }
    gate = Gate.model_validate({"model": "merged", "metric": "exact_match", "against": against, "minimum": 0})
    with pytest.raises(UserError, match=f"merged exact_match against {against} is not among the metrics"):
        check_gates({"g": gate}, files)
    assert check_gates({"g": gate.model_copy(update={"model": "adapter"})}, files)["verdict"] == PASS


def test_labels_that_answers_have_no_place_for_are_compared_with_no_linear_baseline() -> None:
    files = metrics() | {"baseline": {"linear": {"label_accuracy": proportion(9, 10)}}}
    gate = Gate(model="adapter", metric="label_accuracy", against="linear", minimum=0)
    found = check_gates({"g": gate}, files)["gates"]["g"]
    assert (found["state"], found["reason"].split(":")[0]) == (PASS, "no linear baseline")


def test_without_an_objective_there_is_nothing_to_be_better_than() -> None:
    found = compared(None, "sft", minimum=1e-9)
    assert (found["state"], found["reason"]) == (PASS, "prefer.objective is sft: the adapter is what SFT made")


@pytest.mark.parametrize("against", ["previous", "sft"])
def test_a_misspelt_metric_does_not_wait_for_the_second_release(against: str) -> None:
    gate = Gate.model_validate({"model": "adapter", "metric": "exact_mach", "against": against, "minimum": 0})
    with pytest.raises(UserError, match=f"adapter exact_mach against {against} is not among the metrics"):
        check_gates({"no_loss": gate}, metrics())


def test_a_first_release_has_nothing_to_lose_against() -> None:
    found = compared(None, minimum=0, evidence="against")
    assert found["state"] == PASS
    assert found["reason"].startswith("first release")
    assert "value" not in found


@pytest.mark.parametrize(
    ("metric", "against", "words"),
    [
        ("exact_mach", "previous", "adapter exact_mach against previous is not among"),
        ("perplexity", "previous", "adapter perplexity against previous is not among"),
        ("exact_match", "adapter", "adapter exact_match against adapter is not among"),
    ],
)
def test_a_comparison_that_is_not_measured_is_an_error(metric: str, against: Any, words: str) -> None:
    known = metrics()
    known["evaluate"]["against_previous"] = {"exact_match": change(0, 0, 0)}
    with pytest.raises(UserError, match=words):
        check_gates({"g": Gate(model="adapter", metric=metric, against=against, minimum=0)}, known)


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
    asked = {
        name: Gate(model="checks", metric=name, minimum=0.5, required=required)
        for name, (_, required) in states.items()
    }
    assert check_gates(asked, {"checks": values})["reason"] == sentence
