"""What a row teaches, as one value, and near-duplicate prompts that teach different ones.

Those are wrong labels, or rows sent to turn others around.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from stages.params.task import Task
from stages.records.near_pairs import NearPairs, components
from stages.records.prompt import asked
from stages.records.record import Record
from stages.text.normal_form import normalise
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


def conflicts(rows: Sequence[Record], labels: Sequence[str | None], near: NearPairs) -> list[dict[str, Any]]:
    """The clusters of near-duplicates with more than one label, so that two prompts of one kind contradict each other.

    Rows without a label take no part. A cluster has all its rows, the rarest label first: where one row stands
    against many, it is the suspect.
    """
    by_text: dict[str, list[tuple[Record, str]]] = defaultdict(list)
    for row, label in zip(rows, labels, strict=True):
        if label is not None:
            by_text[normalise(asked(row))].append((row, label))
    texts = sorted(by_text)
    groups = components(len(texts), ((left, right) for left, right, _ in near.among(texts)))
    clusters = [[member for place in group for member in by_text[texts[place]]] for group in groups]
    return [_cluster(members) for members in clusters if len({label for _, label in members}) > 1]


def _cluster(members: list[tuple[Record, str]]) -> dict[str, Any]:
    counts = Counter(label for _, label in members)
    ordered = sorted(members, key=lambda member: (counts[member[1]], member[1], member[0].id))
    return {"labels": dict(sorted(counts.items())), "rows": [shown(*member) for member in ordered]}


def shown(row: Record, label: str) -> dict[str, str]:
    return {"id": row.id, "label": label, "prompt": row.prompt, "source": row.source, "origin": row.origin}
