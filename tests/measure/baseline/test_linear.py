"""The linear baseline: what a few words tell it learns, and it draws nothing."""

import pytest

from stages.measure.baseline import __main__ as baseline
from stages.measure.baseline.__main__ import LinearScores, fitted_beside, linear_answers, linear_scores
from stages.records.record import Record, make_record
from stages.scoring.intervals import share

WORDS = {"refund": "money back please", "tracking": "where is my parcel", "invoice": "send the bill"}


def rows(numbers: range, label: bool = True) -> list[Record]:
    return [
        make_record(f"{words}, order {number}", "{}", name if label else None, "a.jsonl", f"a.jsonl:{number}")
        for number in numbers
        for name, words in WORDS.items()
    ]


TRAIN, HOLDOUT = rows(range(10)), rows(range(100, 105))


def test_it_learns_labels_that_words_tell() -> None:
    answers = linear_answers(TRAIN, HOLDOUT)
    assert [(row["id"], row["label"], row["predicted"]) for row in answers] == [
        (row.id, row.label, row.label) for row in HOLDOUT
    ]
    assert linear_scores(TRAIN, answers, 0.95) == LinearScores(30, 3, share([True] * 15, 0.95))


def test_it_is_wrong_of_a_label_that_it_never_saw() -> None:
    unseen = make_record("money back please, order 7", "{}", "complaint", "a.jsonl", "a.jsonl:1")
    (answer,) = linear_answers(TRAIN, [unseen])
    assert (answer["predicted"], answer["right"]) == ("refund", False)


def test_twice_gives_the_same_answers() -> None:
    assert linear_answers(TRAIN, HOLDOUT) == linear_answers(TRAIN, HOLDOUT)


def test_rows_without_a_label_are_left_out() -> None:
    answers = linear_answers(TRAIN + rows(range(20, 22), label=False), HOLDOUT + rows(range(200, 202), label=False))
    assert answers == linear_answers(TRAIN, HOLDOUT)


def test_without_two_labels_there_is_no_baseline() -> None:
    one = [row for row in TRAIN if row.label == "refund"]
    assert linear_answers(one, HOLDOUT) == linear_answers(TRAIN, rows(range(3), label=False)) == []
    assert linear_scores(one, [], 0.95) is None


def test_a_process_of_its_own_gives_the_same() -> None:
    fitted = fitted_beside(TRAIN, HOLDOUT)
    assert fitted() == linear_answers(TRAIN, HOLDOUT)


def test_a_process_that_fails_is_no_empty_baseline(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(baseline, "fit_linear", lambda rows: 1 / 0)
    with pytest.raises(RuntimeError, match="ended without an answer"):
        fitted_beside(TRAIN, HOLDOUT)()
    assert "ZeroDivisionError" in capfd.readouterr().err
