"""What a row teaches, as one value: the label that the checks compare."""

import json
from collections.abc import Sequence

from stages.completions import BrokenContract, completion_key, parse_json
from stages.records import Record


def label_of(record: Record, field: str) -> str | None:
    """The completion's value at `field` (task.label_field), else the row's label, else None.

    The completion comes first, for it is what the model learns: a row may be poisoned and keep its stratum.
    """
    try:
        value = parse_json(record.completion)
    except BrokenContract:
        return record.label
    if isinstance(value, dict) and field in value:
        return value[field] if isinstance(value[field], str) else json.dumps(value[field], sort_keys=True)
    return record.label


def outcomes(rows: Sequence[Record], labels: Sequence[str | None]) -> list[str]:
    """The label of each row, or where it has none its whole completion, which a backdoor repeats."""
    return [completion_key(row.completion) if label is None else label for row, label in zip(rows, labels, strict=True)]
