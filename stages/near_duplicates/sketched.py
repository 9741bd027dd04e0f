"""The join for many texts: pairs that a bound rules out are never aligned.

Two lower bounds of the Indel distance D hold for every pair, so no near pair is lost:

- An insertion or deletion changes the count of one character by one. So the L1 distance of two bags of characters is
  at most D. Merging characters into buckets and counting to 255 only bring bags together. What bag x has more than
  bag y, S = sum of max(x - y, 0), is half of the work, for the L1 distance is 2 * S + |y| - |x|.
- A character put into a text breaks the at most q - 1 q-grams across its place and makes at most q that hold it; taken
  out, it is the other way round. So the bags of q-grams differ by at most (2q - 1) * D in L1 (the count filter of
  Gravano et al., VLDB 2001). A text's q-grams, the repeated ones numbered, are a set; its sketch has one bit for the
  parity of each part of that set, so two sketches differ in at most as many bits as the sets in elements
  (Mitzenmacher, Pagh, Pham, "Efficient Estimation for High Similarities using Odd Sketches", WWW 2014). Parts of it
  folded onto each other by exclusive or are the sketch of fewer bits, which is looked at first.

What is left, rapidfuzz aligns. The time still grows with the square of the number of texts, at a nanosecond a pair.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.core.run_notes import track
from stages.near_duplicates import kernels, pairs
from stages.near_duplicates.pairs import Found, SortedTexts, Tile, aligned, tiles, window

# A tile has 4 million pairs: some 10 ms of work, and 32 MiB of candidates at worst.
_HEIGHT = 512
_WIDTH = 8192
_ALIGNED = 50_000  # pairs at once
# Bits of a sketch for each character, so that few grams share one: long texts of a language have more grams in common
# and need a sharper sketch, up to what memory allows.
_LEAST, _MOST = 8, 32
_BATCH = 20_000  # texts as code points at once

Codes = NDArray[np.uint32]  # the code points of several texts, one after the other
Ends = NDArray[np.int64]  # where each text ends
Kernel = Callable[[Codes, Ends, Any], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


class _Run(NamedTuple):
    """Texts of one side, the first of them at `start`, with what the kernel knows of them."""

    start: int
    lengths: NDArray[np.int64]
    bags: NDArray[np.uint8]
    sums: NDArray[np.int64]
    folded: NDArray[np.uint64]
    sketches: NDArray[np.uint64]


def join(left: SortedTexts, right: SortedTexts, threshold: int) -> Iterator[Found]:
    """All near pairs of the two sides; within one side (`left is right`) each pair once."""
    sizes = sketch_words(left.lengths)
    borders = np.flatnonzero(np.diff(sizes, prepend=0, append=0)).tolist()
    # Runs of rows whose sketches have one size.
    cover = {
        (first, last): list(tiles(left, right, threshold, range(first, last), _HEIGHT, _WIDTH))
        for first, last in pairwise(borders)
    }
    total = sum(map(len, cover.values()))
    ticks = iter(track(range(total), total, "near-duplicates, tiles of pairs"))
    bags = character_bags([left] if left is right else [left, right])
    for (first, last), run in cover.items():
        if not run:
            continue
        scan = _scan(left, right, bags, threshold, first, last, int(sizes[first]))
        for both in _in_batches(in_threads(scan, run), ticks):
            yield aligned(left, right, threshold, *both)
        del scan  # before the next takes memory
    next(ticks, None)


def _scan(
    left: SortedTexts,
    right: SortedTexts,
    bags: Sequence[NDArray[np.uint8]],
    threshold: int,
    first: int,
    last: int,
    words: int,
) -> Callable[[Tile], NDArray[np.int32]]:
    """What finds the candidates of a tile of the rows `first` to `last`, with sketches of so many words."""
    start, stop = window(left.lengths[first:last], right.lengths, threshold)
    q = gram_size(threshold)
    columns = _run(right, bags[-1], first if left is right else start, stop, q, words)
    rows = columns if left is right else _run(left, bags[0], first, last, q, words)
    return partial(_candidates, rows, columns, in_strips(columns.bags), 100 - threshold, 2 * q - 1, left is right)


def gram_size(threshold: int) -> int:
    """Trigrams tell more texts apart, unless so many may be lost that unrelated texts keep within the bound."""
    return 3 if threshold >= 88 else 2


def sketch_words(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The size of a text's sketch by its length: a power of two."""
    bits = lengths * np.clip(np.sqrt(lengths), _LEAST, _MOST)
    words: NDArray[np.int64] = 1 << np.ceil(np.log2(np.maximum(bits, 64) / 64)).astype(np.int64)
    return words


def _run(side: SortedTexts, bags: NDArray[np.uint8], first: int, last: int, q: int, words: int) -> _Run:
    bags = bags[first:last]
    full = sketches(side.texts[first:last], q, words)
    return _Run(first, side.lengths[first:last], bags, bags.sum(axis=1, dtype=np.int64), folded(full), full)


def folded(full: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Sketches of a quarter of the bits, but at least 2048, where they have them."""
    words = full.shape[1]
    made: NDArray[np.uint64] = np.bitwise_xor.reduce(
        full.reshape(len(full), -1, max(words // 4, min(words, 32))), axis=1
    )
    return made


def in_strips(bags: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The bags (texts, buckets) as the kernel reads columns: (strips, buckets, texts of a strip), zeros at the end."""
    padded = np.pad(bags, ((0, -len(bags) % kernels.LANES), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, kernels.LANES, kernels.BUCKETS).transpose(0, 2, 1))


def _candidates(
    rows: _Run, columns: _Run, strips: NDArray[np.uint8], loss: int, spread: int, same: bool, tile: Tile
) -> NDArray[np.int32]:
    """The pairs of a tile that no bound rules out: int32 (2, pairs)."""
    top, bottom, first, last = tile
    here = top - rows.start, bottom - rows.start, first - columns.start, last - columns.start
    longest = rows.lengths[here[1] - 1] + columns.lengths[here[3] - 1]
    most = loss * longest // 100 + rows.sums[slice(*here[:2])].max() - columns.sums[slice(*here[2:])].min()
    found = np.empty((2, (bottom - top) * (last - first) + kernels.FEW), np.int32)
    count = kernels.candidates(
        (rows.lengths, rows.bags, rows.sums, rows.folded, rows.sketches),
        (columns.lengths, strips, columns.sums, columns.folded, columns.sketches),
        here,
        0 if same else -len(rows.lengths),
        loss,
        spread,
        np.empty(kernels.LANES, np.uint8 if most // 2 < 254 else np.uint16),
        found,
    )
    return found[:, :count] + np.array([[rows.start], [columns.start]], np.int32)


def _in_batches(found: Iterable[NDArray[np.int32]], ticks: Iterator[int]) -> Iterator[NDArray[np.int32]]:
    """Candidates of several tiles at once, for rapidfuzz to share among the cores; one tick for each tile."""
    held: list[NDArray[np.int32]] = []
    for some in found:
        next(ticks)
        held.append(some)
        if sum(one.shape[1] for one in held) >= _ALIGNED:
            yield np.concatenate(held, axis=1)
            held = []
    if held:
        yield np.concatenate(held, axis=1)


def character_bags(sides: Sequence[SortedTexts]) -> list[NDArray[np.uint8]]:
    """For each side uint8 (texts, kernels.BUCKETS): how often characters occur, by bucket.

    The buckets share out the characters of all sides so that each holds about as many: frequent ones are alone.
    """
    counts = np.zeros(0x110000, np.int64)
    for side in sides:
        for batch in _batches(side.texts):
            codes, _ = _encoded(side.texts[batch])
            some = np.bincount(codes)
            counts[: len(some)] += some
    bucket_of = np.zeros(len(counts), np.uint8)
    loads = np.zeros(kernels.BUCKETS, np.int64)
    there = np.flatnonzero(counts)
    for code in there[np.argsort(-counts[there], kind="stable")]:
        bucket_of[code] = loads.argmin()
        loads[bucket_of[code]] += counts[code]
    made = []
    for side in sides:
        bags = np.zeros((len(side.texts), kernels.BUCKETS), np.uint8)
        fill(side.texts, bags, lambda codes, ends, part: kernels.count_characters(codes, ends, bucket_of, part))
        made.append(bags)
    return made


def sketches(texts: Sequence[str], q: int, words: int) -> NDArray[np.uint64]:
    """The odd sketches of the texts' q-grams: (texts, words)."""
    made = np.zeros((len(texts), words), np.uint64)
    fill(texts, made, lambda codes, ends, part: kernels.sketch_grams(codes, ends, q, part))
    return made


def fill(texts: Sequence[str], made: NDArray[Any], kernel: Kernel) -> None:
    """Let `kernel` fill the row of each text in `made`."""
    list(in_threads(lambda batch: kernel(*_encoded(texts[batch]), made[batch]), _batches(texts)))


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` of each item, in order, on all cores: the kernels run without the interpreter's lock."""
    running: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(pairs.THREADS) as pool:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > 2 * pairs.THREADS:  # results do not pile up before a slow consumer
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _batches(texts: Sequence[str]) -> list[slice]:
    return [slice(start, start + _BATCH) for start in range(0, len(texts), _BATCH)]


def _encoded(texts: Sequence[str]) -> tuple[Codes, Ends]:
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    return codes, np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
