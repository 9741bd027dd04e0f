"""What a row teaches, as one value; near-duplicate prompts that teach different ones; and how the sources differ.

Conflicts are wrong labels, or rows sent to turn others around. Sources differ in whose rows dominate, and in who labels
or writes otherwise than the rest.
"""

import json
import sys
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any, TypeVar

from stages.near_duplicates.rule import same_questions
from stages.params.task import Task
from stages.records.prompt import NearPairs, Question, among, compared, components, digest, question
from stages.records.record import Record
from stages.text.strict_json import completion_key, parsed

Key = TypeVar("Key", bound=Hashable)

_BINS = 10


def label_of(record: Record, task: Task) -> str | None:
    """What the row's completion says where its task has classes, else the row's label, else None.

    That is the whole completion of a classification task, and the value at `label_field` of a JSON completion. The
    completion comes first, for it is what the model learns: a row may be poisoned and keep its stratum.
    """
    contract = task.contract(record.task)
    if contract.kind == "classification":
        return record.completion.strip()
    value = parsed(record.completion)
    if isinstance(value, dict) and contract.label_field in value:
        found = value[contract.label_field]
        return sys.intern(found if isinstance(found, str) else json.dumps(found, sort_keys=True))
    return record.label


def outcomes(rows: Sequence[Record], labels: Sequence[str | None]) -> list[str]:
    """The label of each row, or where it has none its whole completion, which a backdoor repeats."""
    return [completion_key(row.completion) if label is None else label for row, label in zip(rows, labels, strict=True)]


def conflicts(rows: Sequence[Record], labels: Sequence[str | None], near: NearPairs) -> list[dict[str, Any]]:
    """The clusters of near-duplicates with more than one label, so that two rows of one question contradict each other.

    Rows without a label take no part. A cluster has all its rows, the rarest label first: where one row stands
    against many, it is the suspect.
    """
    names = [digest(compared(row)) for row in rows]
    count, paired = Counter(names), {name for pair in near for name in pair[:2]}
    asked: dict[Question, list[tuple[Record, str]]] = defaultdict(list)
    texts: dict[bytes, str] = {}
    for row, label, name in zip(rows, labels, names, strict=True):
        if label is not None and (count[name] > 1 or name in paired):  # a row alone is in no cluster
            asked[one := question(row)].append((row, label))
            texts[name] = one.text
    alike = {one: [row for row, _ in members] for one, members in asked.items()}
    pairs = same_questions(alike, among(near, texts))
    groups = components(sorted(asked, key=repr), ((left, right) for left, right, _ in pairs))
    clusters = [[member for one in group for member in asked[one]] for group in groups]
    return [_cluster(members) for members in clusters if len({label for _, label in members}) > 1]


def _cluster(members: list[tuple[Record, str]]) -> dict[str, Any]:
    counts = Counter(label for _, label in members)
    ordered = sorted(members, key=lambda member: (counts[member[1]], member[1], member[0].id))
    return {"labels": dict(sorted(counts.items())), "rows": [shown(*member) for member in ordered]}


def shown(row: Record, label: str) -> dict[str, str]:
    return {"id": row.id, "label": label, "prompt": row.prompt, "source": row.source, "origin": row.origin}


def by_source(rows: Sequence[Record], labels: Sequence[str | None], min_rows: int) -> dict[str, Any]:
    """Rows, labels and lengths of each source, and its distances (total variation) from all the others together.

    Lengths are compared in ten bins that hold a tenth of all rows each. `largest_distance` is that of any source with
    at least `min_rows` rows, and as many in the others: few rows are far from anything by chance.
    """
    measures: dict[str, list[Hashable]] = {
        "label_distance": ["(no label)" if label is None else label for label in labels],
        "prompt_length_distance": _bins([len(row.prompt) for row in rows]),
        "completion_length_distance": _bins([len(row.completion) for row in rows]),
    }
    every = {name: Counter(values) for name, values in measures.items()}  # once: there may be many sources
    places: dict[str, list[int]] = {source: [] for source in sorted({row.source for row in rows})}
    for place, row in enumerate(rows):
        places[row.source].append(place)
    found: dict[str, dict[str, Any]] = {}
    for source, mine in places.items():
        found[source] = {
            "rows": len(mine),
            "share": len(mine) / len(rows),
            "labels": dict(sorted(Counter(str(measures["label_distance"][place]) for place in mine).items())),
            "median_characters": {
                "prompt": median(len(rows[place].prompt) for place in mine),
                "completion": median(len(rows[place].completion) for place in mine),
            },
        }
        for name, values in measures.items():
            here = Counter(values[place] for place in mine)
            found[source][name] = total_variation(here, every[name] - here)
    counted = [one for one in found.values() if min(one["rows"], len(rows) - one["rows"]) >= min_rows]
    return {
        "count": len(found),
        "largest_share": max(one["share"] for one in found.values()),
        "largest_distance": max((one[name] for one in counted for name in measures), default=0.0),
        "by_source": found,
    }


def total_variation(left: Mapping[Key, int], right: Mapping[Key, int]) -> float:
    """Half the summed differences of two distributions, given as counts; 0 when one of them is empty."""
    rows_left, rows_right = sum(left.values()), sum(right.values())
    if not rows_left or not rows_right:
        return 0.0
    # In whole numbers first, so that no order of the keys shows in the last digit.
    apart = sum(
        abs(left.get(key, 0) * rows_right - right.get(key, 0) * rows_left) for key in left.keys() | right.keys()
    )
    return apart / (2 * rows_left * rows_right)


def _bins(lengths: Sequence[int]) -> list[Hashable]:
    """For each length its place among the deciles of all of them."""
    if len(lengths) < 2:
        return [0] * len(lengths)
    edges = quantiles(lengths, n=_BINS)
    return [bisect_left(edges, length) for length in lengths]
