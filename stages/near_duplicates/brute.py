"""The join for few texts, and the oracle of the other: rapidfuzz compares all that the lengths leave."""

from collections.abc import Iterator

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel

from stages.near_duplicates.aligned import Found
from stages.near_duplicates.sides import Side, Tile, tiles

# A tile holds rows x columns distances of 4 bytes: 16 MiB, whatever the number of texts.
_HEIGHT = 1024
_WIDTH = 4096


def join(left: Side, right: Side, threshold: int) -> Iterator[Found]:
    """All near pairs of the two sides; within one side (`left is right`) each pair once."""
    for tile in tiles(left, right, threshold, range(len(left.texts)), _HEIGHT, _WIDTH):
        yield _near(left, right, threshold, tile)


def _near(left: Side, right: Side, threshold: int, tile: Tile) -> Found:
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
