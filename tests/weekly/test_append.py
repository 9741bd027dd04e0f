"""append: what joins the raw data, as `clean` would take it, once each, and never what is near the hold-out."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from at_once import met
from dvc.utils.serialize import dumps_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from project import ROOT

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import atomic
from stages.core.yaml_reader import load_yaml
from stages.params.loader import load_params
from stages.prepare.clean import __main__ as clean
from stages.records.record import Record, make_record, read_records, write_records, write_rows
from stages.weekly.append import append

SCHEMA = {"type": "object", "properties": {"intent": {"enum": ["refund", "invoice"]}}, "required": ["intent"]}
GOOD, OTHER, BAD = '{"intent": "refund"}', '{"intent": "invoice"}', '{"intent": "sing"}'
RAW = Path("data/raw/inbox-1.jsonl")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    prepare()
    return tmp_path


def prepare() -> None:
    values = load_yaml((ROOT / "params.yaml").read_bytes())
    values["task"] |= {"schema_file": "schema.json"}
    values["clean"] |= {"max_rejected_share": 0.0}
    Path("params.yaml").write_text(dumps_yaml(values))
    Path("schema.json").write_text(json.dumps(SCHEMA))
    write_records(paths.UNIQUE, [row("Please refund the blue kettle that I bought on Monday", 1)])
    write_records(paths.HOLDOUT, [row("Send me the invoice of order seven, it never came", 2)])


def row(prompt: str, line: int) -> Record:
    return make_record(prompt, GOOD, None, "tickets.jsonl", f"tickets.jsonl:{line}")


def answered(prompt: str, completion: str = GOOD, **more: Any) -> dict[str, Any]:
    made = {"row": "x", "prompt": prompt, "completion": completion, "answer": BAD, "source": "inbox-1"}
    return made | {"log": "monday.jsonl:7", "release": "tickets@1.0.0", "kept_because": ["cut off"]} | more


def run(*rows: dict[str, Any], file: str = "anna.jsonl") -> list[str]:
    write_rows(Path("week") / file, list(rows))
    params = load_params("clean", "dedup", "task")
    return append([Path("week") / file], params, clean.row_cleaner(params)).splitlines()


def raw() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RAW.read_text().splitlines()] if RAW.exists() else []


def test_0_and_false_are_values_and_what_is_empty_is_not_there(project: Path) -> None:
    said = run(
        answered("Where is my money today?") | {"completion": 0},
        answered("Where is my money tonight?", context=False),
        answered("Where is my money tomorrow?", context={}, label="", annotator=None, position=0, first=False, note=[]),
    )
    assert said[:2] == [
        "left out: week/anna.jsonl:1: wrong_type: 'completion' must be a string, found a number",
        "left out: week/anna.jsonl:2: wrong_type: 'context' must be a list, found a boolean",
    ]
    (only,) = raw()
    assert only.keys() == {"prompt", "completion", "source", "label", "provenance"}
    assert (only["provenance"]["position"], only["provenance"]["first"]) == (0, False)
    assert "note" not in only["provenance"]


def test_rows_join_with_label_annotator_and_provenance_and_clean_takes_them_as_they_are(project: Path) -> None:
    said = run(
        answered("Where is my money, mail jane.doe@example.com", annotator="anna"),
        answered("Mit <b>Rechnung</b> bitte", '{"intent":"invoice"}', annotator="ben", asked=None),
    )
    assert said == [
        "2 rows in data/raw/inbox-1.jsonl: label invoice 1, refund 1; annotator anna 1, ben 1",
        "commit what is new, or `dvc add` it; then run `dvc repro`",
    ]
    assert raw()[0] == {
        "prompt": "Where is my money, mail [EMAIL]",
        "completion": GOOD,
        "source": "inbox-1",
        "annotator": "anna",
        "label": "refund",
        "provenance": {
            "answer": BAD,
            "log": "monday.jsonl:7",
            "release": "tickets@1.0.0",
            "kept_because": ["cut off"],
        },
    }
    clean.main()  # max_rejected_share is 0: it would stop at one rejected row
    records = read_records(paths.CLEAN)
    assert [(one.prompt, one.completion, one.source) for one in records] == [
        (one["prompt"], one["completion"], "inbox-1") for one in raw()
    ]
    assert [one.fields for one in records] == [{"annotator": "anna"}, {"annotator": "ben"}]


def test_what_has_no_answer_breaks_the_contract_or_is_near_the_hold_out_is_left_out_by_name(project: Path) -> None:
    said = run(
        answered("Where is the parcel with my green lamp", ""),
        answered("Where is the parcel with my red lamp", "", skipped="cannot\nbe told"),
        answered("Sing something for me please", BAD),
        answered("Send me the invoice of order seven, it never come"),
        answered("Please refund the blue kettle that I bought on Monday"),
    )
    assert said == [
        "left out: week/anna.jsonl:1 has no answer",
        "left out: week/anna.jsonl:2 has no answer: cannot be told",
        "left out: week/anna.jsonl:3: breaks_schema: intent: 'sing' is not one of ['refund', 'invoice']",
        "left out: week/anna.jsonl:4 is near the hold-out, tickets.jsonl:2",
        "left out: week/anna.jsonl:5 is in the data already, tickets.jsonl:1",
        "no row is new",
    ]
    assert not RAW.exists()


def test_a_correction_of_a_known_row_says_which_line_to_mend(project: Path) -> None:
    said = run(answered("Please refund the blue kettle that I bought on Monday", OTHER))
    assert said[0].startswith("note: week/anna.jsonl:1 asks what tickets.jsonl:1 answers otherwise; mend that line")
    assert len(raw()) == 1


def test_annotators_who_differ_are_named_and_more_than_half_decide(project: Path) -> None:
    one, two = "Where is the parcel with my green lamp", "What of the two yellow chairs I sent back"
    said = run(
        *(answered(one, text, annotator=name) for name, text in (("ben", GOOD), ("anna", '{"intent":"refund"}'))),
        *(answered(two, text, annotator=name) for name, text in (("ben", GOOD), ("anna", OTHER))),
    )
    assert said[0] == "left out: week/anna.jsonl:3 and week/anna.jsonl:4 answer one question differently"
    (made,) = raw()
    assert (made["annotator"], made["provenance"]["annotators"]) == ("anna", ["anna", "ben"])
    said = run(*(answered(two, text, annotator=name) for name, text in (("a", GOOD), ("b", OTHER), ("c", GOOD))))
    assert [made["completion"] for made in raw()] == [GOOD, GOOD]


def test_one_annotator_has_one_voice_however_often_a_file_is_named(project: Path) -> None:
    for name, text in (("anna", GOOD), ("ben", OTHER)):
        write_rows(Path(f"week/{name}.jsonl"), [answered("Where is the parcel with my lamp", text, annotator=name)])
    params = load_params("clean", "dedup", "task")
    files = [Path(f"week/{name}.jsonl") for name in ("anna", "ben", "anna")]
    assert "answer one question differently" in append(files, params, clean.row_cleaner(params))
    assert raw() == []


def test_a_row_of_another_source_is_not_written_twice_before_the_next_run(project: Path) -> None:
    run(answered("Where is the parcel with my green lamp"))
    said = run(answered("Where is the parcel with my green lamp", source="inbox-2"))
    assert said == ["left out: week/anna.jsonl:1 is in the data already, inbox-1.jsonl", "no row is new"]
    assert not RAW.with_name("inbox-2.jsonl").exists()


PROMPTS = st.lists(st.integers(0, 30), min_size=1, max_size=8)


@settings(max_examples=10)
@given(first=PROMPTS, second=PROMPTS)
def test_no_row_is_ever_written_twice_and_none_is_lost(
    tmp_path_factory: pytest.TempPathFactory, first: list[int], second: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("append"))
        prepare()
        for numbers in (first, second, first):
            run(*(answered(f"{number:b}".replace("0", "alpha ").replace("1", "bravo ") * 3) for number in numbers))
        written = [one["prompt"] for one in raw()]
    assert len(written) == len(set(written))
    assert len(written) == len({*first, *second})


def test_what_stands_in_the_file_stays(project: Path) -> None:
    RAW.parent.mkdir()
    before = json.dumps({"prompt": "An older row of this source", "completion": GOOD}).encode()
    RAW.write_bytes(before)
    run(answered("Where is the parcel with my green lamp"))
    assert RAW.read_bytes().startswith(before + b"\n")
    assert len(raw()) == 2


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": 5, "completion": "x"}',
        '{"prompt": "cut in the mid',
        "",
        '{"prompt": "\\ud800", "completion": "x"}',
        '{"messages": [{"role": "user", "content": "Hello"}], "context": "x"}',
    ],
)
def test_what_clean_rejects_of_the_file_keeps_no_row_out(project: Path, line: str) -> None:
    RAW.parent.mkdir()
    new = "Where is the parcel with my <b>green</b> lamp"
    known = {"messages": [{"role": "user", "content": new}, {"role": "assistant", "content": GOOD}]}
    RAW.write_text(f"{line}\n{json.dumps(known)}\n")
    said = run(answered(new), answered("What of the two yellow chairs I sent back"))
    assert said[0] == "left out: week/anna.jsonl:1 is in the data already, inbox-1.jsonl"
    assert RAW.read_text().startswith(f"{line}\n{json.dumps(known)}\n")
    assert RAW.read_text().count("\n") == 3


@pytest.mark.parametrize("more", ['"asked": NaN', '"answer": "\\ud83d"', '"log": 1e999', '"prompt": "Another one"'])
def test_what_could_not_be_written_as_it_is_is_named(project: Path, more: str) -> None:
    file = Path("week/anna.jsonl")
    file.parent.mkdir()
    file.write_text(
        json.dumps(answered("Where is the parcel with my lamp"))[:-1].replace('"answer"', '"said"') + f", {more}}}"
    )
    params = load_params("clean", "dedup", "task")
    with pytest.raises(UserError, match=r"anna\.jsonl, line 1: not JSON .*; mend it"):
        append([file], params, clean.row_cleaner(params))


def test_a_label_of_its_own_stays_and_a_task_that_is_no_text_leaves_its_row_out(project: Path) -> None:
    said = run(answered("Where is the parcel with my lamp", label=0), answered("Two yellow chairs", task=["a"]))
    assert said[0].startswith("left out: week/anna.jsonl:2: wrong_type: 'task' must be a string")
    assert [made["label"] for made in raw()] == [0]


def test_what_cannot_be_appended_is_a_sentence(project: Path) -> None:
    with pytest.raises(UserError, match=r"the source '語{34}' must be a plain name, such as 2026-48, in 100 bytes"):
        run(answered("Where is it", source="語" * 34))
    with pytest.raises(UserError, match=r"line 1: the source '\.\./x' must be a plain name"):
        run(answered("Where is the parcel with my green lamp", source="../x"))
    paths.HOLDOUT.unlink()
    with pytest.raises(UserError, match=r"holdout\.jsonl is missing; run `dvc pull dedup split`"):
        run(answered("Where is the parcel with my green lamp"))
    Path("data/raw").write_text("{}")
    with pytest.raises(UserError, match=r"clean\.raw is the file data/raw; a source of its own needs a folder"):
        run(answered("Where is the parcel with my green lamp"))


def test_what_two_append_at_once_is_all_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.weekly.append.atomic", met(atomic))
    with ThreadPoolExecutor() as pool:
        for name, prompt in (("anna", "Where is my money"), ("ben", "Who sent this heavy parcel to me")):
            pool.submit(run, answered(prompt), file=f"{name}.jsonl")
    assert {row["prompt"] for row in raw()} == {"Where is my money", "Who sent this heavy parcel to me"}
