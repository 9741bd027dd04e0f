"""Strict JSON and the task's schema."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.text.json_schema import Schema
from stages.text.strict_json import BrokenContract, completion_key, parse_json, written

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
SCHEMA = {"type": "object", "properties": {"order": {"type": "string"}}, "required": ["order"]}


@given(JSON, st.booleans())
def test_what_json_writes_is_read_back(value: object, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only)) == value


@given(st.text() | st.text(alphabet='{}[]",:0123456789eE+-. \n\\tfalsn'))
def test_every_text_is_a_value_that_can_be_written_or_a_broken_contract(text: str) -> None:
    try:
        value = parse_json(text)
    except BrokenContract:
        return
    assert parse_json(json.dumps(value, allow_nan=False)) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("{'a': 1}", "property name"),
        ('{"a": 1,}', "."),
        ('{"a": 1} trailing', "Extra data"),
        ('```json\n{"a": 1}\n```', "Expecting value"),
        ("NaN", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("1e999", "too large"),
        ("-1e999", "too large"),
        ("1e-999", "too small"),
        ("-0.1e-400", "too small"),
        ('{"a": 1, "a": 1}', "'a' occurs more than once"),
        ('{"x": {"a": 1, "b": 2, "a": 3}}', "'a' occurs more than once"),
        (r'"\ud83d"', "unpaired surrogate"),
        (r'{"\udc00": 1}', "unpaired surrogate"),
        ('"a\nb"', "control character"),
        ("1" * 5000, "digits"),
        ("\ufeff{}", "."),
        ("0123", "."),
        ("0e99999999999999999999", "too long an exponent"),
    ],
)
def test_what_is_no_json_is_refused(text: str, why: str) -> None:
    with pytest.raises(BrokenContract, match=f"(?i){why}"):
        parse_json(text)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**40), max_value=10**40, places=9))
def test_a_number_is_a_float_and_what_its_author_wrote(number: Decimal) -> None:
    (read,) = parse_json(f"[{number:f}]")
    assert (read, read.exact) == (float(number), number)
    assert parse_json("[0.0, -0.0, 0e-999]") == [0, 0, 0]


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("frames", [0, 700])
def test_a_text_is_nested_too_deeply_by_itself_and_not_by_who_reads_it(opening: str, closing: str, frames: int) -> None:
    def outcome(depth: int, frames: int) -> str:
        if frames:
            return outcome(depth, frames - 1)
        try:
            parse_json(opening * depth + "1" + closing * depth)
        except BrokenContract as error:
            return str(error)
        return "read"

    assert {outcome(depth, frames) for depth in (1, 50, 99, 100)} == {"read"}
    assert {outcome(depth, frames) for depth in (101, 500, 900, 1000, 100_000)} == {"nested too deeply"}
    assert len(parse_json(json.dumps([{"[{": "]"}] * 1000 + ["[" * 1000]))) == 1001


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert parse_json(r'"\ud83c\udf55"') == "🍕"


def test_problem_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    schema = Schema(path)
    assert schema.problem({"order": "K-4821"}) is None
    assert schema.problem({"order": 4821}) == "order: 4821 is not of type 'string'"
    assert schema.problem({}) == "'order' is a required property"
    assert schema.problem([]) == "[] is not of type 'object'"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "is missing; task.schema_file must name"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"type": "text"}', "not a JSON Schema"),
        (b'{"type": "object", "type": "object"}', "more than once"),
    ],
)
def test_a_bad_schema_file_is_a_sentence(tmp_path: Path, content: bytes | None, what: str) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=what) as caught:
        Schema(path)
    assert str(path) in str(caught.value)


@given(JSON)
def test_what_is_written_is_what_json_dumps_writes(value: object) -> None:
    assert written(value) == json.dumps(value, ensure_ascii=False)


LONG = st.decimals(allow_nan=False, allow_infinity=False, min_value=0, max_value=10**20, places=3)


@given(LONG, st.integers(1, 9), st.sampled_from(["%s", "[%s]", '{"b": [%s], "a": 0.5}']))
def test_answers_are_equal_if_their_numbers_are(number: Decimal, step: int, around: str) -> None:
    text, other = (around % f"{one:f}" for one in (number, number + Decimal(step) / 1000))
    value = parse_json(text)
    assert completion_key(text) != completion_key(other)
    assert json.loads(completion_key(text)) == value
    assert parse_json(written(value)) == value
    assert f"{number:f}" in written(value) or "E" in written(value)


def test_how_a_number_is_written_makes_no_other_answer() -> None:
    same = ['{"a": 1.5, "b": 2}', '{"b": 2, "a": 1.50000000000000000000}', '{"b":2,"a":15e-1}']
    assert {completion_key(text) for text in same} == {'{"a":1.5,"b":2}'}
