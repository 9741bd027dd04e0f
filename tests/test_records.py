"""The record: its id, its canonical form, and the files that hold it."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import UserError
from stages.records import Record, canonical, make_record, read_records, record_id, write_records

TEXT = st.text()
RECORD = st.builds(make_record, TEXT, TEXT, st.none() | TEXT, TEXT, TEXT)


@given(st.lists(RECORD, max_size=5))
def test_records_survive_the_file(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> None:
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    assert write_records(path, records) == len(records)
    assert read_records(path) == records
    assert path.read_bytes().count(b"\n") == len(records)


@given(TEXT, TEXT)
def test_the_id_stays_under_normal_forms_and_line_ends(prompt: str, completion: str) -> None:
    expected = record_id(prompt, completion)
    assert record_id(unicodedata.normalize("NFD", prompt), unicodedata.normalize("NFC", completion)) == expected
    for ending in ("\r\n", "\r"):
        plain = canonical(prompt)
        assert record_id(plain.replace("\n", ending), completion) == expected


@given(TEXT, TEXT)
def test_canonical_form_is_its_own_canonical_form(prompt: str, completion: str) -> None:
    assert canonical(canonical(prompt)) == canonical(prompt)
    record = make_record(prompt, completion, None, "s", "o")
    assert make_record(record.prompt, record.completion, None, "s", "o") == record


@given(TEXT, TEXT, TEXT)
def test_the_border_between_prompt_and_completion_counts(left: str, middle: str, right: str) -> None:
    one, other = (left + middle, right), (left, middle + right)
    same = tuple(map(canonical, one)) == tuple(map(canonical, other))
    assert (record_id(*one) == record_id(*other)) == same


def test_texts_that_could_forge_the_border_do_not() -> None:
    assert record_id('a", "b', "c") != record_id("a", 'b", "c')
    assert record_id("a", "") != record_id("", "a")
    assert record_id("ab", "c") != record_id("a", "bc")


def test_the_id_is_a_published_digest() -> None:
    # printf '["a", "b"]' | sha256sum: the id can be computed without this project.
    assert record_id("Cafe\u0301\r\n", "{}") == record_id("Café\n", "{}")
    assert record_id("a", "b") == "3554d2b8a1e34099053865de8576d1460b807430ec8c6b85315c9607ba93d308"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clean\.jsonl is missing; run `dvc repro`"):
        read_records(tmp_path / "clean.jsonl")


@pytest.mark.parametrize(
    ("line", "what"),
    [("{", "not JSON"), ("[1]", "expected a JSON object"), ('{"prompt": "a"}', "not a record"), ("", "not JSON")],
)
def test_a_strange_line_is_named(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "rows.jsonl"
    write_records(path, [make_record("a", "b", None, "s", "o")])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=f"line 2: {what}"):
        read_records(path)
