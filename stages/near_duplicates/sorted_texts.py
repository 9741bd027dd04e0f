"""Texts sorted by length, and the run of lengths within which a near-duplicate can be.

D is at least the difference of the lengths, so of lengths a <= b only those with threshold * b <= (200 - threshold) * a
can be near. Sorted by length, the possible partners of a text are one run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


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
