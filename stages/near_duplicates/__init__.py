"""All pairs of near-duplicate texts, exactly: what `brute` would find, by `sketched` where there are many.

Where there are too many for that, `proposed` finds most of them.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from stages.core.errors import UserError
from stages.near_duplicates import brute
from stages.near_duplicates.aligned import Found, joined
from stages.near_duplicates.parts import Parts, join_folder
from stages.near_duplicates.rule import Pair, is_near, score
from stages.near_duplicates.sides import Side, sorted_by_length, within_window

__all__ = ["Pair", "clusters", "comparisons", "cross_pairs", "is_near", "near_pairs", "proposed_pairs", "score"]

# Below so many comparisons rapidfuzz is done before numba is loaded; above the other, an interruption costs minutes.
_FEW = 300_000
_MANY = 20_000_000_000
# A pair takes some 200 bytes; a million distinct prompts of real data have a tenth of a million.
_MOST = 10_000_000


def comparisons(texts: Sequence[str], threshold: int) -> int:
    """How many pairs of `texts` their lengths leave for `near_pairs` to compare."""
    side = sorted_by_length(texts)
    return within_window(side, side, threshold)


def near_pairs(texts: Sequence[str], threshold: int) -> list[Pair]:
    """All pairs of `texts` at or above `threshold` (1 to 100) with left < right, sorted.

    Equal texts are pairs too, quadratically many: pass distinct texts where that matters.

    Raises:
        UserError: when there are more pairs than memory has room for.
    """
    side = sorted_by_length(texts)
    return _within(side, _join(side, side, threshold))


def proposed_pairs(texts: Sequence[str], threshold: int) -> list[Pair]:
    """Most of the pairs that `near_pairs` finds and no others, in a time that grows little faster than `texts`."""
    from stages.near_duplicates import proposed

    side = sorted_by_length(texts)
    return _within(side, _gathered(proposed.join(side, threshold)))


def cross_pairs(left: Sequence[str], right: Sequence[str], threshold: int) -> list[Pair]:
    """All pairs of a text of `left` and a text of `right` at or above `threshold` (1 to 100), sorted."""
    sides = sorted_by_length(left), sorted_by_length(right)
    found = _join(*sides, threshold)
    found[:, 0], found[:, 1] = sides[0].positions[found[:, 0]], sides[1].positions[found[:, 1]]
    return _sorted(found)


def clusters(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """For each of `count` items the smallest item that `pairs` connect it with, directly or through others."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for left, right in pairs:
        low, high = sorted((root(left), root(right)))
        parent[high] = low
    return [root(item) for item in range(count)]


def _join(left: Side, right: Side, threshold: int) -> Found:
    count = within_window(left, right, threshold)
    if count < _FEW:
        return _gathered(brute.join(left, right, threshold))
    from stages.near_duplicates import sketched

    parts = Parts(join_folder(left, right, threshold) if count >= _MANY else None)
    found = _gathered(sketched.join(left, right, threshold, parts))
    parts.clear()
    return found


def _gathered(parts: Iterable[Found]) -> Found:
    held, count = [], 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count > _MOST:
            raise UserError(
                f"more than {_MOST:,} pairs of prompts are near-duplicates, too many to hold: most prompts are one of "
                "a few templates with other words filled in; raise dedup.threshold, or take fewer rows of that source"
            )
    return joined(held)


def _within(side: Side, found: Found) -> list[Pair]:
    found[:, :2] = np.sort(side.positions[found[:, :2]], axis=1)
    return _sorted(found)


def _sorted(found: Found) -> list[Pair]:
    order = np.lexsort((found[:, 1], found[:, 0]))
    return [Pair(*row) for row in found[order].tolist()]
