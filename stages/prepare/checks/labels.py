"""What a row teaches, as one value: the label that the checks compare."""

import json
from collections.abc import Sequence

from stages.params import Task
from stages.records.record import Record
from stages.text.strict_json import BrokenContract, completion_key, parse_json


def label_of(record: Record, task: Task) -> str | None:
    """What the row's completion says where its task has classes, else the row's label, else None.

    That is the whole completion of a classification task, and the value at `label_field` of a JSON completion. The
    completion comes first, for it is what the model learns: a row may be poisoned and keep its stratum.
    """
    contract = task.contract(record.task)
    if contract.kind == "classification":
        return record.completion.strip()
    try:
        value = parse_json(record.completion)
    except BrokenContract:
        return record.label
    if isinstance(value, dict) and contract.label_field in value:
        found = value[contract.label_field]
        return found if isinstance(found, str) else json.dumps(found, sort_keys=True)
    return record.label


def outcomes(rows: Sequence[Record], labels: Sequence[str | None]) -> list[str]:
    """The label of each row, or where it has none its whole completion, which a backdoor repeats."""
    return [completion_key(row.completion) if label is None else label for row, label in zip(rows, labels, strict=True)]
