"""What the split came to, as numbers."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from stages.prompts import asked, prompt_hash
from stages.records import Record
from stages.split.holdout import label_name
from stages.split.lock import Lock
from stages.split.partition import Partition


def summarise(rows_in: int, parts: Partition, restored: int, lock: Lock) -> dict[str, Any]:
    """Rows in and out, labels in each part, quarantined rows by reason, locked rows, and what the parts share.

    `rows.in` counts the unique rows and the `restored` locked ones; `locked.missing` those in neither.
    """
    labels = {
        part: Counter(label_name(record.label) for record in records)
        for part, records in (("train", parts.train), ("validation", parts.validation), ("holdout", parts.holdout))
    }
    reasons = Counter(row.reason for row in parts.quarantined)
    return {
        "rows": {
            "in": rows_in,
            "train": len(parts.train),
            "validation": len(parts.validation),
            "holdout": len(parts.holdout),
            "quarantined": len(parts.quarantined),
            "beyond_max": len(parts.beyond_max),
        },
        "labels": {
            label: {part: counts[label] for part, counts in labels.items()}
            for label in sorted(set().union(*labels.values()))
        },
        "quarantined": {reason: reasons[reason] for reason in ("same_prompt", "near_prompt")},
        "locked": {
            "rows": len(lock.rows),
            "missing": len(lock.rows) - len(parts.holdout),
            "restored": restored,
        },
        "overlap": _overlap(parts.train + parts.validation, parts.holdout),
    }


def _overlap(seen: Sequence[Record], holdout: Sequence[Record]) -> dict[str, int]:
    return {
        "shared_ids": len({row.id for row in seen} & {row.id for row in holdout}),
        "shared_prompts": len({prompt_hash(asked(row)) for row in seen} & {prompt_hash(asked(row)) for row in holdout}),
    }
