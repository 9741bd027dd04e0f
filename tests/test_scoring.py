"""Scoring: strict comparison by value, and sums that agree with counting by hand."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.completions import Schema
from stages.errors import UserError
from stages.scoring import RowScore, compare, same_value, score_row, summarise

SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["refund", "cancel"]}, "order": {"type": ["integer", "null"]}},
    "required": ["intent", "order"],
    "additionalProperties": False,
}
REFERENCE = '{"intent": "refund", "order": 7}'

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def schema(tmp_path: Path) -> Schema:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA), encoding="utf-8")
    return Schema(path)


def generation(
    output: str, completion: str = REFERENCE, key: str = "a", label: str | None = "refund"
) -> dict[str, Any]:
    return {
        "id": key,
        "prompt": "Money back for order 7",
        "completion": completion,
        "label": label,
        "output": output,
        "tokens": 12,
        "stopped": True,
    }


def right_or_wrong(answers: str, valid: str | None = None) -> list[RowScore]:
    """One score a letter: r is right, anything else wrong; `valid` likewise for the schema."""
    return [
        RowScore(str(number), None, True, ok == "r", answer == "r", {}, None)
        for number, (answer, ok) in enumerate(zip(answers, valid or answers, strict=True))
    ]


@pytest.mark.parametrize(
    ("output", "json_valid", "schema_valid", "exact_match", "fields"),
    [
        (REFERENCE, True, True, True, (True, True)),
        ('  {"order":7,\n"intent":"refund"}\n', True, True, True, (True, True)),
        ('{"intent": "refund", "order": 7.0}', True, True, True, (True, True)),
        ('{"intent": "refund", "order": "7"}', True, False, False, (True, False)),
        ('{"intent": "refund", "order": true}', True, False, False, (True, False)),
        ('{"intent": "refund"}', True, False, False, (True, False)),
        ('{"intent": "cancel", "order": 7}', True, True, False, (False, True)),
        ('{"intent": "refund", "order": 7, "urgent": false}', True, False, False, (True, True)),
        ('{"intent": "refund", "order": 7} Done.', False, False, False, (False, False)),
        ('```json\n{"intent": "refund", "order": 7}\n```', False, False, False, (False, False)),
        ('{"intent": "refund", "order": 7, "order": 7}', False, False, False, (False, False)),
        ('{"intent": "refund", "order": 1e999}', False, False, False, (False, False)),
        ('["refund", 7]', True, False, False, (False, False)),
        ("", False, False, False, (False, False)),
    ],
)
def test_an_output_is_judged_as_it_is(
    schema: Schema, output: str, json_valid: bool, schema_valid: bool, exact_match: bool, fields: tuple[bool, bool]
) -> None:
    score = score_row(generation(output), schema)
    assert (score.json_valid, score.schema_valid, score.exact_match) == (json_valid, schema_valid, exact_match)
    assert (score.fields["intent"], score.fields["order"]) == fields
    assert (score.predicted is not None) == json_valid


def test_a_reference_that_is_text_is_met_character_for_character(schema: Schema) -> None:
    assert score_row(generation(" Good day. \n", completion="Good day."), schema).exact_match
    assert not score_row(generation("Good day", completion="Good day."), schema).exact_match
    assert score_row(generation("Good day.", completion="Good day."), schema).fields == {}


def test_a_missing_field_is_not_a_field_that_is_null(schema: Schema) -> None:
    score = score_row(generation('{"intent": "refund"}', completion='{"intent": "refund", "order": null}'), schema)
    assert score.fields == {"intent": True, "order": False}


def test_deep_nesting_is_a_wrong_answer_and_no_crash(schema: Schema) -> None:
    for depth in (100, 980, 990, 993, 2000, 100_000):
        output = '{"intent": ' + "[" * depth + "]" * depth + "}"
        assert not score_row(generation(output), schema).exact_match
        assert not score_row(generation(output), schema).schema_valid


@given(json_values, json_values)
def test_same_value_agrees_with_a_comparison_of_typed_text(left: Any, right: Any) -> None:
    assert same_value(left, right) == (_typed_text(left) == _typed_text(right))


@given(json_values)
def test_a_value_is_the_same_after_a_round_trip_with_sorted_keys(value: Any) -> None:
    assert same_value(value, json.loads(json.dumps(value, sort_keys=True)))


def _typed_text(value: Any) -> str:
    """The slow oracle: a text in which every value carries its JSON type and numbers are exact fractions."""
    if isinstance(value, bool) or value is None:
        return f"<{value}>"
    if isinstance(value, int | float):
        return f"<number {Fraction(value)}>"
    if isinstance(value, str):
        return f"<string {value!r}>"
    if isinstance(value, list):
        return "[" + ",".join(_typed_text(item) for item in value) + "]"
    return "{" + ",".join(f"{key!r}:{_typed_text(value[key])}" for key in sorted(value)) + "}"


def test_summary_counts_rows_fields_and_labels(schema: Schema) -> None:
    rows = [
        generation(REFERENCE, key="a"),
        generation('{"intent": "cancel", "order": 7}', key="b"),
        generation("no JSON", key="c", label="cancel"),
        generation("Good day.", completion="Good day.", key="d", label=None),
    ]
    summary = summarise(rows, [score_row(row, schema) for row in rows], perplexity=1.5, confidence=0.95)
    counts = {key: (summary[key]["count"], summary[key]["of"]) for key in ("json_valid", "schema_valid", "exact_match")}
    assert counts == {"json_valid": (2, 4), "schema_valid": (2, 4), "exact_match": (2, 4)}
    assert {key: (p["count"], p["of"]) for key, p in summary["fields"].items()} == {"intent": (1, 3), "order": (2, 3)}
    assert summary["labels"]["refund"]["exact_match"]["value"] == 0.5
    assert summary["labels"]["cancel"]["exact_match"]["count"] == 0
    assert set(summary["labels"]) == {"refund", "cancel"}
    assert (summary["rows"], summary["perplexity"], summary["output_tokens"]) == (4, 1.5, 12)
    assert summary["exact_match"]["low"] < 0.5 < summary["exact_match"]["high"]


def test_summary_does_not_depend_on_the_order_of_the_rows(schema: Schema) -> None:
    rows = [generation(REFERENCE, key="a"), generation("x", key="b", label="cancel"), generation("y", key="c")]
    scores = [score_row(row, schema) for row in rows]
    forward, backward = (
        json.dumps(summarise(one, two, 1.0, 0.95)) for one, two in ((rows, scores), (rows[::-1], scores[::-1]))
    )
    assert forward == backward


def test_summary_of_no_rows_names_the_hold_out() -> None:
    with pytest.raises(UserError, match="hold-out"):
        summarise([], [], 1.0, 0.95)


def test_summary_refuses_scores_of_other_rows(schema: Schema) -> None:
    with pytest.raises(ValueError, match="not those"):
        summarise([generation("x", key="a")], [score_row(generation("x", key="b"), schema)], 1.0, 0.95)


def test_compare_pairs_by_id() -> None:
    change = compare(right_or_wrong("rrrww", valid="rrrrr"), right_or_wrong("rrwrr", valid="rrrrw")[::-1])
    assert change["exact_match"] == {"difference": pytest.approx(0.2), "won": 2, "lost": 1, "p_value": 1.0}
    assert change["schema_valid"]["difference"] == pytest.approx(-0.2)
    assert change["schema_valid"]["lost"] == 1


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_compare_there_and_back_is_the_mirror_image(pairs: list[tuple[bool, bool]]) -> None:
    before, after = (right_or_wrong("".join("r" if pair[side] else "w" for pair in pairs)) for side in (0, 1))
    there, back = compare(before, after)["exact_match"], compare(after, before)["exact_match"]
    assert (there["won"], there["lost"]) == (back["lost"], back["won"])
    assert there["difference"] == -back["difference"]
    assert there["p_value"] == back["p_value"]
    assert there["won"] - there["lost"] == sum(a for _, a in pairs) - sum(b for b, _ in pairs)


def test_compare_refuses_other_rows() -> None:
    for before, after in (("rr", "r"), ("r", "rr"), ("", "")):
        with pytest.raises(ValueError, match="same rows"):
            compare(right_or_wrong(before), right_or_wrong(after))
    twice = right_or_wrong("r") * 2
    with pytest.raises(ValueError, match="same rows"):
        compare(twice, twice)
