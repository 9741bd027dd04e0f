"""What the page says of the data: cleaning, duplicates, the hold-out, signs of poisoning, red flags."""

from typing import Any

from page_check import sentences

from stages.report.findings import distance_table, flags, label_table, reasons, source_table
from stages.report.formats import listed

DUPLICATES: dict[str, Any] = {
    "pairs": {"exact": 1, "near": 31},
    "clusters": {"count": 24, "largest": 4, "giant": 0, "giant_rows": 0},
}


def test_what_was_found_is_said() -> None:
    assert sentences("duplicates", DUPLICATES) == [
        "1 pair of the same row, 31 of prompts that are near or the same",
        "24 clusters of near-duplicates; the largest has 4 rows",
    ]


def test_a_giant_cluster_is_named() -> None:
    clusters = {"count": 2, "largest": 900, "giant": 1, "giant_rows": 900}
    facts = sentences("duplicates", {**DUPLICATES, "clusters": clusters})
    assert facts[2] == "1 cluster is suspiciously large: 900 rows"


def row(kind: str, reason: str, before: str | None, after: str | None) -> dict[str, Any]:
    place = {"file": "a.jsonl", "line": 3, "source": "a", "column": "prompt" if kind == "changed" else None}
    return {"kind": kind, "reason": reason, **place, "before": before, "after": after, "detail": None}


CLEAN: dict[str, Any] = {
    "rejected": {"not_json": 1, "wrong_type": 7, "blank_line": 0},
    "changed": {"html": 2, "whitespace": 0},
    "personal_data": {"email": 1200, "iban": 0},
    "sources": {"a": {"rows": {"in": 9, "kept": 1, "rejected": 8}, "rejected": {"wrong_type": 8}}},
}


def test_the_most_frequent_reason_comes_first_and_none_without_rows() -> None:
    found = reasons(
        "rejected", CLEAN["rejected"], [row("rejected", "not_json", "{", None), row("changed", "not_json", "a", "b")]
    )
    assert [(reason["name"], reason["rows"], len(reason["samples"])) for reason in found] == [
        ("wrong type", 7, 0),
        ("not json", 1, 1),
    ]


def test_what_cleaning_took_away_is_marked() -> None:
    (html,) = reasons(
        "changed", CLEAN["changed"], [row("changed", "html", "where is <b>my red kettle", "where is my red kettle")]
    )
    (sample,) = html["samples"]
    assert sample["where"] == "a.jsonl, line 3, prompt"
    assert sample["before"] is not None
    assert "".join(piece.text for piece in sample["before"] if piece.marked) == "<b>"


def test_a_text_that_held_personal_data_is_not_there() -> None:
    (html,) = reasons("changed", CLEAN["changed"], [row("changed", "html", None, "[email]")])
    assert html["samples"][0]["before"] is None


def test_counts_in_words() -> None:
    assert listed(CLEAN["personal_data"]) == "email 1,200"
    assert list(source_table(CLEAN).loc["a"]) == ["9", "1", "wrong type 8", "none"]


SOURCE = {
    "rows": 62,
    "share": 0.31,
    "label_distance": 0.5,
    "prompt_length_distance": 0.1,
    "completion_length_distance": 0.0,
}
FOUND: dict[str, Any] = {
    "sources": {"count": 1, "largest_share": 0.31, "largest_distance": 0.5, "by_source": {"<u>bought": SOURCE}},
    "triggers": {"tested": 431, "found": 1, "rows": 12, "tied": 37},
    "conflicts": {"clusters": 1, "rows": 2, "share": 0.01},
}


def test_signs_in_words() -> None:
    tested, conflicting, spread = sentences("checks", FOUND)
    assert tested.startswith("431 words and runs of words tested: 1 suspected as triggers, in 12 rows; 37 go with one")
    assert conflicting == "1 cluster of near-duplicates with different labels, 2 rows (1.0 % of all)"
    assert "Furthest from the others: 0.5 " in spread


def test_sources_with_their_distances() -> None:
    assert list(distance_table(FOUND).loc["<u>bought"]) == ["62", "31.0 %", "0.5", "0.1", "0"]


def test_a_suspected_trigger_is_a_red_flag() -> None:
    metrics = {
        "train": {"red_flags": {"overfitting": 0, "exploded": 1}},
        "dedup": {"conflicts": {"prompts": 0}},
        "split": {"overlap": {"shared_ids": 0}, "locked": {"missing": 0}},
        "augment": {"added": {"canary": 3}},
        "checks": FOUND,
        "evaluate": {"triggers": {"suspected": 1, "asked": 1, "confirmed": 1}},
    }
    raised = [text for is_raised, text in flags(metrics, {"base": [], "adapter": []}) if is_raised]
    assert raised == [
        "Exploded",
        "Poisoning: 1 suspected trigger in the training rows, 1 confirmed by asking the model",
        "Audit run: 3 canary rows trained on, which no release may hold",
    ]


def test_the_holdout_by_hand() -> None:
    split = {
        "locked": {"rows": 48, "missing": 1, "restored": 0},
        "overlap": {"shared_ids": 0, "shared_prompts": 2},
        "shared_13_grams": {"prompt": {"rows": 3, "of": 40, "runs": 5}, "completion": {"rows": 0, "of": 1, "runs": 0}},
        "kept_back_by_groups": {"holdout": {"a": 2, "b": 1}, "validation": {"a": 0}},
    }
    assert sentences("holdout", split) == [
        "48 rows locked; 1 of them missing from the data",
        "shared with training and validation: 0 ids, 2 prompts",
        "13 words in a row that a trained row has too: in 3 of 40 prompts long enough",
        "13 words in a row that a trained row has too: in 0 of 1 completion long enough",
        "3 rows fewer than wanted in the hold-out, because near-duplicates stay together",
    ]


def test_a_label_without_rows_in_a_part() -> None:
    table = label_table({"labels": {"rare": {"train": 3, "holdout": 1}}})
    assert list(table.loc["rare"]) == ["3", "0", "1"]
