"""Near-duplicate prompts with different labels: wrong labels, or rows sent to turn others around."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from stages.near_duplicates import clusters, near_pairs
from stages.records.record import Record
from stages.text.normal_form import asked, normalise


def conflicts(rows: Sequence[Record], labels: Sequence[str | None], threshold: int) -> list[dict[str, Any]]:
    """The clusters of near-duplicates in which two prompts that are near, or the same, have different labels.

    Rows without a label take no part. A cluster has all its rows, the rarest label first: where one row stands
    against many, it is the suspect.
    """
    by_text: dict[str, list[int]] = defaultdict(list)
    for place, (row, label) in enumerate(zip(rows, labels, strict=True)):
        if label is not None:
            by_text[normalise(asked(row))].append(place)
    texts = sorted(by_text)
    said = [{labels[place] for place in by_text[text]} for text in texts]
    pairs = [(pair.left, pair.right) for pair in near_pairs(texts, threshold)]
    roots = clusters(len(texts), pairs)
    contested = {roots[n] for n, found in enumerate(said) if len(found) > 1}
    contested |= {roots[left] for left, right in pairs if len(said[left] | said[right]) > 1}

    members: dict[int, list[int]] = defaultdict(list)
    for text, root in zip(texts, roots, strict=True):
        if root in contested:
            members[root] += by_text[text]
    return [_cluster([(rows[place], str(labels[place])) for place in places]) for places in members.values()]


def _cluster(members: list[tuple[Record, str]]) -> dict[str, Any]:
    counts: dict[str, int] = defaultdict(int)
    for _, label in members:
        counts[label] += 1
    ordered = sorted(members, key=lambda member: (counts[member[1]], member[1], member[0].id))
    return {
        "labels": dict(sorted(counts.items())),
        "rows": [
            {"id": row.id, "label": label, "prompt": row.prompt, "source": row.source, "origin": row.origin}
            for row, label in ordered
        ],
    }
