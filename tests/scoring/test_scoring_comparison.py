"""What changed between two models on the same rows."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import SCORING, make_score

from stages.scoring import summary
from stages.scoring.intervals import mcnemar
from stages.scoring.metrics import as_json
from stages.scoring.rows import RowScore


def compare(*args: Any) -> Any:
    """The comparison as it is written."""
    return as_json(summary.compare(*args))


def change(pairs: Any, scoring: Any) -> Any:
    return as_json(summary.change(pairs, scoring))


def right_or_wrong(answers: str, valid: str | None = None) -> list[RowScore]:
    """One score a letter: r is right, anything else wrong; `valid` likewise for the schema."""
    return [
        make_score(str(number), answer == "r", valid=ok == "r")
        for number, (answer, ok) in enumerate(zip(answers, valid or answers, strict=True))
    ]


def test_compare_pairs_by_id() -> None:
    found = compare(right_or_wrong("rrrww", valid="rrrrr"), right_or_wrong("rrwrr", valid="rrrrw")[::-1], SCORING)
    exact = found["exact_match"]
    assert (exact["difference"], exact["won"], exact["lost"], exact["p_value"]) == (pytest.approx(0.2), 2, 1, 1.0)
    assert exact["low"] < 0 < exact["high"]
    assert found["schema_valid"]["difference"] == pytest.approx(-0.2)
    assert found["schema_valid"]["lost"] == 1
    assert found["rows"] == 5


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_compare_there_and_back_is_the_mirror_image(pairs: list[tuple[bool, bool]]) -> None:
    before, after = (right_or_wrong("".join("r" if pair[side] else "w" for pair in pairs)) for side in (0, 1))
    there, back = compare(before, after, SCORING)["exact_match"], compare(after, before, SCORING)["exact_match"]
    assert (there["won"], there["lost"]) == (back["lost"], back["won"])
    assert there["difference"] == -back["difference"]
    assert there["p_value"] == back["p_value"]
    assert there["won"] - there["lost"] == sum(a for _, a in pairs) - sum(b for b, _ in pairs)


def test_compare_refuses_other_rows() -> None:
    for before, after in (("rr", "r"), ("r", "rr"), ("", "")):
        with pytest.raises(ValueError, match="same rows"):
            compare(right_or_wrong(before), right_or_wrong(after), SCORING)
    twice = right_or_wrong("r") * 2
    with pytest.raises(ValueError, match="same rows"):
        compare(twice, twice, SCORING)


@given(*[st.integers(0, 40)] * 4)
def test_interval_and_test_agree_whether_anything_changed(both: int, won: int, lost: int, neither: int) -> None:
    counts = {(True, True): both, (False, True): won, (True, False): lost, (False, False): neither}
    pairs = [pair for pair, count in counts.items() for _ in range(count)]
    if not pairs:
        return
    found = change(pairs, SCORING)
    assert found["low"] <= found["difference"] <= found["high"]
    if mcnemar(won, lost) > 0.05:
        assert found["low"] <= 0 <= found["high"]


def test_no_change_in_few_rows_is_no_proof_of_none() -> None:
    few, many = (change([(True, True)] * rows, SCORING) for rows in (10, 1000))
    assert few["low"] < many["low"] < 0 < many["high"] < few["high"]


def test_other_metrics_change_with_a_paired_interval() -> None:
    """A noise that both models share cancels out in a paired interval, and only there."""
    random = np.random.default_rng(2)
    hard = random.uniform(1, 9, 80)
    before = [make_score(str(n), nats=float(h), reference_tokens=4, fields={"a": True}) for n, h in enumerate(hard)]
    after = [
        make_score(str(n), nats=0.9 * float(h), reference_tokens=4, fields={"a": n % 4 > 0}) for n, h in enumerate(hard)
    ]
    found = compare(before, after, SCORING)
    assert found["perplexity"]["ratio"] == pytest.approx(np.exp(-0.1 * hard.sum() / 320))
    assert found["perplexity"]["low"] < found["perplexity"]["ratio"] < found["perplexity"]["high"] < 1
    assert found["field_match"]["difference"] == pytest.approx(-0.25)
    assert found["field_match"]["high"] < 0


def test_classes_texts_and_tasks_are_compared_apart() -> None:
    def scores(right: bool) -> list[RowScore]:
        said = "yes" if right else "no"
        return [
            *(make_score(f"c{n}", right, kind="classification", output=said, task="c") for n in range(6)),
            *(
                make_score(f"t{n}", right, kind="text", output=f"{said} it is so", reference="yes it is so")
                for n in range(6)
            ),
        ]

    found = compare(scores(False), scores(True), SCORING)
    assert found["tasks"]["c"]["classification"]["macro"]["f1"]["difference"] == 1
    assert found["tasks"]["untagged"]["text"]["rougeL"]["difference"] == pytest.approx(0.25)
    assert found["classification"]["weighted"]["f1"] == found["tasks"]["c"]["classification"]["weighted"]["f1"]
    assert found["exact_match"]["won"] == 12
