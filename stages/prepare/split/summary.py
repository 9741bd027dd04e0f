"""What the split came to, as numbers."""

from collections import Counter
from typing import Any

from stages.prepare.split.lock import Lock
from stages.prepare.split.overlap import shared_rows, shared_runs
from stages.prepare.split.partition import Partition
from stages.prepare.split.strata import label_name

_QUARANTINE = ("same_prompt", "near_prompt", "near_pair")


def summarise(rows_in: int, parts: Partition, restored: int, lock: Lock) -> dict[str, Any]:
    """Rows in and out, labels in each part, quarantined rows by reason, locked rows, folds, and what the parts share.

    `rows.in` counts the unique rows and the `restored` locked ones; `locked.missing` those in neither.
    `kept_back_by_groups` are the rows of each label that were wanted and that no whole groups added up to, in the
    draw of the hold-out and of validation.
    """
    labels = {
        part: Counter(label_name(record.label) for record in records)
        for part, records in (("train", parts.train), ("validation", parts.validation), ("holdout", parts.holdout))
    }
    seen = parts.train + parts.validation
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
        "kept_back_by_groups": {
            "holdout": {label_name(drawn.label): drawn.quota - drawn.drawn for drawn in lock.drawn.labels},
            "validation": {label_name(s.label): s.quota - s.drawn for s in parts.validation_strata},
        },
        "quarantined": {reason: reasons[reason] for reason in _QUARANTINE},
        "locked": {
            "rows": len(lock.rows),
            "missing": len(lock.rows) - len(parts.holdout),
            "restored": restored,
        },
        **({"folds": _folds(parts)} if parts.folds else {}),  # DVC shows no empty group
        "overlap": shared_rows(seen, parts.holdout),
        "shared_13_grams": shared_runs(seen, parts.holdout),
    }


def _folds(parts: Partition) -> dict[str, Any]:
    return {
        str(number): {"rows": len(fold), "labels": dict(sorted(Counter(label_name(r.label) for r in fold).items()))}
        for number, fold in enumerate(parts.folds, start=1)
    }
