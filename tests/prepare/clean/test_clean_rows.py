"""What becomes of one raw line: a record, or a reason."""

import json
import unicodedata
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from clean_project import ROOT, row
from hypothesis import example, given
from hypothesis import strategies as st

from stages.core.yaml_reader import load_yaml
from stages.params.prepare import Clean
from stages.params.task import Task
from stages.prepare.clean import cleaning
from stages.prepare.clean.cleaning import Kept, Rules, clean_row
from stages.prepare.clean.rejected_rows import Rejected
from stages.prepare.clean.sources import RawFile
from stages.prepare.clean.text_files import jsonl_row, read_lines
from stages.records.record import record_id

ROLES = ("user", "assistant")
SCHEMA = {"type": "object", "properties": {"urgent": {"type": "boolean"}, "order": {"pattern": "^[A-Z]-[0-9]{4}$"}}}


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return path


def outcome(
    content: bytes, schema: Path, number: int = 2, task: dict[str, Any] | None = None, **changes: Any
) -> Kept | Rejected:
    """What becomes of a line of JSONL, by default the second, where clean and task have these changes."""
    params = load_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))
    of_task = Task(**{**params["task"], "schema_file": str(schema), **(task or {})})
    rules = Rules.of(Clean(**{**params["clean"], **changes}), of_task)
    stream = BytesIO(b"\n" * (number - 1) + content + b"\n")
    *_, line = read_lines(stream, rules.params.max_line_bytes)
    return clean_row(
        jsonl_row("raw.jsonl", line), RawFile(Path("raw.jsonl"), "raw.jsonl", "jsonl", "raw.jsonl", "auto"), rules
    )


def kept(content: bytes, schema: Path, **changes: Any) -> Kept:
    result = outcome(content, schema, **changes)
    assert isinstance(result, Kept), result
    return result


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b"", "blank_line", "nothing"),
        (row(source="augment:replay"), "reserved_source", "rename it"),
        (b" \t\r", "blank_line", "nothing"),
        (b"x" * 1_000_007, "line_too_long", "1000007 bytes"),
        (b'{"prompt": "caf\xe9"}', "not_utf8", "byte 0xe9 at position 15"),
        (row()[:-5], "not_json", "Unterminated string"),
        (row() + b"\x00", "not_json", "Extra data"),
        (b'{"prompt": "a\x00b", "completion": "{}"}', "not_json", "control character"),
        (b'{"prompt": "a", "prompt": "b", "completion": "{}"}', "not_json", "'prompt' occurs more than once"),
        (b'{"prompt": NaN, "completion": "{}"}', "not_json", "NaN"),
        (b'{"prompt": "\\ud800", "completion": "{}"}', "not_json", "unpaired surrogate"),
        (b"[" * 100_000, "not_json", "nested too deeply"),
        (b"\xef\xbb\xbf" + row(), "not_json", "BOM"),  # a byte order mark is welcome in line 1 alone
        (b"[1]", "not_an_object", "found an array"),
        (b"null", "not_an_object", "found null"),
        (b'"text"', "not_an_object", "found a string"),
        (b"{}", "missing_field", "'prompt' is missing; the row has nothing"),
        (b'{"prompt": "hello"}', "missing_field", "'completion' is missing; the row has 'prompt'"),
        (b'{"prompt": null, "completion": "{}"}', "wrong_type", "'prompt' must be a string, found null"),
        (b'{"prompt": "hello", "completion": {}}', "wrong_type", "write the JSON into a string"),
        (row(label=7.5), "wrong_type", "'label' must be a string, found a number"),
        (row(source=True), "wrong_type", "'source' must be a string, found a boolean"),
        (b'{"Prompt": "hello", "completion": "{}"}', "unknown_column", "did you mean 'prompt'?"),
        (row(completions="x"), "unknown_column", "did you mean 'completion'?"),
        (row(origin=[]), "unknown_column", "known are prompt, completion, context, label, source, task, id, annotator"),
        (row(""), "prompt_too_short", "0 characters"),
        (row(" \u200b "), "prompt_too_short", "0 characters"),
        (row("a" * 2001), "prompt_too_long", "2001 characters; clean.max_prompt_characters is 2000"),
        (row("<b>" * 9000), "prompt_too_long", "27000 raw characters"),
        (row(completion=" "), "empty_completion", "no text"),
        (row(completion={"a": "b" * 1000}), "completion_too_long", "1009 characters"),
        (row(completion="[" + " " * 5000 + "]"), "completion_too_long", "5002 raw characters"),
        (row(completion="{'a': 1}"), "completion_not_json", "double quotes"),
        (row(completion='{"a": 1, "a": 2}'), "completion_not_json", "more than once"),
        (row(completion='{"a": Infinity}'), "completion_not_json", "Infinity is not JSON"),
        (row(completion="[" * 1900 + "]" * 1900), "completion_not_json", "nested too deeply"),
        (row(completion="[]"), "breaks_schema", "[] is not of type 'object'"),
        (row(completion={"urgent": "yes"}), "breaks_schema", "urgent: 'yes' is not of type 'boolean'"),
        (row(completion={"order": "a@example.com"}), "breaks_schema", "order: '[EMAIL]' does not match"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_record_is_rejected_with_its_reason(
    content: bytes, reason: str, detail: str, schema: Path
) -> None:
    result = outcome(content, schema)
    assert isinstance(result, Rejected)
    assert result.reason == reason
    assert detail.lower() in result.detail.lower()


def test_a_byte_order_mark_may_open_the_file(schema: Path) -> None:
    assert isinstance(outcome(b"\xef\xbb\xbf" + row(), schema, number=1), Kept)


def test_a_carriage_return_before_the_line_feed_is_no_part_of_the_row(schema: Path) -> None:
    assert kept(row() + b"\r", schema).record == kept(row(), schema).record


def test_the_record_knows_where_it_came_from(schema: Path) -> None:
    record = kept(row("Hello there", {"b": 1, "a": 2}, label="x"), schema).record
    assert (record.prompt, record.completion, record.label) == ("Hello there", '{"b": 1, "a": 2}', "x")
    assert (record.source, record.origin) == ("raw.jsonl", "raw.jsonl:2")
    assert record.id == record_id(record.prompt, record.completion)


def test_source_is_kept_and_a_given_id_is_not_believed(schema: Path) -> None:
    record = kept(row(source="mail", id=12, label=None), schema).record
    assert (record.source, record.label) == ("mail", None)
    assert record.id == record_id(record.prompt, record.completion)


def test_named_columns_are_left_out(schema: Path) -> None:
    for ignored in (["priority", "lang"], ["*"]):
        result = kept(row(priority=1, lang="en"), schema, ignore_columns=ignored)
        assert (result.left_out, result.record.fields) == (("priority", "lang"), {})


def test_who_wrote_an_answer_is_kept_and_where_it_came_from_stays_in_the_raw_row(schema: Path) -> None:
    found = kept(row(annotator="anna", provenance={"log": "monday.jsonl:7", "kept_because": ["cut off"]}), schema)
    assert found.record.fields == {"annotator": "anna"}
    assert found.record.id == kept(row(), schema).record.id


def test_kept_columns_go_with_the_record_clean_and_as_text(schema: Path) -> None:
    columns: dict[str, Any] = {
        "region": "<b>EU</b>",
        "priority": 2,
        "vip": True,
        "tags": ["a"],
        "mail": "a@example.com",
        "empty": "",
    }
    record = kept(row(**columns), schema, keep_columns=[*columns, "absent"]).record
    assert record.fields == {"region": "EU", "priority": "2", "vip": "true", "tags": '["a"]', "mail": "[EMAIL]"}
    assert record.id == kept(row(), schema).record.id


def test_a_number_of_a_kept_column_keeps_its_digits(schema: Path) -> None:
    line = row()[:-1] + b', "release": 1.10, "amount": 12345678901234567890.25, "all": [{"of": 1.10}]}'
    record = kept(line, schema, keep_columns=["release", "amount", "all"]).record
    assert record.fields == {"release": "1.10", "amount": "12345678901234567890.25", "all": '[{"of": 1.10}]'}


def test_a_contract_is_held_against_what_the_record_has(schema: Path) -> None:
    """NFC makes one key of two spellings, and a label as the task writes it of another."""
    for twice in ('{"\u00e9": 1, "e\u0301": 2}', '{"\\u00e9": 1, "e\\u0301": 2}'):
        result = outcome(row(completion=twice), schema)
        assert isinstance(result, Rejected)
        assert result.reason == "breaks_schema"
    labels = {"kind": "classification", "labels": ["caf\u00e9"]}
    assert kept(row(completion="cafe\u0301"), schema, task=labels).record.completion == "caf\u00e9"


def test_a_numbered_class_is_a_label(schema: Path) -> None:
    assert kept(row(label=7), schema).record == kept(row(label="7"), schema).record


@pytest.mark.parametrize("spacing", ['{"a":1,"b":"é"}', ' {\n"a" : 1, "b": "\\u00e9"} '])
def test_every_completion_has_one_form(spacing: str, schema: Path) -> None:
    result = kept(row(completion=spacing), schema)
    assert result.record.completion == '{"a": 1, "b": "é"}'
    assert set(result.changed) == {"completion_form"}


def test_operators_reach_the_strings_of_a_completion_but_not_its_keys(schema: Path) -> None:
    completion = {"<b>k</b>": ["<b>x</b>", {"mail": "a@example.com"}], "n": 1.5}
    prompt = "<p>Write to a@example.com</p>"
    result = kept(row(prompt, completion), schema, clean_completions=["html"])
    assert json.loads(result.record.completion) == {"<b>k</b>": ["x", {"mail": "[EMAIL]"}], "n": 1.5}
    assert result.record.prompt == prompt.replace("a@example.com", "[EMAIL]")  # tags are what the answer is about
    assert set(result.changed) == {"html", "personal_data"}
    assert any(change.column == "completion" for change in result.changed.values())
    assert +result.personal_data == {"email": 2}


@pytest.mark.parametrize(
    ("switch", "prompt"),
    [
        ("fix_mojibake", "CafÃ©"),
        ("strip_html", "<b>bold</b>"),
        ("normalise_whitespace", "a\u00a0space"),
        ("mask_personal_data", "a@example.com"),
    ],
)
def test_a_switch_turns_its_operator_off_and_no_other(switch: str, prompt: str, schema: Path) -> None:
    on = {"fix_mojibake": True, "strip_html": True, "normalise_whitespace": True, "mask_personal_data": ["email"]}
    off = {"fix_mojibake": False, "strip_html": False, "normalise_whitespace": False, "mask_personal_data": []}
    assert kept(row(prompt), schema).record.prompt != prompt
    assert kept(row(prompt), schema, **{**on, switch: off[switch]}).record.prompt == prompt
    assert kept(row(prompt), schema, **{**off, switch: on[switch]}).record == kept(row(prompt), schema).record


def test_a_text_that_never_rests_is_rejected(schema: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "chosen_operators", lambda params, mask: {"grow": lambda text: text + "x"})
    result = outcome(row(), schema)
    assert isinstance(result, Rejected)
    assert result.reason == "unsettled"


def test_no_depth_of_nesting_ends_the_run(schema: Path) -> None:
    reasons = set()
    for depth in range(100, 1500, 50):
        completion = '{"":' * depth + "1" + "}" * depth
        result = outcome(row(completion=completion), schema, max_completion_characters=10**5)
        reasons.add("kept" if isinstance(result, Kept) else result.detail)
    assert reasons == {"kept", "nested too deeply"}


def test_no_depth_of_a_kept_column_ends_the_run(schema: Path) -> None:
    reasons = set()
    for depth in (5, 90, *range(800, 1000, 40)):
        raw = row()[:-1] + b', "deep": ' + b"[" * depth + b"]" * depth + b"}"
        result = outcome(raw, schema, keep_columns=["deep"])
        reasons.add("kept" if isinstance(result, Kept) else result.detail)
    assert reasons == {"kept", "nested too deeply"}


NUMBER = st.from_regex(r"-?(0|[1-9][0-9]{0,30})([.][0-9]{1,30})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)


@given(
    numbers=st.lists(NUMBER, min_size=1, max_size=4),
    keys=st.lists(st.text("zyxab<>& \u00e9\u200d", min_size=1, max_size=5), min_size=4, max_size=4, unique=True),
    texts=st.lists(st.text('aé <b>/\\"\n\t\u00a0\u200b&lt;', max_size=8), min_size=4, max_size=4),
    check=st.booleans(),
)
def test_json_is_what_its_author_wrote(
    numbers: list[str], keys: list[str], texts: list[str], check: bool, schema: Path
) -> None:
    pairs = [(key, f"[{number}, {json.dumps(text)}]") for key, number, text in zip(keys, numbers, texts, strict=False)]
    written = "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in pairs) + "}"
    result = outcome(row(completion=written), schema, check_contract=check, mask_personal_data=[])
    if isinstance(result, Rejected):
        assert "too large a number" in result.detail
        return
    found = json.JSONDecoder(object_pairs_hook=list, parse_float=str, parse_int=str).decode(result.record.completion)
    canonical = unicodedata.normalize
    assert found == [
        (key, [number, canonical("NFC", text)]) for (key, _), number, text in zip(pairs, numbers, texts, strict=False)
    ]


CARD, PHONE = "4111111111111111", "2025550143"


@pytest.mark.parametrize(
    ("completion", "cleaned"),
    [
        ({"card": int(CARD)}, {"card": "[CARD]"}),
        ({"deep": [{"n": int(PHONE)}]}, {"deep": [{"n": "[PHONE]"}]}),
        ('{"n": 4.111111111111111e15}', {"n": "[CARD]"}),
        ('{"n": 4111111111111111.0, "m": -2025550143}', {"n": "[CARD]", "m": "[PHONE]"}),
        ({"jane@example.com": 1}, {"[EMAIL]": 1}),
        ({"a@example.com": 1, "b@example.com": 2}, "personal_data"),
        ({"urgent": int(PHONE)}, "personal_data"),
        ({"order": int(CARD)}, "personal_data"),
        (
            {"n": 12.5, "order": "K-4821", "year": 2024, "ms": 1726531200000},
            {"n": 12.5, "order": "K-4821", "year": 2024, "ms": 1726531200000},
        ),
    ],
)
def test_personal_data_in_numbers_and_keys_are_masked_or_reject_the_row(
    completion: Any, cleaned: Any, schema: Path
) -> None:
    result = outcome(row(completion=completion), schema)
    if isinstance(result, Rejected):
        assert (result.reason, cleaned) == ("personal_data", "personal_data")
        assert CARD not in result.detail
        assert PHONE not in result.detail
    else:
        assert json.loads(result.record.completion) == cleaned


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("call +1 202-555-0143", '{"phone": 12025550143}'),
        ("call +44 20 7946 0958 now", '{"phone": "020 7946 0958"}'),
        ("my card 4111 1111 1111 1111", '{"card": ["4111-1111-1111-1111-9"]}'),
        ("my card 4111 1111 1111 1111", '{"last": "1111 1111 1111"}'),
        ("mail jane@example.com", '{"file": "jane@example.com(1)"}'),
        ("host 192.0.2.44", '{"host": "version 192.0.2.44"}'),
        ("host 192.168.12.77", '{"host": [192, 168, 12, 77]}'),
        ("my card 4111 1111 1111 1111", '{"first": 41111111, "second": "1111", "third": [1111]}'),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_an_answer_never_has_a_value_that_is_masked_in_its_prompt(
    prompt: str, completion: str, check: bool, schema: Path
) -> None:
    result = outcome(row(prompt, completion), schema, check_contract=check)
    digits = "".join(filter(str.isdigit, prompt))[-7:]
    if isinstance(result, Rejected):
        assert result.reason == "personal_data"
    else:
        assert digits not in "".join(filter(str.isdigit, result.record.completion))
        assert "[" in result.record.completion


def test_what_a_reason_quotes_of_a_row_is_masked(schema: Path) -> None:
    secret = "gh" + "p_" + "a1B2" * 9
    column: dict[str, Any] = {secret: 1}
    for raw in (
        row(**column),
        row(completion={"urgent": secret}),
        row(completion={"order": "x", secret: {}, "urgent": int(CARD)}),
        row(completion="{" + secret),
        json.dumps({"messages": [{"role": secret, "content": "x"}]}).encode(),
        json.dumps({"messages": [{"role": "user", "content": "x", secret: 1}]}).encode(),
        b'{"' + secret.encode() + b'": 1, "' + secret.encode() + b'": 2}',
        row(label="x" * 600 + secret),
    ):
        result = outcome(raw, schema, mask_personal_data=[])
        assert isinstance(result, Rejected)
        assert secret not in result.detail
    assert kept(row(**column), schema, ignore_columns=["*"]).left_out == ("[SECRET]",)


def test_names_and_columns_have_a_length_before_any_operator_looks_at_them(schema: Path) -> None:
    hostile = "-----BEGIN " + "PRIVATE KEY-----"
    for column in ("label", "source", "task", "kept"):
        result = outcome(row(**{column: hostile * 7000}), schema, keep_columns=["kept"])
        assert isinstance(result, Rejected)
        assert (result.reason, repr(column) in result.detail) == ("column_too_long", True)


PIECES = ["<b>", "</b>", "&lt;", "Ã©", "\u200b", "a@b.co", " ", "\r\n", "`", "x"]
TEXT = st.text() | st.lists(st.sampled_from(PIECES)).map("".join)
VALUE = TEXT | st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
NAME = st.none() | TEXT


@given(prompt=TEXT, value=st.dictionaries(st.text(), VALUE, max_size=3), label=NAME, source=NAME)
def test_a_clean_record_is_clean(
    prompt: str, value: dict[str, Any], label: str | None, source: str | None, schema: Path
) -> None:
    raw = json.dumps({"prompt": prompt, "completion": json.dumps(value), "label": label, "source": source})
    first = outcome(raw.encode(), schema)
    if isinstance(first, Kept):
        record = first.record
        again = row(record.prompt, record.completion, label=record.label, source=record.source, id=record.id)
        second = kept(again, schema)
        assert second.record == record
        assert second.changed == {}


TURNS = st.lists(st.tuples(TEXT, TEXT), max_size=2)
ANSWER = TEXT | st.dictionaries(st.text(), VALUE, max_size=2).map(json.dumps) | st.just('<b>{"a":1}</b>')


@given(system=TEXT, turns=TURNS, prompt=TEXT, completion=ANSWER, answer=ANSWER)
@example(system="", turns=[], prompt="json", completion='<b>{"a":1}</b>', answer="x")
def test_a_clean_conversation_is_clean(
    system: str, turns: list[tuple[str, str]], prompt: str, completion: str, answer: str, schema: Path
) -> None:
    talk = [("system", system), *((role, text) for pair in turns for role, text in zip(ROLES, pair, strict=True))]
    talk += [("user", "And?"), ("assistant", answer), ("user", prompt), ("assistant", completion)]
    raw = json.dumps({"messages": [{"role": role, "content": text} for role, text in talk]})
    first = outcome(raw.encode(), schema, check_contract=False)
    if isinstance(first, Kept):
        record = first.record
        context = [{"role": message.role, "content": message.content} for message in record.context]
        second = kept(row(record.prompt, record.completion, context=context), schema, check_contract=False)
        assert second.record == record
        assert second.changed == {}


def test_answers_in_words_are_cleaned_as_text_and_json_among_them_as_json(schema: Path) -> None:
    answers = [
        ("<b>Yes, a@example.com</b> ", "<b>Yes, [EMAIL]</b> ", "Yes, [EMAIL]"),
        ('{"a":"<b>x</b>","b":1}', '{"a":"<b>x</b>","b":1}', '{"a":"x","b":1}'),
        ("[1] is it", "[1] is it", "[1] is it"),
    ]
    every = ["mojibake", "html", "whitespace"]
    for raw, alone, clean in answers:
        assert kept(row(completion=raw), schema, check_contract=False).record.completion == alone
        found = kept(row(completion=raw), schema, check_contract=False, clean_completions=every)
        assert found.record.completion == clean
    empty = outcome(row(completion="<br>"), schema, check_contract=False, clean_completions=every)
    assert isinstance(empty, Rejected)
    assert empty.reason == "empty_completion"


def test_every_row_keeps_the_contract_of_its_own_task(schema: Path) -> None:
    tags = {"topic": {"kind": "classification", "labels": ["news", "sport"]}, "chat": {"kind": "text"}}
    expected = {
        ("topic", "sport"): "kept",
        ("topic", "cooking"): "not_a_label",
        ("topic", "{}"): "not_a_label",
        ("chat", "Hello <b>you</b>"): "kept",
        (None, "Hello"): "completion_not_json",
        ("other", '{"urgent": 1}'): "breaks_schema",
    }
    for (tag, completion), reason in expected.items():
        result = outcome(row(completion=completion, task=tag), schema, task={"tags": tags})
        assert (result.reason if isinstance(result, Rejected) else "kept") == reason
        assert isinstance(result, Rejected) or result.record.task == tag


def test_the_limit_of_a_prompt_is_that_of_all_that_the_model_reads(schema: Path) -> None:
    system = {"role": "system", "content": "s" * 900}
    talk = [system, {"role": "user", "content": "u" * 1090}, {"role": "assistant", "content": '{"intent": "x"}'}]
    record = kept(json.dumps({"messages": talk}).encode(), schema, max_repetition=None).record
    assert record.context[0].content == "s" * 900
    system["content"] += "s" * 11
    long = outcome(json.dumps({"messages": talk}).encode(), schema)
    assert isinstance(long, Rejected)
    assert (long.reason, long.detail[:45]) == ("prompt_too_long", "2001 characters with all that comes before it")


def test_a_turn_that_says_nothing_is_no_turn(schema: Path) -> None:
    talk = [("user", "<br>"), ("assistant", "Yes?"), ("user", "Where is it?"), ("assistant", "{}")]
    raw = json.dumps({"messages": [{"role": role, "content": text} for role, text in talk]})
    empty = outcome(raw.encode(), schema)
    assert isinstance(empty, Rejected)
    assert empty.reason == "empty_turn"
