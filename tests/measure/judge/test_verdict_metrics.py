"""The judge's metrics, from replies whose meaning is known."""

import random
from dataclasses import replace
from typing import Any

import pytest
from asked_servers import read_question
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_project import judge_params
from project import ROOT
from scipy.stats import spearmanr

from stages.core.errors import UserError
from stages.engines.asked_models import Reply
from stages.measure.gates.__main__ import check_gates
from stages.measure.judge.__main__ import ask_about, summarise
from stages.params.loader import load_params
from stages.params.measure import Gate
from stages.params.section import Price
from stages.records.record import make_record
from stages.scoring.metrics import as_json
from stages.scoring.paired_answers import Answers, delta

PARAMS = load_params("task", "judge", "scoring", path=ROOT / "params.yaml")


def row(number: int, base: str, tuned: str) -> Answers:
    return Answers(make_record(f"question {number}", "RIGHT", None, "test", ""), {"base": base, "tuned": tuned})


def judged(rows: list[Answers], judge: Any, repeats: int = 0) -> dict[str, Any]:
    """The metrics when `judge(answer A, answer B, repeat)` says A, B, TIE or what it likes."""
    questions = ask_about(rows, judge_params(repeats=repeats), PARAMS.task, seed=1)
    replies = {}
    for question in questions:
        parts = read_question(question.text)
        said = judge(parts["answer A"], parts["answer B"], question.repeat)
        replies[question] = Reply(said, 100, 2)
    return summarise(rows, replies, Price(input=3.0, output=15.0), PARAMS.scoring)


def right(first: str, second: str, repeat: int) -> str:
    return "TIE" if (first == "RIGHT") == (second == "RIGHT") else "A" if first == "RIGHT" else "B"


def longer(first: str, second: str, repeat: int) -> str:
    return "A" if len(first) > len(second) else "B"


ROWS = [
    *[row(n, "wrong", "RIGHT") for n in range(10)],
    *[row(n, "RIGHT", "wrong") for n in range(10, 13)],
    *[row(n, "wrong", "false") for n in range(13, 18)],
    *[row(n, "same", "same") for n in range(18, 20)],
]


def test_every_row_counts_once() -> None:
    metrics = judged(ROWS, right)
    found = metrics["against_baseline"]
    assert (found["rows"], found["identical"], found["wins"], found["ties"], found["losses"]) == (20, 2, 10, 7, 3)
    assert found["delta"] == {**found["delta"], "value": pytest.approx(0.35), "n": 20}
    assert -0.1 < found["delta"]["low"] < 0.35 < found["delta"]["high"] < 1
    assert found["disagreements"] == found["unreadable"] == 0
    assert metrics["replies"] == {"count": 36, "unreadable": 0}


def test_a_previous_release_meets_the_rows_that_it_answered() -> None:
    rows = [Answers(one.record, {**one.outputs, "previous": "RIGHT"}) for one in ROWS[:6]] + ROWS[6:]
    metrics = judged(rows, right)
    found = metrics["against_previous"]
    assert (found["rows"], found["identical"], found["delta"]["n"]) == (6, 6, 6)
    assert metrics["against_baseline"] == judged(ROWS, right)["against_baseline"]
    rows = [Answers(one.record, {**one.outputs, "previous": one.outputs["base"]}) for one in ROWS]
    twice = judged(rows, right)
    assert twice["against_previous"] == twice["against_baseline"]
    assert twice["cost"] == judged(ROWS, right)["cost"]  # the same two texts are asked about once


def test_a_gate_on_the_previous_release_passes_the_first_one() -> None:
    gates = {"no_worse": Gate(model="judge", metric="delta", against="previous", minimum=0, evidence="against")}
    first = check_gates(gates, {"judge": judged(ROWS, right)})["gates"]["no_worse"]
    assert first["state"] == "PASS"
    assert first["reason"].startswith("first release")
    worse = [Answers(one.record, {**one.outputs, "previous": "RIGHT"}) for one in ROWS[10:]]
    assert check_gates(gates, {"judge": judged(worse, right)})["verdict"] == "FAIL"
    with pytest.raises(UserError, match="not among the metrics"):
        check_gates(
            {"g": Gate(model="jugde", metric="delta", against="previous", minimum=0)}, {"judge": judged(ROWS, right)}
        )


def test_cost_is_tokens_times_price() -> None:
    cost = judged(ROWS, right)["cost"]
    assert cost == {
        "input_tokens": 3600,
        "output_tokens": 72,
        "uncounted": 0,
        "price": pytest.approx((3600 * 3 + 72 * 15) / 1e6),
    }


def test_a_judge_of_places_is_found_out() -> None:
    found = judged(ROWS, lambda first, second, repeat: "A")["against_baseline"]
    assert (found["wins"], found["losses"], found["disagreements"]) == (0, 0, 18)
    assert found["first_preferred"]["value"] == 1.0
    assert found["delta"]["value"] == 0.0
    assert judged(ROWS, right)["against_baseline"]["first_preferred"]["value"] == 0.5


def test_a_judge_of_length_is_found_out() -> None:
    rows = [row(n, "x" * (5 + n % 7), "x" * (5 + n % 5)) for n in range(40)]
    found = judged(rows, longer)["against_baseline"]
    assert found["length"]["longer"]["delta"] == 1.0
    assert found["length"]["shorter"]["delta"] == -1.0
    assert found["length"]["longer"]["rows"] + found["length"]["shorter"]["rows"] + found["identical"] == 40
    assert found["length"]["correlation"] > 0.8
    differences = [n % 5 - n % 7 for n in range(40) if n % 5 != n % 7]
    expected = spearmanr(differences, [1 if difference > 0 else -1 for difference in differences]).statistic
    assert found["length"]["correlation"] == pytest.approx(expected)


def test_a_judge_that_cannot_be_read_shows_nothing() -> None:
    metrics = judged(ROWS, lambda first, second, repeat: "As an AI model I")
    found = metrics["against_baseline"]
    assert (found["ties"], found["unreadable"], metrics["replies"]["unreadable"]) == (20, 18, 36)
    assert "first_preferred" not in found
    assert "correlation" not in found["length"]


def test_a_judge_that_changes_its_mind_is_found_out() -> None:
    fickle = judged(
        ROWS, lambda first, second, repeat: right(second, first, 0) if repeat else right(first, second, 0), 18
    )
    assert fickle["against_baseline"]["consistency"] == {
        **fickle["against_baseline"]["consistency"],
        "count": 5,  # the ties alone
        "n": 18,
    }
    assert judged(ROWS, right, 4)["against_baseline"]["consistency"]["value"] == 1.0
    assert "consistency" not in judged(ROWS, right)["against_baseline"]


@given(st.integers(0, 2**32))
@settings(max_examples=20)
def test_changing_the_sides_changes_the_sign_alone(seed: int) -> None:
    draw = random.Random(seed)
    rows = [row(n, draw.choice(["RIGHT", "a", "bb"]), draw.choice(["RIGHT", "a", "bb"])) for n in range(12)]
    turned = [Answers(one.record, {"base": one.outputs["tuned"], "tuned": one.outputs["base"]}) for one in rows]
    one, other = (judged(side, right)["against_baseline"] for side in (rows, turned))
    assert (one["wins"], one["ties"], one["losses"]) == (other["losses"], other["ties"], other["wins"])
    assert one["delta"]["value"] == pytest.approx(-other["delta"]["value"])


@pytest.mark.parametrize(
    ("wins", "ties", "losses", "verdict"),
    [
        (40, 5, 5, "PASS"),
        (3, 0, 0, "MARGINAL"),  # three rows that agree are no proof
        (12, 30, 8, "MARGINAL"),  # 0.08, but its interval reaches below 0
        (0, 48, 0, "FAIL"),
        (22, 6, 20, "FAIL"),  # 0.04
        (5, 5, 40, "FAIL"),
    ],
)
def test_the_gates_of_params_ask_for_more_than_005_and_surely_more_than_0(
    wins: int, ties: int, losses: int, verdict: str
) -> None:
    found = as_json(delta([1] * wins + [0] * ties + [-1] * losses, PARAMS.scoring))
    metrics = {"judge": {"against_baseline": {"delta": found}}}
    assert check_gates(PARAMS.judge.gates, metrics)["verdict"] == verdict


@given(st.lists(st.sampled_from([-1, -0.5, 0, 0.5, 1]), max_size=40), st.randoms())
def test_the_interval_holds_the_mean_and_knows_no_order(values: list[float], draw: random.Random) -> None:
    found = delta(values, PARAMS.scoring)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    draw.shuffle(values)
    assert delta(values, PARAMS.scoring) == replace(found, value=delta(values, PARAMS.scoring).value)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """On 20 rows of a model that is better, by 0.9, 0.05 and 0.05 to win, tie and lose; 0.93 leaves room for chance."""
    draw = random.Random(7)
    hits = 0
    for _ in range(200):
        values = draw.choices([1, 0, -1], [0.9, 0.05, 0.05], k=20)
        found = delta(values, PARAMS.scoring)
        hits += found.low <= 0.85 <= found.high
    assert hits >= 0.93 * 200
