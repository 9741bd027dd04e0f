"""The record: its id, its canonical form, and the files that hold it."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.records.record import (
    Dropped,
    Message,
    Record,
    canonical,
    make_record,
    read_dropped,
    read_records,
    read_rows,
    record_id,
    record_line,
    record_row,
    row_line,
    write_dropped,
    write_records,
)

TEXT = st.text()
CONTEXT = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), TEXT), max_size=3)
RECORD = st.builds(
    make_record,
    TEXT,
    TEXT,
    st.none() | TEXT,
    TEXT,
    TEXT,
    task=st.none() | TEXT,
    context=CONTEXT,
    fields=st.dictionaries(TEXT, TEXT, max_size=2),
)


@given(st.lists(RECORD, max_size=5))
def test_records_survive_the_file(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> None:
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    write_records(path, records)
    assert read_records(path) == records
    assert path.read_bytes().count(b"\n") == max(len(records), 1)  # DVC warns of an empty file


@given(RECORD)
def test_the_quick_line_of_a_record_is_that_of_its_row(record: Record) -> None:
    assert record_line(record) == row_line(record_row(record))


@given(st.lists(RECORD, max_size=3))
def test_records_survive_the_file_of_rejected_rows(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record]
) -> None:
    path = tmp_path_factory.mktemp("records") / "rejected.jsonl"
    write_dropped(path, [Dropped("near", "detail", record.id, 99.5, record) for record in records])
    assert sorted((row.record for row in read_dropped(path)), key=repr) == sorted(records, key=repr)


def test_a_row_holds_what_its_record_has_and_no_empty_places(tmp_path: Path) -> None:
    plain = make_record("a", "b", None, "s", "o")
    rich = make_record("a", "b", "x", "s", "o", task="t", context=[Message("system", "c")], fields={"region": "eu"})
    write_records(tmp_path / "records.jsonl", [plain, rich])
    first, second = read_rows(tmp_path / "records.jsonl")
    assert list(first) == ["id", "prompt", "completion", "label", "source", "origin"]
    assert list(second) == [*first, "task", "context", "fields"]
    assert second["context"] == [{"role": "system", "content": "c"}]
    assert len({plain, rich, *read_records(tmp_path / "records.jsonl")}) == 2


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


@given(TEXT, TEXT, CONTEXT, CONTEXT)
def test_the_context_is_part_of_the_id_where_there_is_one(
    prompt: str, completion: str, one: list[Message], other: list[Message]
) -> None:
    forms = [[(message.role, canonical(message.content)) for message in context] for context in (one, other)]
    assert (record_id(prompt, completion, one) == record_id(prompt, completion, other)) == (forms[0] == forms[1])
    assert record_id(prompt, completion, []) == record_id(prompt, completion)


def test_what_is_no_content_is_no_part_of_the_id() -> None:
    plain = make_record("a", "b", None, "s", "o")
    assert make_record("a", "b", "label", "t", "p", fields={"region": "eu"}).id == plain.id


def test_the_same_pair_for_two_tasks_is_two_records() -> None:
    ids = {make_record("a", "b", None, "s", "o", task=task).id for task in (None, "one", "other", "")}
    assert len(ids) == 4


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
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object"),
        ('{"prompt": "a"}', "not a record"),
        ('{"context": [{"role": "user"}]}', "not a record"),
        ('{"context": 1}', "not a record"),
        ("", "not JSON"),
    ],
)
def test_a_strange_line_is_named(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "rows.jsonl"
    write_records(path, [make_record("a", "b", None, "s", "o")])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=f"line 2: {what}"):
        read_records(path)
