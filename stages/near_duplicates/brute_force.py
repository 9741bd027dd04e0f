"""Distances by rapidfuzz: the join for few texts, which is the oracle of the other, and the nearest of many texts.

D is at least the difference of the lengths, so of lengths a <= b only those with threshold * b <= (200 - threshold) * a
can be near. Sorted by length, the possible partners of a text are one run.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import Indel

# Near pairs: int32 (pairs, 4), each the row, the column, the distance and the summed length.
Found = NDArray[np.int32]

# A tile holds rows x columns distances of 4 bytes: 16 MiB, whatever the number of texts.
_HEIGHT = 1024
_WIDTH = 4096


@dataclass(frozen=True, slots=True)
class SortedTexts:
    """Texts from short to long, their lengths in code points and their positions in the caller's sequence."""

    texts: list[str]
    lengths: NDArray[np.int64]
    positions: NDArray[np.int64]


class Tile(NamedTuple):
    """Rows `top` to `bottom` of the left side against columns `first` to `last` of the right (ends excluded)."""

    top: int
    bottom: int
    first: int
    last: int


def sorted_by_length(texts: Sequence[str]) -> SortedTexts:
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    positions = np.argsort(lengths, kind="stable")
    return SortedTexts([texts[position] for position in positions.tolist()], lengths[positions], positions)


def shortest_near(lengths: NDArray[np.int64], threshold: int) -> NDArray[np.int64]:
    return -(-threshold * lengths // (200 - threshold))


def longest_near(lengths: NDArray[np.int64], threshold: int) -> NDArray[np.int64]:
    return (200 - threshold) * lengths // threshold


def within_window(left: SortedTexts, right: SortedTexts, threshold: int) -> int:
    """How many pairs the lengths leave to compare; within one side (`left is right`) each pair once."""
    last = np.searchsorted(right.lengths, longest_near(left.lengths, threshold), "right")
    if left is right:
        return int((last - np.arange(len(left.texts)) - 1).sum())
    return int((last - np.searchsorted(right.lengths, shortest_near(left.lengths, threshold), "left")).sum())


def tiles(
    left: SortedTexts, right: SortedTexts, threshold: int, rows: range, height: int, width: int
) -> Iterator[Tile]:
    """Cover the windows of `rows` of the left side; within one side the part right of the diagonal."""
    for top in range(rows.start, rows.stop, height):
        bottom = min(top + height, rows.stop)
        first, last = window(left.lengths[top:bottom], right.lengths, threshold)
        if left is right:
            first = max(first, top)
        for start in range(first, last, width):
            yield Tile(top, bottom, start, min(start + width, last))


def window(rows: NDArray[np.int64], lengths: NDArray[np.int64], threshold: int) -> tuple[int, int]:
    """The run of sorted `lengths` that can be near any of the sorted lengths `rows`: first, and one past the last."""
    first = np.searchsorted(lengths, shortest_near(rows[:1], threshold)[0], "left")
    return int(first), int(np.searchsorted(lengths, longest_near(rows[-1:], threshold)[0], "right"))


def join(left: SortedTexts, right: SortedTexts, threshold: int) -> Iterator[Found]:
    """All near pairs of the two sides; within one side (`left is right`) each pair once."""
    for tile in tiles(left, right, threshold, range(len(left.texts)), _HEIGHT, _WIDTH):
        yield _near(left, right, threshold, tile)


def joined(found: Iterable[Found]) -> Found:
    return np.concatenate([np.empty((0, 4), np.int32), *found])


def _near(left: SortedTexts, right: SortedTexts, threshold: int, tile: Tile) -> Found:
    rows, columns = slice(tile.top, tile.bottom), slice(tile.first, tile.last)
    lengths = np.add.outer(left.lengths[rows], right.lengths[columns])
    limits = (100 - threshold) * lengths // 100
    distances = process.cdist(
        left.texts[rows],
        right.texts[columns],
        scorer=Indel.distance,
        # rapidfuzz stops counting beyond the cutoff and returns cutoff + 1, which is over the limit of every pair.
        score_cutoff=int(limits[-1, -1]),
        dtype=np.int32,
        workers=-1,
    )
    near = distances <= limits
    if left is right:
        near &= np.add.outer(-np.arange(tile.top, tile.bottom), np.arange(tile.first, tile.last)) > 0
    row, column = np.nonzero(near)
    found = [row + tile.top, column + tile.first, distances[near], lengths[near]]
    return np.stack(found, axis=1).astype(np.int32)


def aligned(
    left: SortedTexts, right: SortedTexts, threshold: int, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> Found:
    """Those of the pairs (rows[n], columns[n]) that are near."""
    if not len(rows):
        return joined([])
    lengths = left.lengths[rows] + right.lengths[columns]
    limits = (100 - threshold) * lengths // 100
    distances = process.cpdist(
        [left.texts[row] for row in rows.tolist()],
        [right.texts[column] for column in columns.tolist()],
        scorer=Indel.distance,
        score_cutoff=int(limits.max()),  # as above
        dtype=np.int32,
        workers=-1,
    )
    near = distances <= limits
    return np.stack([rows, columns, distances, lengths], axis=1, dtype=np.int32, casting="unsafe")[near]


def nearest(texts: Sequence[str], candidates: Sequence[str]) -> Iterator[Found]:
    """For each text the candidate of the highest ratio, of equals the first; nothing without candidates."""
    sizes = np.fromiter(map(len, candidates), np.int64, len(candidates))
    height = max(1, _HEIGHT * _WIDTH // max(1, len(candidates)))
    for top in range(0, len(texts) if candidates else 0, height):
        some = texts[top : top + height]
        distances = process.cdist(some, candidates, scorer=Indel.distance, dtype=np.int32, workers=-1)
        lengths = np.add.outer(np.fromiter(map(len, some), np.int64, len(some)), sizes)
        best = (distances / np.maximum(lengths, 1)).argmin(axis=1)  # equal fractions are equal floats
        rows = np.arange(len(some))
        yield np.stack([rows + top, best, distances[rows, best], lengths[rows, best]], axis=1).astype(np.int32)
