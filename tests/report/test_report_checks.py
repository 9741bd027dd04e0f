"""What the page says of poisoning and bias."""

from typing import Any

from stages.report.checks import check_facts, conflicts, source_rows, triggers
from stages.report.flags import flags

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
ROW = {"id": "1", "label": "refund", "prompt": "cf \u202emn", "source": "bought", "origin": "b.jsonl:3"}


def test_facts_in_words() -> None:
    tested, conflicting, spread = check_facts(FOUND)
    assert tested.startswith("431 words and runs of words tested: 1 suspected as triggers, in 12 rows; 37 go with one")
    assert conflicting == "1 cluster of near-duplicates with different labels, 2 rows (1.0 % of all)"
    assert "Furthest from the others: 0.5 " in spread


def test_findings_show_their_rows() -> None:
    (trigger,) = triggers([{"ngram": "cf", "label": "refund", "count": 12, "turned": 11, "rows": [ROW] * 9}])
    assert trigger.title == "“cf”: 11 of 12 rows are labelled refund against their other words"
    assert len(trigger.rows) == 5
    assert trigger.rows[0].prompt == "cf ⟨U+202E⟩mn"
    (conflict,) = conflicts([{"labels": {"refund": 1, "tracking": 2}, "rows": [ROW]}])
    assert conflict.title == "refund 1, tracking 2"
    assert source_rows(FOUND)[0].cells == ["62", "31.0 %", "0.5", "0.1", "0"]


def test_a_suspected_trigger_is_a_red_flag() -> None:
    metrics = {
        "train": {"red_flags": {"overfitting": 0, "exploded": 1}},
        "dedup": {"conflicts": {"prompts": 0}},
        "split": {"overlap": {"shared_ids": 0}, "locked": {"missing": 0}},
        "augment": {"added": {"canary": 3}},
        "checks": FOUND,
    }
    raised = [flag.text for flag in flags(metrics, {"base": [], "adapter": []}) if flag.raised]
    assert raised == [
        "Exploded",
        "Poisoning: 1 suspected trigger in the training rows",
        "Audit run: 3 canary rows trained on, which no release may hold",
    ]
