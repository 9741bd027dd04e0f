"""The stage on the sample task, held against what was planted there."""

import json
from pathlib import Path
from typing import Any

import pytest
from clean_project import ROOT, CleanProject, raw_bytes

from stages.records.record import Record

TRUTH = json.loads((ROOT / "data" / "support_tickets_truth.json").read_text(encoding="utf-8"))
LINES = (ROOT / "data" / "raw" / "support_tickets.jsonl").read_bytes().split(b"\n")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> CleanProject:
    project = CleanProject.of_the_sample(tmp_path_factory.mktemp("sample"))
    project.clean()
    return project


@pytest.fixture(scope="module")
def kept(project: CleanProject) -> dict[int, Record]:
    return {int(record.origin.partition(":")[2]): record for record in project.kept()}


def planted(*kinds: str) -> dict[int, Any]:
    return {entry["line"]: entry for entry in TRUTH["dirt"] if entry["kind"] in kinds}


def test_exactly_the_malformed_rows_are_rejected_each_for_its_reason(project: CleanProject) -> None:
    found = {row["line"]: row["reason"] for row in project.rejected()}
    assert found == {line: entry["reason"] for line, entry in planted("malformed").items()}
    assert all(raw_bytes(row) == LINES[row["line"] - 1] for row in project.rejected())


def test_every_planted_dirt_is_cleaned_to_the_letter(kept: dict[int, Record]) -> None:
    dirty = planted("html", "mojibake", "personal_data")
    assert len(dirty) == 42
    assert {line: kept[line].prompt for line in dirty} == {line: entry["clean"] for line, entry in dirty.items()}


def test_no_other_prompt_is_changed(kept: dict[int, Record]) -> None:
    """Precision: beside the planted dirt, only the two rows that repeat another with other white space change."""
    changed = {line for line, record in kept.items() if record.prompt != json.loads(LINES[line - 1])["prompt"]}
    other = changed - set(planted("html", "mojibake", "personal_data"))
    assert len(other) == 2
    assert other <= set(planted("exact_duplicate"))


def test_exact_duplicates_have_the_id_of_their_twin_and_nothing_else_has(kept: dict[int, Record]) -> None:
    pairs = {(line, entry["twin"]) for line, entry in planted("exact_duplicate").items()}
    first: dict[str, int] = {}
    found = {tuple(sorted((line, first.setdefault(kept[line].id, line)))) for line in sorted(kept)}
    assert {pair for pair in found if pair[0] != pair[1]} == {tuple(sorted(pair)) for pair in pairs}


def test_metrics_count_what_was_planted(project: CleanProject) -> None:
    metrics = project.metrics()
    sources = metrics.pop("sources")
    personal_data = metrics.pop("personal_data")
    raw = ROOT / "data" / "raw" / "support_tickets.jsonl"
    assert metrics.pop("files") == {"read": 1, "passed_over": 0, "bytes": raw.stat().st_size}
    assert sources == {"support_tickets.jsonl": {**metrics, "shapes": {"prompt_completion": 1062}}}
    assert {**metrics, "personal_data": personal_data} == {
        "rows": {"in": 1075, "kept": 1062, "rejected": 13},
        "rejected": {
            "blank_line": 1,
            "breaks_schema": 3,
            "completion_not_json": 1,
            "empty_completion": 1,
            "missing_field": 1,
            "not_json": 2,
            "not_utf8": 1,
            "unknown_column": 2,
            "wrong_type": 1,
        },
        "changed": {"mojibake": 10, "html": 12, "whitespace": 2, "personal_data": 20, "completion_form": 2},
        "completions_changed": {"rows": 2, "share": 0.0019},
        "personal_data": {
            "secret": 0,
            "email": 4,
            "iban": 4,
            "card": 4,
            "ip": 4,
            "phone": 4,
            "person": 0,
            "location": 0,
        },
    }


def test_cleaning_the_clean_rows_again_changes_nothing(project: CleanProject, tmp_path: Path) -> None:
    again = CleanProject.of_the_sample(tmp_path)
    columns = ("prompt", "completion", "label", "source")
    rows = [json.dumps({column: getattr(record, column) for column in columns}) for record in project.kept()]
    again.write("".join(f"{row}\n" for row in rows).encode(), "support_tickets.jsonl")
    again.clean()
    contents = [[(r.id, r.prompt, r.completion, r.label, r.source) for r in p.kept()] for p in (project, again)]
    assert contents[0] == contents[1]
    assert set(again.metrics()["changed"].values()) == {0}


def test_rows_come_in_raw_order(project: CleanProject, kept: dict[int, Record]) -> None:
    lines = [int(record.origin.partition(":")[2]) for record in project.kept()]
    assert lines == sorted(lines) == sorted(kept)
