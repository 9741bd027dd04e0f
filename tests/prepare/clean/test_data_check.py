"""`tunetrail data check`, and the examples of what cleaning did."""

import json
from pathlib import Path
from typing import Any

import pytest
from clean_project import GOOD, CleanProject, row
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.cli import main
from stages.core import paths
from stages.core.errors import UserError
from stages.prepare.clean.__main__ import check
from stages.records.record import read_rows

# Put together here, so that no scanner takes this file for a leak.
SECRETS = ["gh" + "p_" + "a1B2" * 9, "jane@example.com", "+1 202-555-0143", "DE89 3704 0044 0532 0130 00"]


def run(project: CleanProject, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command as a user stands in the raw folder; return its exit code."""
    monkeypatch.chdir(project.folder / "data" / "raw")
    (project.folder / "dvc.yaml").touch()
    (project.folder / ".git").mkdir(exist_ok=True)
    try:
        main(["data", "check", *arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_fit_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    project = CleanProject(tmp_path, max_rejected_share=0.5, ignore_columns=["*"])
    project.write(b"\n".join([GOOD, row("<b>x to jane@example.com</b>", priority=1), b"{"]))
    assert run(project, monkeypatch, "raw.jsonl") == 0
    said = capsys.readouterr().out
    assert "data/raw/raw.jsonl: 3 rows, 2 fit, 1 rejected" in said
    assert "not_json" in said
    assert "raw.jsonl:3: Expecting property name" in said
    assert ["raw.jsonl", "3", "2", "prompt_completion", "2", "priority"] in [line.split() for line in said.splitlines()]
    assert "rows that cleaning changes: html 1, personal_data 1" in said
    assert "personal data that it masks: email 1" in said
    assert "jane" not in said
    assert not (project.folder / paths.CLEAN).exists()
    assert not (project.folder / paths.REJECTED_CLEAN).exists()


def test_rows_that_may_have_melted_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = CleanProject(tmp_path, check_contract=False)
    project.write(b'prompt,completion\nWhere?,"5 inch pipe\none row,x\nmore row,y\nthe last, 7 inch"\n', "raw.csv")
    assert run(project, monkeypatch, "raw.csv") == 0
    assert "raw.csv:2: a field takes in 2 lines that could be rows" in capsys.readouterr().out


def test_an_unfit_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    project = CleanProject(tmp_path, max_rejected_share=0.5)
    project.write(b"\n".join([GOOD, b"{", b"1", b"2", b"3", b"4"]), "bad.jsonl")
    assert run(project, monkeypatch, "bad.jsonl") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: 5 of 6 raw rows rejected (83.3%); 50.0% are allowed")
    assert "bad.jsonl:3: expected a JSON object, found a number" in said
    assert [f"bad.jsonl:{number}:" in said for number in (3, 4, 5, 6)] == [True, True, True, False]


def test_strict_forgives_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = CleanProject(tmp_path, max_rejected_share=0.9)
    project.write(GOOD + b"\n{")
    assert run(project, monkeypatch, "raw.jsonl") == 0
    assert run(project, monkeypatch, "--strict", "raw.jsonl") == 2
    assert "0.0% are allowed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["none.jsonl", "raw.json"])
def test_a_file_that_cannot_be_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = CleanProject(tmp_path)
    project.write(b"[]", "raw.json")
    assert run(project, monkeypatch, name) == 2


def test_check_and_stage_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = CleanProject.of_the_sample(tmp_path)
    project.clean()
    monkeypatch.chdir(tmp_path)
    rows = project.metrics()["rows"]
    said = check(Path("data/raw/support_tickets.jsonl"), strict=False)
    assert f"{rows['in']} rows, {rows['kept']} fit, {rows['rejected']} rejected" in said


def examples(project: CleanProject) -> list[dict[str, Any]]:
    return list(read_rows(project.folder / paths.CLEAN_EXAMPLES))


def test_examples_show_a_few_rows_of_each_reason_before_and_after(tmp_path: Path) -> None:
    project = CleanProject(tmp_path, max_rejected_share=0.9)
    lines = [row(f"<b>number {number}</b>") for number in range(9)] + [b"{ cut", row("<i>CafÃ© x</i>")]
    project.write(b"\n".join(lines))
    project.clean()
    found = examples(project)
    assert [(example["kind"], example["reason"], example["line"]) for example in found] == [
        *[("changed", "html", number) for number in range(1, 6)],
        ("rejected", "not_json", 10),
        ("changed", "mojibake", 11),
    ]
    assert (found[0]["column"], found[0]["before"], found[0]["after"]) == ("prompt", "<b>number 0</b>", "number 0")
    assert (found[5]["before"], found[5]["after"]) == ("{ cut", None)
    assert found[5]["detail"].startswith("Expecting property name")


def test_an_example_of_masking_shows_what_is_left(tmp_path: Path) -> None:
    project = CleanProject(tmp_path)
    project.write(row("write to jane@example.com"))
    project.clean()
    (example,) = examples(project)
    assert (example["reason"], example["before"], example["after"]) == ("personal_data", None, "write to [EMAIL]")


@settings(max_examples=30)
@given(
    texts=st.lists(
        st.sampled_from([*SECRETS, "<b>", "</b>", "CafÃ©", "\n", "\u200b", " and "]), min_size=1, max_size=8
    ),
    masked=st.booleans(),
    whole=st.booleans(),
)
def test_no_example_shows_personal_data(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], masked: bool, whole: bool
) -> None:
    types = ["secret", "email", "iban", "phone"] if masked else []
    project = CleanProject(tmp_path_factory.mktemp("examples"), max_rejected_share=0.9, mask_personal_data=types)
    line = row(" ".join(texts))
    project.write(GOOD + b"\n" + (line if whole else line.replace(b'"completion"', b'"answer"')))
    project.clean()
    shown = (project.folder / paths.CLEAN_EXAMPLES).read_text(encoding="utf-8")
    assert not any(secret in shown for secret in SECRETS)


def test_a_refused_run_leaves_no_examples(tmp_path: Path) -> None:
    project = CleanProject(tmp_path)
    project.write(b"{")
    with pytest.raises(UserError):
        project.clean()
    assert not (project.folder / paths.CLEAN_EXAMPLES).exists()
    assert json.loads((project.folder / paths.REJECTED_CLEAN).read_text())["reason"] == "not_json"
