"""JSON Schema as its drafts say: the official suite, drafts by name, references, numbers by their digits, patterns."""

import json
import re
import socket
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.text.json_schema import Schema
from stages.text.strict_json import parse_json

ROOT = Path(__file__).parents[2]
SUITE = ROOT.parent / "shared/data/json-schema-suite/tests"
DRAFTS = {
    "draft3": "http://json-schema.org/draft-03/schema#",
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a schema was looked for on a network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("schemas")


def read(folder: Path, schema: Any, pointer: str = "#") -> Schema:
    path = folder / "schema.json"
    path.write_text(schema if isinstance(schema, str) else json.dumps(schema), encoding="utf-8")
    return Schema(path, pointer)


def fits(schema: Schema, text: str) -> bool:
    return schema.problem(parse_json(text)) is None


@pytest.mark.parametrize("draft", DRAFTS)
def test_the_official_suite_passes_for_what_is_accepted(draft: str, folder: Path) -> None:
    """What leads out of its file, has a vocabulary of its own or a pattern that Python lacks is refused."""
    files = sorted((SUITE / draft).glob("*.json"))
    if not files:
        pytest.skip(f"JSON-Schema-Test-Suite is not at {SUITE / draft}")
    wrong, refused = [], []
    for file in files:
        for group in json.loads(file.read_text(encoding="utf-8")):
            schema = group["schema"]
            if isinstance(schema, dict):
                schema = {"$schema": DRAFTS[draft], **schema}
            try:
                checked = read(folder, schema)
            except UserError as error:
                refused.append(f"{file.stem}: {error}")
                continue
            for test in group["tests"]:
                if fits(checked, json.dumps(test["data"])) != test["valid"]:
                    wrong.append(f"{file.stem}: {group['description']}: {test['description']}")
    assert not wrong
    reasons = (
        "leads nowhere; nothing is fetched",
        "$schema is 'http://localhost",
        r"bad escape \p",
    )
    assert not [one for one in refused if not any(reason in one for reason in reasons)]
    assert {one.split(":")[0] for one in refused} <= {
        "refRemote", "dynamicRef", "recursiveRef", "vocabulary", "pattern", "patternProperties",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("draft", "schema", "right", "wrong"),
    [
        ("draft4", {"minimum": 3, "exclusiveMinimum": True}, "4", "3"),
        ("draft4", {"type": "integer"}, "1", "1.0"),
        ("draft6", {"type": "integer"}, "1.0", "1.5"),
        ("draft7", {"items": [{"type": "string"}, {"type": "integer"}]}, '["a", 1]', '["a", "b"]'),
        ("draft7", {"definitions": {"a": {"const": 1}}, "$ref": "#/definitions/a", "not": True}, "1", "2"),
        ("draft2019-09", {"$defs": {"a": {"const": 1}}, "$ref": "#/$defs/a", "not": {"const": 2}}, "1", "2"),
        ("draft2020-12", {"prefixItems": [{"type": "string"}], "items": False}, '["a"]', '["a", 1]'),
        ("draft7", {"format": "date"}, '"2024-02-29"', '"2023-02-29"'),
        ("draft4", {"format": "ipv4"}, '"127.0.0.1"', '"127.0.0.256"'),
    ],
)
def test_the_draft_is_that_of_the_schema(draft: str, schema: Any, right: str, wrong: str, folder: Path) -> None:
    checked = read(folder, {"$schema": DRAFTS[draft], **schema})
    assert fits(checked, right)
    assert not fits(checked, wrong)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("date-time", ["2024-02-29T23:59:60Z", "1990-12-31t15:59:59.5-08:00"], ["2023-02-29T00:00:00Z", "2024-01-01"]),
        ("date-time", ["0001-01-01T00:00:00z"], ["2024-01-01T24:00:00Z", "2024-01-01 00:00:00Z", "2024-1-1T00:00:00Z"]),
        ("time", ["08:30:06Z", "23:59:60+00:00"], ["08:30", "24:00:00Z", "08:60:00Z", "٠8:30:06Z", "08:30:06Z\\n"]),
        ("email", ["a@example.com"], ["a"]),
        ("ipv6", ["::1"], ["12345::"]),
        ("uuid", ["2eb8aa08-aa98-11ea-b4aa-73b441d16380"], ["2eb8aa08"]),
        ("a-format-of-the-house", ["whatever"], []),
    ],
)
def test_a_format_is_asserted_where_the_draft_asserts_it(
    name: str, right: list[str], wrong: list[str], folder: Path
) -> None:
    asserted, noted = (read(folder, {"$schema": DRAFTS[draft], "format": name}) for draft in ("draft7", "draft2020-12"))
    assert [text for text in right if not fits(asserted, f'"{text}"')] == []
    assert [text for text in wrong if fits(asserted, f'"{text}"')] == []
    assert all(fits(noted, f'"{text}"') for text in wrong)
    assert fits(asserted, "7")


@pytest.mark.parametrize("draft", ["draft2019-09", "draft2020-12", None])
def test_newer_drafts_take_a_format_as_a_note(draft: str | None, folder: Path) -> None:
    schema = {"format": "date"} | ({"$schema": DRAFTS[draft]} if draft else {})
    assert fits(read(folder, schema), '"tomorrow"')


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$schema": "https://json-schema.org/draft-07/schema"}, "is none of http://json-schema.org/draft-03"),
        ({"$schema": 7}, "is 7, which is none of"),
        ({"$schema": ["x"]}, "which is none of"),
        ({"$ref": "#/$defs/lid"}, "#/$defs/lid leads nowhere"),
        ({"$ref": "#lid"}, "#lid leads nowhere"),
        ({"$ref": "other.json"}, "other.json leads nowhere"),
        ({"$ref": "file:///etc/passwd"}, "leads nowhere"),
        ({"properties": {"a": {"items": {"$ref": "https://example.com/a.json#/b"}}}}, "put what is meant into $defs"),
        ({"$id": "https://example.com/a/", "anyOf": [True, {"$ref": "b"}]}, "$ref b leads nowhere"),
        ({"$ref": "#/other", "other": {"$ref": "#/more", "more": 1}, "more": {"$ref": "#/none"}}, "#/none leads"),
        ({"properties": {"a": {"$dynamicRef": "#none"}}}, "$dynamicRef #none leads nowhere"),
        ({"$ref": "#/title", "title": "a text"}, "not a JSON Schema: #/title"),
        ({"$ref": "#/x", "x": {"type": "text"}}, "not a JSON Schema: #/x"),
        ({"$ref": "#"}, "leads back to itself"),
        ({"properties": {"a": {"anyOf": [{"type": "null"}, {"$ref": "#/properties/a"}]}}}, "leads back to itself"),
        ({"$defs": {"a": {"not": {"$ref": "#/$defs/b"}}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "back to itself"),
        ({"$defs": {"a": {"$id": "a", "$schema": DRAFTS["draft7"]}}}, "use one draft throughout"),
        ({"properties": {"a": {"pattern": "(a"}}}, "the pattern (a is none that Python has"),
        ({"patternProperties": {"\\p{L}": True}}, "is none that Python has"),
        ([], "not a JSON Schema"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"not": ' * 300 + "{}" + "}" * 300, "nested too deeply"),
    ],
)
def test_what_cannot_be_held_against_is_a_sentence_when_it_is_read(schema: Any, words: str, folder: Path) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        read(folder, schema)


@pytest.mark.parametrize(("name", "words"), [("", "Is a directory"), ("n" * 300, "too long"), ("a\0b", "null byte")])
def test_what_is_no_file_is_a_sentence(name: str, words: str, folder: Path) -> None:
    with pytest.raises(UserError, match=words):
        Schema(folder / name)


def test_what_only_looks_like_a_reference_is_none(folder: Path) -> None:
    schema = {
        "properties": {"$ref": {"type": "string"}, "$schema": {"type": "integer"}, "pattern": {"const": "^a$"}},
        "enum": [{"$ref": "#/nowhere"}, {"$ref": "x", "$schema": 1}, {"pattern": "^a$"}],
        "default": {"$ref": 1},
        "x-note": {"$ref": "#/nowhere", "type": "nonsense"},
    }
    checked = read(folder, schema)
    assert fits(checked, '{"$ref": "#/nowhere"}')
    assert fits(checked, '{"pattern": "^a$"}')
    assert not fits(checked, '{"$ref": "x", "$schema": "1"}')


def test_a_tree_refers_to_itself_and_a_part_to_the_whole(folder: Path) -> None:
    tree = {"$defs": {"tree": {"type": "object", "properties": {"kids": {"items": {"$ref": "#/$defs/tree"}}}}}}
    checked = read(folder, {"$schema": DRAFTS["draft2020-12"], **tree}, "#/$defs/tree")
    assert fits(checked, '{"kids": [{"kids": []}]}')
    assert checked.problem({"kids": [{"kids": [1]}]}) == "kids[0].kids[0]: 1 is not of type 'object'"
    with pytest.raises(UserError, match=r"no schema at #/\$defs/lid; task.schema_at"):
        read(folder, tree, "#/$defs/lid")


@given(
    st.integers(-(10**12), 10**12),
    st.decimals(min_value="0.000001", max_value=10**6, places=6),
    st.decimals(min_value="0.0000001", max_value="0.9999999", places=7),
)
def test_a_multiple_is_one_by_its_decimal_digits(folder: Path, times: int, factor: Decimal, between: Decimal) -> None:
    checked = read(folder, f'{{"multipleOf": {factor}}}')
    assert fits(checked, f"{times * factor:f}")
    assert not fits(checked, f"{times * factor + between * factor:f}")


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ('{"multipleOf": 0.01}', ["19.99", "1.1", "0.070", "1e2", "123456789012345.67"], ["19.999", "1e-3"]),
        ('{"type": "integer"}', ["1.0", "1e2", "9007199254740993.0"], ["9007199254740993.5", "1e-1", "true", '"1"']),
        ('{"maxLength": 2.0}', ['"ab"'], ['"abc"']),
        ('{"const": 1}', ["1", "1.0", "10e-1"], ["true", "1.01", '"1"']),
        ('{"uniqueItems": true}', ["[1, true]", "[0, false]"], ["[1, 1.0]", '[{"a": 1, "b": 2}, {"b": 2, "a": 1.0}]']),
        ('{"pattern": "^a$"}', ['"a"'], ['"a\\n"', '"ab"']),
        ('{"pattern": "^\\\\d+$"}', ['"12"'], ['"١٢"']),
        ('{"pattern": "^[\\\\w.$]+$"}', ['"a_1.$"'], ['"ä"', '"a b"']),
        ('{"pattern": "^\\\\D\\\\W$"}', ['"١ä"'], ['"1a"']),
        ('{"pattern": "^(?<year>[0-9]{4})-[[]\\\\$$"}', ['"2024-[$"'], ['"2024-["', '"24-[$"']),
        ('{"pattern": "^(?<=x)|[^]\\\\Z|[]"}', ['"aZ"'], ['"a"']),
        (
            '{"patternProperties": {"^a$": {"type": "string"}}, "additionalProperties": false}',
            ['{"a": "x"}'],
            ['{"a\\n": "x"}'],
        ),
    ],
)
def test_values_are_held_against_as_the_drafts_mean_them(
    schema: str, right: list[str], wrong: list[str], folder: Path
) -> None:
    checked = read(folder, schema)
    assert {text: fits(checked, text) for text in right} == dict.fromkeys(right, True)
    assert {text: fits(checked, text) for text in wrong} == dict.fromkeys(wrong, False)
