"""The join for many texts: pairs that a bound rules out are never aligned.

Two lower bounds of the Indel distance D hold for every pair, so no near pair is lost:

- An insertion or deletion changes the count of one character by one. So the L1 distance of two bags of characters is
  at most D. Merging characters into buckets and counting to 255 only bring bags together.
- A character put into a text breaks the at most q - 1 q-grams across its place and makes at most q that hold it; taken
  out, it is the other way round. So the bags of q-grams differ by at most (2q - 1) * D in L1 (the count filter of
  Gravano et al., "Approximate String Joins in a Database (Almost) for Free", VLDB 2001, for two operations instead of
  three). A text's q-grams, the repeated ones numbered, are a set; its sketch has one bit for the parity of each part
  of that set, so two sketches differ in at most as many bits as the sets in elements (Mitzenmacher, Pagh, Pham,
  "Efficient Estimation for High Similarities using Odd Sketches", WWW 2014).

What is left, rapidfuzz aligns. The time still grows with the square of the number of texts, at one to a few
nanoseconds a pair. Prefix filters and partitions (Xiao et al., "Ed-Join", VLDB 2008; Li et al., "Pass-Join", VLDB 2011)
look at fewer pairs where few edits are allowed. At 90 % one character in five may be an insertion or a deletion: a near
text need share only half of the trigrams, so that rare ones decide little.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.core.progress import track
from stages.near_duplicates import kernels
from stages.near_duplicates.aligned import Found, aligned, joined
from stages.near_duplicates.encoding import character_bags, in_threads, sketches
from stages.near_duplicates.parts import Parts
from stages.near_duplicates.sides import Side, Tile, tiles, window

# A tile has 4 million pairs: some 10 ms of work, and 32 MiB of candidates at worst.
_HEIGHT = 512
_WIDTH = 8192
_PART = 32 * _HEIGHT  # rows whose result is kept for a run that goes on
_ALIGNED = 50_000  # pairs at once
_BITS = 8  # of a sketch for each character, so that few grams share one
_LONG = 512  # beyond so many characters an alignment costs more than sharper sketches


class _Run(NamedTuple):
    """Texts of one side, the first of them at `start`, with what the kernel knows of them."""

    start: int
    lengths: NDArray[np.int64]
    bags: NDArray[np.unsignedinteger]
    sketches: NDArray[np.uint64]

    def part(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.unsignedinteger], NDArray[np.uint64]]:
        here = slice(first - self.start, last - self.start)
        return self.lengths[here], self.bags[here], self.sketches[here]


def join(left: Side, right: Side, threshold: int, parts: Parts) -> Iterator[Found]:
    """All near pairs of the two sides; within one side (`left is right`) each pair once."""
    yield from parts.saved.values()
    missing = [rows for rows in _blocks(left.lengths) if rows not in parts.saved]
    cover = {rows: list(tiles(left, right, threshold, rows, _HEIGHT, _WIDTH)) for rows in missing}
    total = sum(map(len, cover.values()))
    ticks = iter(track(range(total), total, "near-duplicates, tiles of pairs"))
    q = gram_size(threshold)
    bags = character_bags([left] if left is right else [left, right])
    for words, group in groupby(cover, key=lambda rows: int(sketch_words(left.lengths[rows.start : rows.stop])[0])):
        pending = list(group)
        first, last = pending[0].start, pending[-1].stop
        start, stop = window(left.lengths[first:last], right.lengths, threshold)
        largest = (100 - threshold) * (left.lengths[last - 1] + right.lengths[start:stop].max(initial=0)) // 100
        kind = np.uint8 if largest <= 253 else np.uint16
        columns = _run(right, bags[-1].astype(kind, copy=False), start, stop, q, words)
        rows = columns if left is right else _run(left, bags[0].astype(kind, copy=False), first, last, q, words)
        for block in pending:
            scan = partial(_candidates, rows, columns, 100 - threshold, 2 * q - 1, left is right)
            found = []
            for pairs in _in_batches(in_threads(scan, cover[block]), ticks):
                found.append(aligned(left, right, threshold, *pairs))
                yield found[-1]
            parts.save(block, joined(found))
    next(ticks, None)


def gram_size(threshold: int) -> int:
    """Trigrams tell more texts apart, unless so many may be lost that unrelated texts keep within the bound."""
    return 3 if threshold >= 88 else 2


def sketch_words(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The size of a text's sketch by its length: a power of two."""
    bits = _BITS * lengths * np.where(lengths > _LONG, 2, 1)
    return 1 << np.ceil(np.log2(np.maximum(bits, 64) / 64)).astype(np.int64)


def _blocks(lengths: NDArray[np.int64]) -> list[range]:
    """Runs of rows whose sketches have one size, at most _PART long."""
    borders = np.flatnonzero(np.diff(sketch_words(lengths), prepend=0, append=0)).tolist()
    return [
        range(start, min(start + _PART, last))
        for first, last in pairwise(borders)
        for start in range(first, last, _PART)
    ]


def _run(side: Side, bags: NDArray[np.unsignedinteger], first: int, last: int, q: int, words: int) -> _Run:
    return _Run(first, side.lengths[first:last], bags[first:last], sketches(side.texts[first:last], q, words))


def _candidates(rows: _Run, columns: _Run, loss: int, spread: int, same: bool, tile: Tile) -> NDArray[np.int32]:
    """The pairs of a tile that no bound rules out: int32 (2, pairs)."""
    top, bottom, first, last = tile
    found = np.empty((2, (bottom - top) * (last - first)), np.int32)
    diagonal = top - first if same else -(bottom - top)
    count = kernels.candidates(rows.part(top, bottom), columns.part(first, last), loss, spread, diagonal, found)
    return found[:, :count] + np.array([[top], [first]], np.int32)


def _in_batches(found: Iterable[NDArray[np.int32]], ticks: Iterator[int]) -> Iterator[NDArray[np.int32]]:
    """Candidates of several tiles at once, for rapidfuzz to share among the cores; one tick for each tile."""
    held: list[NDArray[np.int32]] = []
    for pairs in found:
        next(ticks)
        held.append(pairs)
        if sum(pairs.shape[1] for pairs in held) >= _ALIGNED:
            yield np.concatenate(held, axis=1)
            held = []
    if held:
        yield np.concatenate(held, axis=1)
