"""The n-grams of up to three words and the rows that have them, in arrays: fit for a million rows."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.records.record import Record
from stages.text.normal_form import asked, normalise

Ints = NDArray[np.int64]

_LONGEST = 3
_BITS = 21  # of a word's number in a key; three fit into 63 bits
# A mark is a word too: a trigger may be nothing but an odd character.
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Words:
    """The words of all rows one after the other, as numbers; `starts` has where each row begins, and the end."""

    names: list[str]
    flat: Ints
    starts: Ints

    def rows(self) -> Ints:
        """The row of each place of `flat`."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


def read_words(rows: Sequence[Record]) -> Words:
    numbers: dict[str, int] = {}
    flat, starts = [], [0]
    for row in rows:
        flat += [numbers.setdefault(word, len(numbers)) for word in _WORD.findall(normalise(asked(row)))]
        starts.append(len(flat))
    return Words(list(numbers), np.array(flat, dtype=np.int64), np.array(starts, dtype=np.int64))


def distinct(words: Words) -> Words:
    """Every row with each of its words once."""
    pairs = np.unique(np.stack([words.rows(), words.flat]), axis=1)
    counts = np.bincount(pairs[0], minlength=len(words.starts) - 1)
    return Words(words.names, pairs[1], np.concatenate([[0], np.cumsum(counts)]))


def ngrams(words: Words, fewest: int, most: int) -> Iterator[tuple[tuple[int, ...], Ints]]:
    """Each n-gram that is in `fewest` to `most` rows, with these rows; of n-grams in the very same rows the longest."""
    counts = np.bincount(distinct(words).flat, minlength=len(words.names))
    # A word in fewer rows is in no n-gram that is wanted. The others are numbered anew from 1, so that 0 ends a run.
    frequent = np.flatnonzero(counts >= fewest)
    if len(frequent) >= 1 << _BITS:
        raise ValueError(f"{len(frequent)} frequent words are more than a key can hold")
    number = np.zeros(len(words.names) + 1, dtype=np.int64)
    number[frequent] = np.arange(1, len(frequent) + 1)
    flat, row = number[words.flat], words.rows()

    found: dict[bytes, tuple[tuple[int, ...], Ints]] = {}
    keys, alive = np.zeros_like(flat), np.ones(len(flat), dtype=bool)
    for length in range(1, _LONGEST + 1):
        last = length - 1  # an n-gram of this length starts here and ends `last` places on, in the same row
        ahead, there = np.roll(flat, -last), np.roll(row, -last)
        alive &= (ahead > 0) & (there == row) & (np.arange(len(flat)) + last < len(flat))
        keys |= ahead << (_BITS * last)
        for key, rows in _rows_by_key(keys[alive], row[alive]):
            if fewest <= len(rows) <= most:
                gram = tuple(int(frequent[(key >> (_BITS * n) & ((1 << _BITS) - 1)) - 1]) for n in range(length))
                found[rows.tobytes()] = gram, rows
    yield from found.values()


def _rows_by_key(keys: Ints, rows: Ints) -> Iterator[tuple[int, Ints]]:
    """Each key with its distinct rows."""
    order = np.lexsort((rows, keys))
    keys, rows = keys[order], rows[order]
    new = np.ones(len(keys), dtype=bool)
    new[1:] = (np.diff(keys) != 0) | (np.diff(rows) != 0)
    keys, rows = keys[new], rows[new]
    borders = np.flatnonzero(np.diff(keys)) + 1
    for start, end in zip([0, *borders], [*borders, len(keys)], strict=True):
        if end > start:
            yield int(keys[start]), rows[start:end]
