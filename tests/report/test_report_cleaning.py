"""What the page says of cleaning."""

from typing import Any

from stages.report.cleaning import changed, masked, rejected, sources


def row(kind: str, reason: str, before: str | None, after: str | None) -> dict[str, Any]:
    place = {"file": "a.jsonl", "line": 3, "source": "a", "column": "prompt" if kind == "changed" else None}
    return {"kind": kind, "reason": reason, **place, "before": before, "after": after, "detail": None}


CLEAN = {
    "rejected": {"not_json": 1, "wrong_type": 7, "blank_line": 0},
    "changed": {"html": 2, "whitespace": 0},
    "personal_data": {"email": 1200, "iban": 0},
    "sources": {"a": {"rows": {"in": 9, "kept": 1, "rejected": 8}, "rejected": {"wrong_type": 8}}},
}


def test_the_most_frequent_reason_comes_first_and_none_without_rows() -> None:
    found = rejected(CLEAN, [row("rejected", "not_json", "{", None), row("changed", "not_json", "a", "b")])
    assert [(reason.name, reason.rows, len(reason.samples)) for reason in found] == [
        ("wrong type", 7, 0),
        ("not json", 1, 1),
    ]


def test_what_cleaning_took_away_is_marked() -> None:
    (html,) = changed(CLEAN, [row("changed", "html", "where is <b>my red kettle", "where is my red kettle")])
    (sample,) = html.samples
    assert sample.where == "a.jsonl, line 3, prompt"
    assert sample.before is not None
    assert "".join(piece.text for piece in sample.before if piece.marked) == "<b>"


def test_a_text_that_held_personal_data_is_not_there() -> None:
    (html,) = changed(CLEAN, [row("changed", "html", None, "[email]")])
    assert html.samples[0].before is None


def test_counts_in_words() -> None:
    assert masked(CLEAN) == "email 1,200"
    (source,) = sources(CLEAN)
    assert (source.rows, source.kept, source.rejected, source.changed) == (9, 1, "wrong type 8", "")
