"""One output against its reference: strict comparison by value, and the contract of its task."""

import json
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import REFERENCE, SCHEMA, generation, make_tasks

from stages.core.errors import UserError
from stages.scoring.rows import same_value, score_row
from stages.text.json_schema import Tasks
from stages.text.strict_json import parse_json

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def tasks(tmp_path: Path) -> Tasks:
    return make_tasks(tmp_path)


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
    tasks: Tasks, output: str, json_valid: bool, schema_valid: bool, exact_match: bool, fields: tuple[bool, bool]
) -> None:
    score = score_row(generation(output), tasks)
    assert (score.json_valid, score.valid, score.exact_match) == (json_valid, schema_valid, exact_match)
    assert (score.fields["intent"], score.fields["order"]) == fields
    assert (score.predicted is not None) == json_valid


def test_a_reference_that_is_text_is_met_character_for_character(tasks: Tasks) -> None:
    assert score_row(generation(" Good day. \n", completion="Good day."), tasks).exact_match
    assert not score_row(generation("Good day", completion="Good day."), tasks).exact_match
    assert score_row(generation("Good day.", completion="Good day."), tasks).fields == {}


def test_a_missing_field_is_not_a_field_that_is_null(tasks: Tasks) -> None:
    score = score_row(generation('{"intent": "refund"}', completion='{"intent": "refund", "order": null}'), tasks)
    assert score.fields == {"intent": True, "order": False}


def test_deep_nesting_is_a_wrong_answer_and_no_crash(tasks: Tasks) -> None:
    for depth in (100, 980, 990, 993, 2000, 100_000):
        output = '{"intent": ' + "[" * depth + "]" * depth + "}"
        assert not score_row(generation(output), tasks).exact_match
        assert not score_row(generation(output), tasks).valid


@given(json_values, json_values)
def test_same_value_agrees_with_a_comparison_of_typed_text(left: Any, right: Any) -> None:
    assert same_value(left, right) == (_typed_text(left) == _typed_text(right))


@given(json_values)
def test_a_value_is_the_same_after_a_round_trip_with_sorted_keys(value: Any) -> None:
    assert same_value(value, json.loads(json.dumps(value, sort_keys=True)))


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("1", "1.0", True),
        ("1e2", "100", True),
        ("0.1", "0.10", True),
        ("1E+2", "100.0", True),
        ("-0", "0.0", True),
        ("9007199254740993", "9007199254740993.0", True),
        ("9007199254740993", "9007199254740992", False),
        ("9007199254740993.0", "9007199254740992", False),
        ("9007199254740993.0", "9007199254740992.0", False),
        ("0.1", "0.1000000000000000055511151231257827", False),
        ("3.14159265358979323846", "3.141592653589793", False),
        ("1e23", "100000000000000000000000", True),
        ("123456789012345678901234567890", "123456789012345678901234567890.0", True),
        ("1", "true", False),
        ("0", "false", False),
        ("1", '"1"', False),
        ("0", "null", False),
        ('{"a": 1, "b": [2, 3.0]}', '{"b": [2.0, 3], "a": 1.00}', True),
        ("[1, 2]", "[2, 1]", False),
    ],
)
def test_numbers_are_compared_by_what_their_digits_say(left: str, right: str, same: bool, tasks: Tasks) -> None:
    for output, reference in ((left, right), (right, left)):
        row = generation(f'{{"order": {output}}}', completion=f'{{"order": {reference}}}')
        score = score_row(row, tasks)
        assert (score.exact_match, score.fields) == (same, {"order": same})


@given(
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30, places=12),
    st.integers(0, 5),
)
def test_two_ways_to_write_a_number_are_one_number(number: Decimal, zeros: int) -> None:
    with localcontext(prec=200):
        plain, longer, shifted = f"{number:f}", f"{number:.40f}" + "0" * zeros, f"{number * 10**zeros:f}e-{zeros}"
        other = f"{number + Decimal('1e-30'):f}"
    assert same_value(parse_json(plain), parse_json(longer))
    assert same_value(parse_json(longer), parse_json(shifted))
    assert not same_value(parse_json(plain), parse_json(other))


@pytest.mark.parametrize(
    "output", ["NaN", "Infinity", '{"order": -Infinity}', '{"order": NaN}', '{"a": 1, "a": 1}', "1e999"]
)
def test_what_python_reads_and_json_has_not_is_a_wrong_answer(output: str, tasks: Tasks) -> None:
    score = score_row(generation(output), tasks)
    assert (score.json_valid, score.valid, score.exact_match) == (False, False, False)


@pytest.mark.parametrize(
    ("answer", "label", "right"),
    [
        *(('"3"', "3", True), ("3", "3", True), ("3", "4", False), ("true", "true", True), ("null", "None", False)),
        # However the same number is written: what is an exact match has the right label.
        *(("3.0", "3", True), ("3e0", "3", True), ("3", "3.0", True), ("0.10", "0.1", True), ("3.1", "3", False)),
        *(('"3.0"', "3", False), ("true", "1", False), ("null", "refund", False), ("[1.0]", "[1]", True)),
    ],
)
def test_a_label_that_is_a_number_is_met_by_value(tasks: Tasks, answer: str, label: str, right: bool) -> None:
    assert score_row(generation(f'{{"intent": {answer}}}', label=label), tasks).label_right == right


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


def test_a_label_is_met_letter_by_letter(tmp_path: Path) -> None:
    tasks = make_tasks(tmp_path, kind="classification", labels=["spam", "ham"])
    for output, right, valid in (
        ("spam", True, True),
        (" spam\n", True, True),
        ("ham", False, True),
        ("Spam", False, False),
    ):
        score = score_row(generation(output, completion="spam"), tasks)
        assert (score.kind, score.exact_match, score.valid) == ("classification", right, valid)


def test_text_keeps_its_rules(tmp_path: Path) -> None:
    rules = {"max_words": 5, "required_phrases": ["Thank you"], "forbidden_phrases": ["the refund"]}
    tasks = make_tasks(tmp_path, kind="text", **rules)
    for output, kept in (
        ("thank you, it is sent", (True, True, True)),
        ("Thank you, it is being sent", (False, True, True)),
        ("Thanks, it is sent", (True, False, True)),
        ("Thank you for THE REFUND", (True, True, False)),
        ("Thank you for the refunds", (True, True, True)),
    ):
        score = score_row(generation(output, completion="Thank you."), tasks)
        assert tuple(score.rules.values()) == kept, output
        assert score.valid == all(kept)
    assert not score_row(generation("", completion="x"), make_tasks(tmp_path, kind="text")).valid


def test_a_tag_has_a_contract_of_its_own(tmp_path: Path) -> None:
    schema = {
        **SCHEMA,
        "$defs": {"size": {"type": "integer", "maximum": 9}, "box": {"items": {"$ref": "#/$defs/size"}}},
    }
    tags = {
        "boxes": {"schema_at": "#/$defs/box"},
        "tone": {"kind": "classification", "labels": ["kind", "rude"]},
    }
    tasks = make_tasks(tmp_path, schema, tags=tags)
    assert score_row(generation("[1, 2]", task="boxes"), tasks).valid
    assert not score_row(generation("[1, 20]", task="boxes"), tasks).valid
    assert score_row(generation("rude", task="tone"), tasks).valid
    assert score_row(generation(REFERENCE), tasks).valid
    assert score_row(generation(REFERENCE, task="of no tag's name"), tasks).valid
    with pytest.raises(UserError, match="no schema at #/\\$defs/lid"):
        make_tasks(tmp_path, schema, schema_at="#/$defs/lid")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"kind": "classification"}, "a classification task must name its labels"),
        ({"tags": {"a": {"lables": ["x"]}}}, "tag a: lables"),
        ({"tags": {"a": {"kind": "classification"}}}, "tag a: .*must name its labels"),
        ({"tags": {"a": {"max_words": 0}}}, "tag a: max_words"),
        ({"tags": {"a": {"instruction": "Say."}}}, "tag a: its instruction belongs to instructions"),
    ],
)
def test_a_contract_that_says_nothing_is_refused(tmp_path: Path, task: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_tasks(tmp_path, **task)
