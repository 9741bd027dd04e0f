from pathlib import Path
from typing import Any

from stages.evaluate.confusion import NO_ANSWER, write_confusion
from stages.scoring import RowScore


def score(label: str | None, predicted: Any, *, valid: bool = True) -> RowScore:
    return RowScore("id", label, valid, valid, False, {}, predicted)


def test_one_line_a_row_and_no_free_text(tmp_path: Path) -> None:
    scores = [
        score("refund", {"intent": "refund"}),
        score("refund", {"intent": 'a, "quoted" label'}),
        score(None, {"intent": "cancel"}),
        score("cancel", "not an object"),
        score("cancel", None, valid=False),
        score("cancel", {"product": "lamp"}),
    ]
    write_confusion(tmp_path / "confusion.csv", scores, "intent")
    assert (tmp_path / "confusion.csv").read_text(encoding="utf-8").splitlines() == [
        "actual,predicted",
        "refund,refund",
        'refund,"a, ""quoted"" label"',
        "(no label),cancel",
        f"cancel,{NO_ANSWER}",
        f"cancel,{NO_ANSWER}",
        f"cancel,{NO_ANSWER}",
    ]
