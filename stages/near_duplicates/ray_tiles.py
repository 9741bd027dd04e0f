"""The searches of `pairs` on a Ray cluster: tiles as tasks, each the search of one machine.

The join of a tile is that of its rows with its columns, so what a cluster finds is what one machine finds. Beside the
texts, which the caller has, this process holds the pairs and, in Ray's store, the texts that one run of rows is held
against; a task holds one tile.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from stages.core.cluster import Shared, in_order
from stages.core.run_notes import track
from stages.near_duplicates import pairs
from stages.near_duplicates.pairs import Found, SortedTexts, Tile, sorted_by_length, tiles

_SIDE = 32_768  # texts of the join: a second or two of work, a third of it to make sketches, and some 15 MB of texts


def join(left: SortedTexts, right: SortedTexts, threshold: int, address: str) -> Iterator[Found]:
    """All near pairs of the two sides, a tile at a time; within one side (`left is right`) each pair once.

    Raises UserError where Ray is not installed, the cluster at `address` does not answer, or a task cannot run there.
    """
    same = left is right
    cover = list(tiles(left, right, threshold, range(len(left.texts)), _SIDE, _SIDE))

    # Within one side the runs that one run of rows is held against are nearly those of the next.
    @lru_cache(2 + max(Counter(tile.top for tile in cover).values(), default=0))
    def run(is_left: bool, first: int, last: int) -> Shared:
        return Shared((left if is_left else right).texts[first:last])

    def arguments(tile: Tile) -> tuple[Shared, Shared | None, int]:
        # Within one side the first tile of each run of rows is the square on the diagonal.
        columns = None if same and tile.first == tile.top else run(same, tile.first, tile.last)
        return run(True, tile.top, tile.bottom), columns, threshold

    found = in_order(near_in_tile, map(arguments, cover), address, "join")
    for tile, part in zip(cover, track(found, len(cover), "near-duplicates, tiles on the cluster"), strict=True):
        yield _read(part) + np.array([tile.top, tile.first, 0, 0], np.int32)


def near_in_tile(rows: Sequence[str], columns: Sequence[str] | None, threshold: int) -> bytes:
    """The near pairs of two runs of sorted texts, or within `rows`, by their places in these; on one core."""
    pairs.THREADS = 1  # the cluster shares out cores by tasks
    left = sorted_by_length(rows)
    right = left if columns is None else sorted_by_length(columns)
    return pairs.joined(pairs.on_this_machine(left, right, threshold)).tobytes()


def nearest(tiles: Iterable[tuple[Sequence[str], Sequence[str]]], address: str) -> Iterator[Found]:
    """`pairs.nearest_here` of each. Raises as `join` does."""
    return map(_read, in_order(nearest_in_tile, tiles, address, "nearest"))


def nearest_in_tile(texts: Sequence[str], candidates: Sequence[str]) -> bytes:
    pairs.THREADS = 1
    return pairs.nearest_here(texts, candidates).tobytes()


def _read(part: bytes) -> Found:
    return np.frombuffer(part, np.int32).reshape(-1, 4)
