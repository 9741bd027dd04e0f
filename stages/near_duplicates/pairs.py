"""All pairs of near-duplicate texts, exactly: by rapidfuzz alone for few texts, the oracle of `sketched` for many.

D is at least the difference of the lengths, so of lengths a <= b only those with threshold * b <= (200 - threshold) * a
can be near. Sorted by length, the possible partners of a text are one run.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product, starmap
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import Indel

from stages.core.errors import UserError
from stages.core.machine import machine_settings
from stages.core.run_notes import track
from stages.near_duplicates.rule import Pair

# Below so many comparisons rapidfuzz is done before numba is loaded.
_FEW = 300_000
# Of the search for the nearest, which this machine does in half a minute of one core.
_FEW_NEAREST = 30_000_000
# A pair takes some 200 bytes; a million distinct prompts of real data have a tenth of a million.
_MOST = 10_000_000
# A tile holds rows x columns distances of 4 bytes: 16 MiB, whatever the number of texts.
_HEIGHT = 1024
_WIDTH = 4096
_ROWS, _CANDIDATES = 256, 16_384  # some seconds of one core
# Texts of more characters than this are first aligned without this share of the shorter one at their ends, if that
# rules out most of a sample, one pair of so many.
_LONG, _CUT, _SAMPLED = 300, 0.65, 50
# Cores that one join uses; a task on a cluster has one.
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

# Near pairs: int32 (pairs, 4), each the row, the column, the distance and the summed length.
Found = NDArray[np.int32]


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


def near_pairs(texts: Sequence[str], threshold: int) -> list[Pair]:
    """All pairs of `texts` at or above `threshold` (1 to 100) with left < right, sorted.

    Equal texts are pairs too, quadratically many: pass distinct texts where that matters.
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


def nearest(texts: Sequence[str], candidates: Iterable[str], count: int) -> list[Pair]:
    """For each text (left) the candidate of the highest ratio (right), of equals the first; none without candidates.

    The `count` candidates are taken a run at a time.
    """
    left, starts = iter(candidates), product(range(0, count, _CANDIDATES), range(0, len(texts), _ROWS))
    runs = iter(lambda: list(islice(left, _CANDIDATES)), list[str]())
    tasks = ((texts[row : row + _ROWS], run) for run in runs for row in range(0, len(texts), _ROWS))
    found: Iterable[Found] = starmap(nearest_here, tasks)
    if (address := machine_settings().ray) and len(texts) * count >= _FEW_NEAREST:
        from stages.near_duplicates import ray_tiles

        found = ray_tiles.nearest(tasks, address)
    total = -(-count // _CANDIDATES) * -(-len(texts) // _ROWS)
    parts = zip(starts, track(found, total, "nearest prompts, tiles of pairs"), strict=True)
    best = joined(part + np.array([row, column, 0, 0], np.int32) for (column, row), part in parts)
    best = best[np.lexsort((best[:, 1], best[:, 2] / np.maximum(best[:, 3], 1), best[:, 0]))]
    return [Pair(*row) for row in best[np.diff(best[:, 0], prepend=-1) != 0].tolist()]


def nearest_here(texts: Sequence[str], candidates: Sequence[str]) -> Found:
    """`nearest` of all at once, on this machine."""
    sizes, others = (np.fromiter(map(len, some), np.int64, len(some)) for some in (texts, candidates))
    distances = process.cdist(texts, candidates, scorer=Indel.distance, dtype=np.int32, workers=THREADS)
    lengths, rows = np.add.outer(sizes, others), np.arange(len(texts))
    best = (distances / np.maximum(lengths, 1)).argmin(axis=1)  # equal fractions are equal floats
    return np.stack([rows, best, distances[rows, best], lengths[rows, best]], axis=1).astype(np.int32)


def sorted_by_length(texts: Sequence[str]) -> SortedTexts:
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    positions = np.argsort(lengths, kind="stable")
    return SortedTexts([texts[position] for position in positions.tolist()], lengths[positions], positions)


def _join(left: SortedTexts, right: SortedTexts, threshold: int) -> Found:
    """All near pairs by their places in the sides; within one side (`left is right`) each pair once."""
    held, count = [], 0
    for part in _parts(left, right, threshold):
        held.append(part)
        count += len(part)
        if count > _MOST:
            raise UserError(
                f"more than {_MOST:,} pairs of prompts are near-duplicates: most are of a few templates; raise "
                "dedup.threshold, or take fewer rows of that source"
            )
    return joined(held)


def _parts(left: SortedTexts, right: SortedTexts, threshold: int) -> Iterable[Found]:
    if (address := machine_settings().ray) and within_window(left, right, threshold) >= _FEW:
        from stages.near_duplicates import ray_tiles

        return ray_tiles.join(left, right, threshold, address)
    return on_this_machine(left, right, threshold)


def on_this_machine(left: SortedTexts, right: SortedTexts, threshold: int) -> Iterable[Found]:
    """All near pairs by their places in the sides, in parts; within one side (`left is right`) each pair once."""
    if within_window(left, right, threshold) >= _FEW:
        from stages.near_duplicates import sketched

        return sketched.join(left, right, threshold)
    cover = tiles(left, right, threshold, range(len(left.texts)), _HEIGHT, _WIDTH)
    return (_near(left, right, threshold, tile) for tile in cover)


def joined(found: Iterable[Found]) -> Found:
    return np.concatenate([np.empty((0, 4), np.int32), *found])


def _sorted(found: Found) -> list[Pair]:
    order = np.lexsort((found[:, 1], found[:, 0]))
    return [Pair(*row) for row in found[order].tolist()]


def within_window(left: SortedTexts, right: SortedTexts, threshold: int) -> int:
    """How many pairs the lengths leave to compare; within one side (`left is right`) each pair once."""
    last = np.searchsorted(right.lengths, _longest_near(left.lengths, threshold), "right")
    if left is right:
        return int((last - np.arange(len(left.texts)) - 1).sum())
    return int((last - np.searchsorted(right.lengths, _shortest_near(left.lengths, threshold), "left")).sum())


def _shortest_near(lengths: NDArray[np.int64], threshold: int) -> NDArray[np.int64]:
    return -(-threshold * lengths // (200 - threshold))


def _longest_near(lengths: NDArray[np.int64], threshold: int) -> NDArray[np.int64]:
    return (200 - threshold) * lengths // threshold


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
    first = np.searchsorted(lengths, _shortest_near(rows[:1], threshold)[0], "left")
    return int(first), int(np.searchsorted(lengths, _longest_near(rows[-1:], threshold)[0], "right"))


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
        workers=THREADS,
    )
    near = distances <= limits
    if left is right:
        near &= np.add.outer(-np.arange(tile.top, tile.bottom), np.arange(tile.first, tile.last)) > 0
    row, column = np.nonzero(near)
    found = [row + tile.top, column + tile.first, distances[near], lengths[near]]
    return np.stack(found, axis=1).astype(np.int32)


def aligned(
    left: SortedTexts, right: SortedTexts, threshold: int, rows: NDArray[np.int32], columns: NDArray[np.int32]
) -> Found:
    """Those of the pairs (rows[n], columns[n]) that are near.

    Two texts that each lose their last character are no further apart than before: of the two characters one at most
    is in the longest common subsequence without the other, so this loses one at most, and D is L less twice its
    length. So of long texts the beginnings are aligned first, unless a sample says that few pairs are ruled out so.
    """
    if len(rows) and min(left.lengths[rows].min(), right.lengths[columns].min()) > _LONG:
        near, _, _ = _aligned(left, right, threshold, rows[::_SAMPLED], columns[::_SAMPLED], _CUT)
        if near.mean() < 0.5:
            near, _, _ = _aligned(left, right, threshold, rows, columns, _CUT)
            rows, columns = rows[near], columns[near]
    near, distances, lengths = _aligned(left, right, threshold, rows, columns)
    return np.stack([rows, columns, distances, lengths], axis=1, dtype=np.int32, casting="unsafe")[near]


def _aligned(
    left: SortedTexts,
    right: SortedTexts,
    threshold: int,
    rows: NDArray[np.int32],
    columns: NDArray[np.int32],
    cut: float = 0,
) -> tuple[NDArray[np.bool_], NDArray[np.int32], NDArray[np.int64]]:
    """Whether pairs are near once both texts have lost a share of the shorter one at their ends; distances, lengths."""
    sizes = left.lengths[rows], right.lengths[columns]
    limits = (100 - threshold) * (sizes[0] + sizes[1]) // 100
    texts = [[left.texts[row] for row in rows.tolist()], [right.texts[column] for column in columns.tolist()]]
    if cut:
        lost = (cut * np.minimum(*sizes)).astype(np.int64)
        ends = [(size - lost).tolist() for size in sizes]
        texts = [[text[:end] for text, end in zip(*side, strict=True)] for side in zip(texts, ends, strict=True)]
    distances = process.cpdist(
        *texts,
        scorer=Indel.distance,
        score_cutoff=int(limits.max(initial=0)),  # as above
        dtype=np.int32,
        workers=THREADS,
    )
    return distances <= limits, distances, sizes[0] + sizes[1]
