from pathlib import Path
from typing import Any

from scored import make_score, make_tasks

from stages.measure.evaluate.groups import NO_ANSWER, write_confusion
from stages.report.__main__ import _table
from stages.report.tables import confusion_table
from stages.scoring.rows import RowScore


def score(label: str | None, predicted: Any, *, valid: bool = True) -> RowScore:
    return make_score(right=False, label=label, valid=valid, json_valid=valid, predicted=predicted)


def lines(folder: Path, scores: list[RowScore]) -> list[str]:
    write_confusion(folder / "confusion.csv", scores, make_tasks(folder))
    return (folder / "confusion.csv").read_text(encoding="utf-8").splitlines()


def test_one_line_a_row_and_no_free_text(tmp_path: Path) -> None:
    scores = [
        score("refund", {"intent": "refund"}),
        score("refund", {"intent": 'a, "quoted" label'}),
        score(None, {"intent": "cancel"}),
        score("cancel", "not an object"),
        score("cancel", None, valid=False),
        score("cancel", {"product": "lamp"}),
    ]
    assert lines(tmp_path, scores) == [
        "actual,predicted",
        "refund,refund",
        'refund,"a, ""quoted"" label"',
        "(no label),cancel",
        f"cancel,{NO_ANSWER}",
        f"cancel,{NO_ANSWER}",
        f"cancel,{NO_ANSWER}",
    ]


def test_the_report_reads_what_was_written(tmp_path: Path) -> None:
    odd = ["car\rriage", "new\nline", 'a, "quoted" label', "null", "", " ä "]
    lines(tmp_path, [score("refund", {"intent": label}) for label in odd])
    found = _table(tmp_path / "confusion.csv", ",")
    assert found["predicted"].tolist() == odd
    assert confusion_table(found) is not None


def test_labels_have_lines_and_texts_have_none(tmp_path: Path) -> None:
    scores = [
        make_score(kind="classification", reference="ham", output="spam"),
        make_score(kind="classification", reference="ham", output="some words", valid=False),
        make_score(kind="text", reference="Good day.", output="Good day."),
    ]
    assert lines(tmp_path, scores) == ["actual,predicted", "ham,spam", f"ham,{NO_ANSWER}"]
