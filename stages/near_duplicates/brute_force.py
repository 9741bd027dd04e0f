"""Distances by rapidfuzz: the join for few texts, which is the oracle of the other, and the nearest of many texts."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import Indel

from stages.near_duplicates.sorted_texts import SortedTexts, Tile, tiles

# Near pairs: int32 (pairs, 4), each the row, the column, the distance and the summed length.
Found = NDArray[np.int32]

# A tile holds rows x columns distances of 4 bytes: 16 MiB, whatever the number of texts.
_HEIGHT = 1024
_WIDTH = 4096


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
