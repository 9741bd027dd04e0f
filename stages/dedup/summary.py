"""What the stage found, as numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

from stages.completions import completion_key
from stages.near_duplicates import Pair, clusters
from stages.records import Record
from stages.rejected import Rejected


def conflicts(prompts: Mapping[str, Sequence[Record]]) -> dict[str, list[Record]]:
    """The prompts that come with more than one completion, and their records."""
    return {
        prompt: list(records)
        for prompt, records in prompts.items()
        if len({completion_key(record.completion) for record in records}) > 1
    }


def summarise(
    records: Sequence[Record],
    prompts: Mapping[str, Sequence[Record]],
    pairs: Sequence[Pair],
    kept: Sequence[Record],
    dropped: Sequence[Rejected],
) -> dict[str, Any]:
    """Rows in and out by reason, pairs, conflicts and clusters.

    `pairs.exact` counts the pairs of rows with one id; `pairs.near` the pairs of different records whose prompts
    are near or the same, whatever their completions. Clusters are the connected components of these, of two
    records or more.
    """
    copies = Counter(record.id for record in records)
    sizes = [len(group) for group in prompts.values()]
    roots = clusters(len(sizes), ((pair.left, pair.right) for pair in pairs))
    members: Counter[int] = Counter()
    for root, size in zip(roots, sizes, strict=True):
        members[root] += size
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
            "count": sum(size > 1 for size in members.values()),
            "largest": max(members.values(), default=0),
        },
    }
