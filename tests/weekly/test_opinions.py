"""preferences: corrections become pairs, thumbs single answers; each says where it is from, and nothing is personal."""

import json
from pathlib import Path
from typing import Any

import pytest
from project import ROOT

from stages.core import paths
from stages.core.errors import UserError
from stages.params.loader import load_params
from stages.records.record import read_rows, write_rows
from stages.tune.prefer.preference_rows import read_preferences
from stages.weekly.preferences import write_preferences


def logged(prompt: str, output: str, **more: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": output}, "finish_reason": "stop"}
    request = {"messages": [{"role": "user", "content": prompt}]}
    return {"request": request, "response": {"model": "tickets@1.0.0", "choices": [choice]}, **more}


def write(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A call that writes the preferences of files, and what it wrote."""
    params = load_params("clean", "task", path=ROOT / "params.yaml")
    monkeypatch.chdir(tmp_path)

    def call(*files: Path) -> list[dict[str, Any]]:
        write_preferences(files, params, "may")
        return list(read_rows(paths.PREFERENCES / "may.jsonl"))

    return call


def test_logs_give_pairs_and_thumbs(said: Any, tmp_path: Path) -> None:
    log = write(
        tmp_path / "log.jsonl",
        logged("Where is it? ann@example.com", "lost", correction="found"),
        logged("Refund me", "no", feedback="down"),
        logged("Thanks", "yes", thumb=1),
        logged("Hello", "hi"),
        logged("Same", "right", correction="right"),
    )
    pair, down, up = said(log)
    assert pair["prompt"] == "Where is it? [EMAIL]"
    assert (pair["chosen"], pair["rejected"]) == ("found", "lost")
    assert (pair["log"], pair["release"]) == ("log.jsonl:1", "tickets@1.0.0")
    assert [(row["completion"], row["label"]) for row in (down, up)] == [("no", False), ("yes", True)]
    assert len(read_preferences(paths.PREFERENCES)) == 3


def test_annotated_rows_give_pairs_and_what_nobody_completed_its_thumb(said: Any, tmp_path: Path) -> None:
    row = {"prompt": "Refund me", "answer": "no", "source": "inbox-w", "log": "l:1", "kept_because": ["thumb down"]}
    rows = write(tmp_path / "w.jsonl", row | {"completion": "yes", "task": "t"}, row | {"completion": ""})
    pair, thumb = said(rows)
    assert (pair["chosen"], pair["rejected"], pair["task"], pair["source"]) == ("yes", "no", "t", "inbox-w")
    assert (thumb["completion"], thumb["label"]) == ("no", False)


def test_lines_end_at_line_feeds_and_what_is_no_text_is_named(said: Any, tmp_path: Path) -> None:
    row = {"prompt": "Refund\u2028me", "answer": "no\x85no", "completion": "yes", "source": "w", "kept_because": None}
    file = tmp_path / "w.jsonl"
    write_rows(file, [row])
    (pair,) = said(file)
    assert (pair["prompt"], pair["rejected"]) == ("Refund\u2028me", "no\x85no")
    (paths.PREFERENCES / "may.jsonl").unlink()
    for name in ("completion", "answer", "prompt"):
        write_rows(file, [row, row | {name: 5}])
        with pytest.raises(UserError, match="row 2: answer, completion, prompt must be texts"):
            said(file)
    write_rows(file, [row, row | {"kept_because": 5}])
    with pytest.raises(UserError, match="kept_because a list"):
        said(file)


def test_lines_that_are_left_out_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = write(tmp_path / "log.jsonl", {"level": "info"}, logged("Hello", "hi", feedback="up"), {"level": "info"})
    told = write_preferences([log], load_params("clean", "task", path=ROOT / "params.yaml"), "may")
    assert told.startswith("0 pairs and 1 thumbs in data/preferences/may.jsonl; left out: log.jsonl:1: no request in")
    assert told.endswith(", and 1 more lines")


def test_rows_of_tunetrail_answer_that_carry_a_reference_are_a_log(said: Any, tmp_path: Path) -> None:
    answer = {"output": "no", "release": "r@1.0.0"}
    row = {"prompt": "Refund me", "completion": "yes", "answer": answer, "thumb": "down"}
    (made,) = said(write(tmp_path / "answers.jsonl", row))
    assert (made["completion"], made["label"], made["release"]) == ("no", False, "r@1.0.0")


def test_what_says_nothing_and_a_name_that_is_taken_are_refused(said: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nobody corrected"):
        said(write(tmp_path / "log.jsonl", logged("Hello", "hi")))
    assert not paths.PREFERENCES.exists()
    with pytest.raises(UserError, match="no line with a request"):
        said(write(tmp_path / "other.jsonl", {"a": 1}))
    log = write(tmp_path / "log.jsonl", logged("Hello", "hi", feedback="up"))
    said(log)
    with pytest.raises(UserError, match="is there already"):
        said(log)
