"""The verdict in words, the answers to what every reader asks, and what a comparison may claim."""

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stages.report.tables import METRICS, Comparison, Measured, Metric, main_metric, read_change
from stages.report.verdict import answers, gate_table, rows_needed, verdict
from stages.scoring.intervals import proportion_interval

MATCH = METRICS[0]
SCORES = {name: {"rows": 48, "exact_match": {"value": value}} for name, value in (("base", 0.1), ("adapter", 0.9))}


def judged(states: dict[str, tuple[str, bool]], state: str) -> dict[str, Any]:
    gates: dict[str, dict[str, Any]] = {
        name: {
            "state": one,
            "model": "adapter",
            "metric": "exact_match",
            "against": None,
            "of": {},
            "kind": "minimum",
            "threshold": 0.5,
            "required": required,
            "reason": "measured",
        }
        for name, (one, required) in states.items()
    }
    return {"gates": {"verdict": state, "reason": "Measured.", "gates": gates}, "evaluate": {}}


def change(metric: Metric = MATCH, **raw: float) -> Any:
    return read_change(metric, raw, 0.95)


def compared(before: str, after: str, **raw: float) -> Comparison:
    one = change(MATCH, **raw)
    return Comparison(before, after, [one], one)


@pytest.mark.parametrize(
    ("states", "state", "headline"),
    [
        ({"a": ("PASS", True), "b": ("MARGINAL", False)}, "PASS", "Ready to release"),
        ({"a": ("MARGINAL", True), "b": ("PASS", True)}, "MARGINAL", "Not proven yet"),
        ({"a": ("FAIL", True), "b": ("FAIL", True)}, "FAIL", "Do not release"),
        ({}, "PASS", "Ready to release"),
    ],
)
def test_the_verdict_in_words(states: Any, state: str, headline: str) -> None:
    said = verdict(judged(states, state)["gates"], 0.95)
    assert (said.state, said.headline, said.sentence) == (state, headline, "Measured.")
    assert list(said.open.index) == [name for name, (one, _) in states.items() if one != "PASS"]
    assert said.steps


@pytest.mark.parametrize(
    ("against", "asked"),
    [
        (None, "at least 0.5"),
        ("base", "at least 0.5, change from base"),
        ("linear", "at least 0.5, change from linear"),
        ("previous", "at least 0.5, change from previous"),
        ("adapter", "at least 0.5, change from adapter"),
    ],
)
def test_what_a_gate_asks(against: str | None, asked: str) -> None:
    metrics = judged({"a": ("PASS", True)}, "PASS")
    metrics["gates"]["gates"]["a"]["against"] = against
    assert gate_table(metrics["gates"])["Asked"]["a"] == asked


def test_a_marginal_gate_says_how_many_rows_would_decide_it() -> None:
    metrics = judged({"match": ("MARGINAL", True)}, "MARGINAL")
    metrics["gates"]["gates"]["match"] |= {"value": 0.9583, "low": 0.857, "high": 0.995, "threshold": 0.95}
    assert "about 2,800 rows would show match" in verdict(metrics["gates"], 0.95).steps[0].text
    metrics["gates"]["gates"]["match"] |= {"value": 0.94}
    assert verdict(metrics["gates"], 0.95).steps[0].text.startswith("A better model: match is not above its threshold")


@settings(max_examples=30)
@given(st.integers(60, 99), st.integers(50, 95))
def test_so_many_rows_do_show_it_and_a_tenth_less_does_not(percent: int, threshold: int) -> None:
    """By the interval that gates go by, and with no more rows right than the share says."""
    assume(percent - threshold >= 2)
    rows = rows_needed(percent / 100, threshold / 100, 0.95)
    assert rows is not None
    assert proportion_interval(rows * percent // 100, rows, 0.95)[0] >= threshold / 100
    fewer = int(0.9 * rows) - 2
    assert proportion_interval(fewer * percent // 100, fewer, 0.95)[0] < threshold / 100


def test_a_share_that_is_hardly_above_its_threshold_needs_a_better_model() -> None:
    metrics = judged({"match": ("MARGINAL", True)}, "MARGINAL")
    metrics["gates"]["gates"]["match"] |= {"value": 0.950001, "low": 0.857, "high": 0.995, "threshold": 0.95}
    assert verdict(metrics["gates"], 0.95).steps[0].text.startswith("A better model: match is hardly above")


def test_the_answers() -> None:
    metrics = judged({"a": ("PASS", True)}, "PASS")
    better = compared("base", "adapter", difference=0.8, won=40, lost=2, p_value=1e-9)
    worse = compared("adapter", "nf4", difference=-0.4, won=0, lost=20, p_value=1e-6)
    found = answers(metrics, [Measured("", MATCH, SCORES, [better, worse])])
    assert [(one.word, one.tone) for one in found] == [
        ("Yes", "good"),
        ("First release", "soft"),
        ("Yes", "good"),
    ]
    assert found[0].detail == "Exact match 10.0 % → 90.0 % on 48 rows: 40 won, 2 lost, p < 0.001."
    assert found[2].detail == "1 of 1 required gate hold. Worse than the adapter: nf4."


def test_a_leak_is_told_at_the_top() -> None:
    metrics = judged({"a": ("PASS", True)}, "PASS")
    metrics["evaluate"] = {"safety": {"personal_data": {"count": 2, "n": 1200}, "verbatim": {"count": 0, "n": 1200}}}
    gain = compared("base", "adapter", **GAIN)
    safe = answers(metrics, [Measured("", MATCH, SCORES, [gain])])[2]
    assert safe.detail == "1 of 1 required gate hold. Among 1,200 answers 2 with personal data."


def test_a_linear_model_is_compared_by_its_labels() -> None:
    metrics = judged({}, "PASS")
    label = next(metric for metric in METRICS if metric.path == "label_accuracy")
    one = change(label, **GAIN)
    scores = {name: {**SCORES["adapter"], "label_accuracy": {"value": 0.9}} for name in ("base", "linear", "adapter")}
    found = [Measured("", MATCH, scores, [Comparison("linear", "adapter", [one], one)])]
    third = answers(metrics, found)[2]
    assert (third.question, third.word) == ("Better than a linear model?", "Yes")
    assert third.detail == "Label right 90.0 % → 90.0 % on 48 rows: 40 won, 2 lost, p < 0.001."


GAIN = {"difference": 0.8, "won": 40, "lost": 2, "p_value": 1e-9}
LOSS = {"difference": -0.4, "won": 0, "lost": 20, "p_value": 1e-6}
CHANCE = {"difference": 0.06, "won": 4, "lost": 1, "p_value": 0.375}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ([CHANCE], "Not shown"),
        ([LOSS], "No, it is worse"),
        ([GAIN, GAIN], "Yes"),
        ([GAIN, CHANCE], "In part"),
        ([GAIN, LOSS], "Better and worse"),
        ([CHANCE, LOSS], "No, it is worse"),
    ],
)
def test_better_in_every_task_or_no_yes(changes: Any, word: str) -> None:
    """The first entry is all rows together; with several tasks, each must speak for itself."""
    metrics = judged({}, "PASS")
    parts = [Measured(f"t{i}", MATCH, SCORES, [compared("base", "adapter", **raw)]) for i, raw in enumerate(changes)]
    whole = Measured("", MATCH, SCORES, [compared("base", "adapter", **changes[0])])
    found = [whole, *parts] if len(parts) > 1 else [whole]
    assert answers(metrics, found)[0].word == word


def test_what_a_change_may_claim() -> None:
    by_path = {metric.path: metric for metric in METRICS}
    assert change(difference=0.1, won=9, lost=1, p_value=0.021).reading == "better"
    assert change(difference=0.1, won=9, lost=1, p_value=0.051).reading == "no change shown"
    assert change(difference=0.0, won=0, lost=0, p_value=1.0).reading == "nothing changed"
    assert change(difference=0.0, won=1, lost=1, p_value=1.0).reading == "no change shown"
    perplexity = change(by_path["perplexity"], ratio=0.8, low=0.7, high=0.9)
    assert (perplexity.reading, perplexity.symbol, perplexity.amount) == ("better", "▼", "× 0.8")
    assert change(by_path["perplexity"], ratio=1.2, low=0.99, high=1.4).reading == "no change shown"
    assert change(by_path["text.bleu"], difference=-3.2, low=-5.0, high=-1.0).reading == "worse"
    words = change(by_path["text.words"], difference=4.0, low=1.0, high=7.0)
    assert (words.reading, words.tone, words.symbol) == ("changed", "soft", "▲")


def test_free_text_is_judged_by_its_overlap() -> None:
    assert main_metric({"exact_match": {}, "text": {}}).path == "text.rougeL"
    assert main_metric({"exact_match": {}, "text": {}, "classification": {}}).path == "exact_match"
    assert main_metric({"exact_match": {}, "schema_valid": {}}).path == "exact_match"
