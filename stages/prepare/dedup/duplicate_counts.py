"""What the stage found, as numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import comb
from typing import Any

from stages.near_duplicates.rule import Pair
from stages.records.dropped import Dropped
from stages.records.near_pairs import components
from stages.records.record import Record
from stages.text.strict_json import completion_key


def conflicts(prompts: Mapping[str, Sequence[Record]]) -> dict[str, list[Record]]:
    """The prompts that come with more than one completion, and their records."""
    return {
        prompt: list(records)
        for prompt, records in prompts.items()
        if len(records) > 1 and len({completion_key(record.completion) for record in records}) > 1
    }


def near_clusters(prompts: Mapping[str, Sequence[Record]], pairs: Sequence[Pair]) -> list[list[Record]]:
    """Records whose prompts are the same or near, directly or through others: the connected components."""
    rows = list(prompts.values())
    groups = components(len(rows), ((pair.left, pair.right) for pair in pairs))
    return [[row for place in group for row in rows[place]] for group in groups]


def giants(clusters: Iterable[Sequence[Record]], giant_rows: int) -> list[Sequence[Record]]:
    """The clusters of `giant_rows` or more, the largest first."""
    large = [cluster for cluster in clusters if len(cluster) >= giant_rows]
    return sorted(large, key=lambda cluster: (-len(cluster), min(row.id for row in cluster)))


def summarise(
    records: Sequence[Record],
    prompts: Mapping[str, Sequence[Record]],
    pairs: Sequence[Pair],
    clusters: Sequence[Sequence[Record]],
    giants: Sequence[Sequence[Record]],
    kept: Sequence[Record],
    dropped: Sequence[Dropped],
) -> dict[str, Any]:
    """Rows in and out by reason, pairs, conflicts and clusters.

    `pairs.exact` counts the pairs of rows with one id; `pairs.near` the pairs of different records whose prompts
    are near or the same, whatever their completions. A cluster counts from two records on.
    """
    copies = Counter(record.id for record in records)
    sizes = [len(group) for group in prompts.values()]
    conflicting = conflicts(prompts)
    reasons = Counter(row.reason for row in dropped)
    return {
        "rows": {"in": len(records), "kept": len(kept), "dropped": len(dropped)},
        "dropped": {"exact": reasons["exact"], "near": reasons["near"]},
        "pairs": {
            "exact": sum(comb(n, 2) for n in copies.values()),
            "near": sum(comb(n, 2) for n in sizes) + sum(sizes[pair.left] * sizes[pair.right] for pair in pairs),
        },
        "conflicts": {"prompts": len(conflicting), "rows": sum(map(len, conflicting.values()))},
        "clusters": {
            "count": sum(len(cluster) > 1 for cluster in clusters),
            "largest": max(map(len, clusters), default=0),
            "giant": len(giants),
            "giant_rows": sum(map(len, giants)),
        },
    }
