"""All pairs of near-duplicate texts, exactly: what `brute_force` would find, by `sketched` where there are many."""

from collections.abc import Iterable, Sequence

import numpy as np

from stages.core.errors import UserError
from stages.near_duplicates import brute_force
from stages.near_duplicates.brute_force import Found, SortedTexts, joined, sorted_by_length, within_window
from stages.near_duplicates.rule import Pair

# Below so many comparisons rapidfuzz is done before numba is loaded; above the other, an interruption costs minutes.
_FEW = 300_000
_MANY = 20_000_000_000
# A pair takes some 200 bytes; a million distinct prompts of real data have a tenth of a million.
_MOST = 10_000_000


def near_pairs(texts: Sequence[str], threshold: int) -> list[Pair]:
    """All pairs of `texts` at or above `threshold` (1 to 100) with left < right, sorted.

    Equal texts are pairs too, quadratically many: pass distinct texts where that matters.

    Raises:
        UserError: when there are more pairs than memory has room for.
    """
    side = sorted_by_length(texts)
    found = _join(side, side, threshold)
    found[:, :2] = np.sort(side.positions[found[:, :2]], axis=1)
    return _sorted(found)


def cross_pairs(left: Sequence[str], right: Sequence[str], threshold: int) -> list[Pair]:
    """All pairs of a text of `left` and a text of `right` at or above `threshold` (1 to 100), sorted."""
    sides = sorted_by_length(left), sorted_by_length(right)
    found = _join(*sides, threshold)
    found[:, 0], found[:, 1] = sides[0].positions[found[:, 0]], sides[1].positions[found[:, 1]]
    return _sorted(found)


def nearest(texts: Sequence[str], candidates: Sequence[str]) -> list[Pair]:
    """For each text (left) the candidate of the highest ratio (right), of equals the first; none without candidates."""
    return _sorted(joined(brute_force.nearest(texts, candidates)))


def _join(left: SortedTexts, right: SortedTexts, threshold: int) -> Found:
    """All near pairs by their places in the sides; within one side (`left is right`) each pair once."""
    count = within_window(left, right, threshold)
    if count < _FEW:
        return _gathered(brute_force.join(left, right, threshold))
    from stages.near_duplicates import sketched

    return _gathered(sketched.join(left, right, threshold, keep_parts=count >= _MANY))


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


def _sorted(found: Found) -> list[Pair]:
    order = np.lexsort((found[:, 1], found[:, 0]))
    return [Pair(*row) for row in found[order].tolist()]
