"""All pairs of near-duplicate texts, exactly.

Two texts are near-duplicates when `rapidfuzz.fuzz.ratio(a, b) >= threshold`. With D their Indel distance (insertions
and deletions only) and L their summed length in code points, the ratio is 100 * (1 - D / L), so the rule is

    100 * D <= (100 - threshold) * L

in integers, without rounding. Two empty texts have D = L = 0 and fit it, as their ratio of 100 says.

D is at least the difference of the lengths, so of lengths a <= b only those with threshold * b <= (200 - threshold) * a
can fit. Sorted by length, the partners of a block of texts are one run; rapidfuzz compares these, tile by tile.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import Indel

from stages.progress import track

# A tile holds rows x columns distances of 4 bytes: 16 MiB, whatever the number of texts.
_ROWS = 1024
_COLUMNS = 4096


class Pair(NamedTuple):
    """Two near texts by their positions, their Indel distance and their summed length in code points."""

    left: int
    right: int
    distance: int
    length: int

    @property
    def score(self) -> float:
        return score(self.distance, self.length)


def score(distance: int, length: int) -> float:
    """The ratio from 0 to 100, rounded down to hundredths: 100 is for equal texts alone."""
    return (10_000 * (length - distance) // length) / 100 if length else 100.0


def is_near(left: str, right: str, threshold: int) -> bool:
    """Whether `fuzz.ratio(left, right) >= threshold`, without rounding."""
    return 100 * Indel.distance(left, right) <= (100 - threshold) * (len(left) + len(right))


def near_pairs(texts: Sequence[str], threshold: int) -> list[Pair]:
    """All pairs of `texts` at or above `threshold` (1 to 100) with left < right, sorted.

    Equal texts are pairs too, quadratically many: pass distinct texts where that matters.
    """
    side = _sorted_by_length(texts)
    found = _join(side, side, threshold)
    return sorted(pair._replace(left=min(pair[:2]), right=max(pair[:2])) for pair in found)


def cross_pairs(left: Sequence[str], right: Sequence[str], threshold: int) -> list[Pair]:
    """All pairs of a text of `left` and a text of `right` at or above `threshold` (1 to 100), sorted."""
    return sorted(_join(_sorted_by_length(left), _sorted_by_length(right), threshold))


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


@dataclass(frozen=True, slots=True)
class _Side:
    """Texts from short to long, their lengths in code points and their positions in the caller's sequence."""

    texts: list[str]
    lengths: NDArray[np.int64]
    positions: list[int]


def _sorted_by_length(texts: Sequence[str]) -> _Side:
    positions = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    ordered = [texts[position] for position in positions]
    return _Side(ordered, np.array([len(text) for text in ordered], dtype=np.int64), positions)


def _join(left: _Side, right: _Side, threshold: int) -> Iterable[Pair]:
    """Pairs across two sides; within one side (`left is right`) each pair once and no text with itself."""
    tops = range(0, len(left.texts), _ROWS)
    for top in track(tops, len(tops), "near-duplicates, blocks of texts"):
        rows = slice(top, top + _ROWS)
        first, last = _window(left.lengths[rows], right.lengths, threshold)
        if left is right:
            first = max(first, top)
        for start in range(first, last, _COLUMNS):
            columns = slice(start, min(start + _COLUMNS, last))
            for row, column, distance in _tile(left, rows, right, columns, threshold):
                if left is right and row >= column:
                    continue
                length = len(left.texts[row]) + len(right.texts[column])
                yield Pair(left.positions[row], right.positions[column], distance, length)


def _window(rows: NDArray[np.int64], lengths: NDArray[np.int64], threshold: int) -> tuple[int, int]:
    """The run of sorted `lengths` that can be near any of the sorted lengths `rows`: first, and one past the last."""
    shortest = -(-threshold * int(rows[0]) // (200 - threshold))
    longest = (200 - threshold) * int(rows[-1]) // threshold
    return int(np.searchsorted(lengths, shortest, "left")), int(np.searchsorted(lengths, longest, "right"))


def _tile(left: _Side, rows: slice, right: _Side, columns: slice, threshold: int) -> list[tuple[int, int, int]]:
    """Row, column and distance of every near pair of one tile."""
    limits = (100 - threshold) * np.add.outer(left.lengths[rows], right.lengths[columns]) // 100
    distances = process.cdist(
        left.texts[rows],
        right.texts[columns],
        scorer=Indel.distance,
        # rapidfuzz stops counting beyond the cutoff and returns cutoff + 1, which is over the limit of every pair.
        score_cutoff=int(limits[-1, -1]),
        dtype=np.int32,
        workers=-1,
    )
    hits = np.argwhere(distances <= limits)
    return [(rows.start + i, columns.start + j, int(distances[i, j])) for i, j in hits.tolist()]
