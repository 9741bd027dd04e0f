"""What the page says of the hold-out."""

from stages.report.holdout import holdout_facts, label_rows


def test_facts_by_hand() -> None:
    split = {
        "locked": {"rows": 48, "missing": 1, "restored": 0},
        "overlap": {"shared_ids": 0, "shared_prompts": 2},
        "shared_13_grams": {"prompt": {"rows": 3, "of": 40, "runs": 5}, "completion": {"rows": 0, "of": 1, "runs": 0}},
        "kept_back_by_groups": {"holdout": {"a": 2, "b": 1}, "validation": {"a": 0}},
    }
    assert holdout_facts(split) == [
        "48 rows locked; 1 of them missing from the data",
        "shared with training and validation: 0 ids, 2 prompts",
        "13 words in a row that a trained row has too: in 3 of 40 prompts long enough",
        "13 words in a row that a trained row has too: in 0 of 1 completion long enough",
        "3 rows fewer than wanted in the hold-out, because near-duplicates stay together",
    ]


def test_a_label_without_rows_in_a_part() -> None:
    (row,) = label_rows({"labels": {"rare": {"train": 3, "holdout": 1}}})
    assert row.counts == [3, 0, 1]
