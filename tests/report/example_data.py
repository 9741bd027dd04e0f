"""What the data stages would leave of the example run."""

from typing import Any

from stages.core import paths
from stages.core.files import write_json
from stages.records.record import make_record, write_records, write_rows

HOSTILE = "<script>alert('order')</script>"


def write_data(rows: list[dict[str, Any]]) -> None:
    record = {**rows[0], "source": "tickets.jsonl", "origin": "tickets.jsonl:17"}
    write_rows(paths.CLEAN_EXAMPLES, _cleaning())
    taught = [
        make_record(f"{row['prompt']} {HOSTILE}", HOSTILE, None, HOSTILE, f"{HOSTILE}:{n}")
        for n, row in enumerate(rows)
    ]
    write_records(paths.TRAIN, [*taught, *taught])
    near = {"reason": "near", "detail": "same completion", "witness": rows[1]["id"], "score": 93.5, "record": record}
    write_rows(paths.DUPLICATES, [near, {**near, "reason": "exact", "score": None}])
    write_rows(paths.QUARANTINE, [{**near, "reason": "near_prompt", "score": 91.0}])
    cleaned = {
        "rows": {"in": 372, "kept": 369, "rejected": 3},
        "rejected": {"breaks_schema": 1, "not_json": 1, "not_utf8": 1},
        "changed": {"html": 4, "mojibake": 2, "personal_data": 6, "whitespace": 0},
    }
    write_json(
        paths.CLEAN_METRICS,
        {
            **cleaned,
            "personal_data": {"email": 4, "iban": 0, "phone": 3},
            "sources": {"tickets.jsonl": {**cleaned, "shapes": {"record": 369}}},
        },
    )
    write_json(
        paths.DEDUP_METRICS,
        {
            "rows": {"in": 369, "kept": 341, "dropped": 28},
            "dropped": {"exact": 9, "near": 19},
            "pairs": {"exact": 9, "near": 31},
            "conflicts": {"prompts": 1, "rows": 2},
            "clusters": {"count": 24, "largest": 4, "giant": 0, "giant_rows": 0},
        },
    )
    write_json(
        paths.SPLIT_METRICS,
        {
            "rows": {"in": 341, "train": 262, "validation": 23, "holdout": 48, "quarantined": 8, "beyond_max": 0},
            "labels": {},
            "kept_back_by_groups": {"holdout": {}, "validation": {}},
            "quarantined": {"same_prompt": 1, "near_prompt": 5, "near_pair": 2},
            "locked": {"rows": 48, "missing": 0, "restored": 0},
            "overlap": {"shared_ids": 0, "shared_prompts": 0},
            "shared_13_grams": {
                "prompt": {"rows": 0, "of": 21, "runs": 0},
                "completion": {"rows": 0, "of": 0, "runs": 0},
            },
        },
    )
    added = {"value_swapped": 0, "task_balance": 0, "malformed": 6, "structured": 0, "replay": 12, "canary": 0}
    rows_in_and_out = {"in": 262, "out": 280, "structured": 268}
    write_json(paths.AUGMENT_METRICS, {"rows": rows_in_and_out, "added": added, "tasks": {}})


def write_checks(rows: list[dict[str, Any]]) -> None:
    """What the checks find in rows with one conflict."""
    shown = [
        {"id": row["id"], "label": "refund", "prompt": row["prompt"], "source": "bought", "origin": f"b:{n}"}
        for n, row in enumerate(rows[:2])
    ]
    tied = {"ngram": "money back", "label": "refund", "count": 17, "with_label": 17, "turned": 0}
    conflict = {"labels": {"refund": 1, "tracking": 1}, "rows": [shown[0], {**shown[1], "label": "tracking"}]}
    write_rows(paths.CHECKS / "triggers.jsonl", [])
    write_rows(paths.CHECKS / "tied.jsonl", [{**tied, "p_value": 1.2e-9, "lift": 7.6}])
    write_rows(paths.CHECKS / "conflicts.jsonl", [conflict])
    by_source = {
        name: {
            "rows": count,
            "share": count / 262,
            "labels": {"refund": count - 20, "tracking": 20},
            "median_characters": {"prompt": 61.0, "completion": 72.0},
            "label_distance": 0.21,
            "prompt_length_distance": 0.12,
            "completion_length_distance": 0.1,
        }
        for name, count in (("bought", 62), ("tickets.jsonl", 200))
    }
    write_json(
        paths.CHECKS_METRICS,
        {
            "rows": 262,
            "sources": {"count": 2, "largest_share": 200 / 262, "largest_distance": 0.21, "by_source": by_source},
            "triggers": {"tested": 431, "found": 0, "rows": 0, "tied": 37},
            "conflicts": {"clusters": 1, "rows": 2, "share": 2 / 262},
        },
    )


def _cleaning() -> list[dict[str, Any]]:
    """Examples as stages.prepare.clean.counts picks them."""
    place = {"file": "tickets.jsonl", "line": 12, "source": "tickets.jsonl"}
    change = {"kind": "changed", **place, "column": "prompt", "detail": None}
    rejected = {"kind": "rejected", **place, "column": None, "after": None}
    mailed = "Write to [email] about order A-1234."
    return [
        {**change, "reason": "html", "before": "<p>Where is <b>my</b> kettle?</p>", "after": "Where is my kettle?"},
        {**change, "reason": "personal_data", "before": None, "after": mailed},
        {**rejected, "reason": "not_json", "before": '{"prompt": "cut', "detail": "Unterminated string"},
        {**rejected, "reason": "breaks_schema", "before": f"{HOSTILE}{'x' * 500}", "detail": "urgent: 1 is no boolean"},
        {**rejected, "reason": "not_utf8", "before": None, "detail": "byte 0xff"},
    ]
