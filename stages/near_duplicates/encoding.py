"""Texts as the kernels take them, a batch at a time and on all cores."""

import heapq
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.near_duplicates import kernels
from stages.near_duplicates.sides import Side

_BATCH = 20_000  # texts as code points at once

Codes = NDArray[np.uint32]  # the code points of several texts, one after the other
Ends = NDArray[np.int64]  # where each text ends
Kernel = Callable[[Codes, Ends, Any], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


def character_bags(sides: Sequence[Side]) -> list[NDArray[np.uint8]]:
    """For each side uint8 (texts, kernels.BUCKETS): how often characters occur, by bucket.

    The buckets share out the characters of all sides so that each holds about as many: frequent ones are alone.
    """
    counts = np.zeros(0x110000, np.int64)
    for side in sides:
        for batch in _batches(side.texts):
            codes, _ = _encoded(side.texts[batch])
            counts += np.bincount(codes, minlength=len(counts))
    bucket_of = np.zeros(len(counts), np.uint8)
    heap = [(0, bucket) for bucket in range(kernels.BUCKETS)]
    for code in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]:
        load, bucket = heap[0]
        bucket_of[code] = bucket
        heapq.heapreplace(heap, (load + int(counts[code]), bucket))
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

    def fill_batch(batch: slice) -> None:
        kernel(*_encoded(texts[batch]), made[batch])

    for _ in in_threads(fill_batch, _batches(texts)):
        pass


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` of each item, in order, on all cores: the kernels run without the interpreter's lock."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    running: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > 2 * threads:  # results do not pile up before a slow consumer
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _batches(texts: Sequence[str]) -> list[slice]:
    return [slice(start, start + _BATCH) for start in range(0, len(texts), _BATCH)]


def _encoded(texts: Sequence[str]) -> tuple[Codes, Ends]:
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    return codes, np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
