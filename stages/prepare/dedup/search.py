"""The near pairs of all prompts: exactly where the budget allows, else most of them, and how many that is."""

import hashlib
from collections.abc import Sequence
from typing import Any

from stages.near_duplicates import Pair, comparisons, cross_pairs, near_pairs, proposed_pairs
from stages.params.split import Dedup
from stages.scoring.intervals import clopper_pearson

_SAMPLE = 1000
_CONFIDENCE = 0.95


def search(texts: Sequence[str], params: Dedup) -> tuple[list[Pair], dict[str, Any]]:
    """The near pairs of distinct texts, and for the metrics: the comparisons that an exact search takes, whether it
    was one, and if not its recall."""
    needed = comparisons(texts, params.threshold)
    if needed <= params.max_comparisons:
        return near_pairs(texts, params.threshold), {"comparisons": needed, "exact": 1}
    print(
        f"{len(texts):,} prompts need {needed:,} comparisons, more than dedup.max_comparisons allows "
        f"({params.max_comparisons:,}): hashing proposes pairs instead, and some near-duplicates are missed"
    )
    pairs = proposed_pairs(texts, params.threshold)
    recall = sampled_recall(texts, params.threshold, pairs)
    if recall["of"]:
        print(
            f"found {recall['count']} of the {recall['of']} near pairs of {_SAMPLE:,} prompts: a recall of "
            f"{recall['value']:.3f} ({recall['low']:.3f} to {recall['high']:.3f})"
        )
    return pairs, {"comparisons": needed, "exact": 0, "recall": recall}


def sampled_recall(texts: Sequence[str], threshold: int, found: Sequence[Pair]) -> dict[str, float]:
    """Of the pairs that a sample of texts really is in, the share that was found, with its interval.

    The sample are the texts with the smallest hashes, so it depends on no order. Without any pair there is no share.
    """
    first = sorted(range(len(texts)), key=lambda place: hashlib.sha256(texts[place].encode()).digest())[:_SAMPLE]
    truth = {
        (min(left, right), max(left, right))
        for left, right in (
            (first[pair.left], pair.right) for pair in cross_pairs([texts[place] for place in first], texts, threshold)
        )
        if left != right
    }
    count = len(truth & {(pair.left, pair.right) for pair in found})
    if not truth:
        return {"count": 0, "of": 0}
    low, high = clopper_pearson(count, len(truth), _CONFIDENCE)
    return {"value": count / len(truth), "low": low, "high": high, "count": count, "of": len(truth)}
