"""The words of texts as numbers, and which n-grams of up to three words are in how many of them.

Words are those of scikit-learn's CountVectorizer, and so are the n-grams found; but where that keeps a dictionary of
every n-gram of every text, an n-gram here is the number of its first n - 1 words and that of its last n - 1, and is
looked at only where both are in enough texts (Agrawal, Srikant, "Fast Algorithms for Mining Association Rules", VLDB
1994). It is counted by sorting, a part of the n-grams at a time. Memory holds some 13 bytes for each word of the texts,
one part, and for each n-gram that is asked for 4 bytes for each of its texts.
"""

import itertools
import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from stages.core.run_notes import track

# A mark is a word too: a trigger may be nothing but an odd character.
_WORD = re.compile(r"\w+|[^\w\s]")
_LONGEST = 3
_PART, _PARTS = 1 << 21, 32  # words of which the n-grams are sorted at once, some 80 MiB, unless that makes more parts

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Words:
    """`names` are the distinct words, sorted; `numbers` the words of all texts by their place there, `ends` where the
    words of each text end.
    """

    names: list[str]
    numbers: Ints
    ends: Longs

    def table(self) -> Any:
        """The matrix of texts by words: 1 where the text has the word."""
        shape, borders = (len(self.ends), len(self.names)), np.append(0, self.ends)
        table = csr_matrix((np.ones(len(self.numbers), np.int8), self.numbers.copy(), borders), shape)
        table.sum_duplicates()
        table.data[:] = 1
        return table


def numbered(texts: Iterable[str]) -> Words:
    """The words of texts, each of which is looked at once."""
    number: defaultdict[str, int] = defaultdict(itertools.count().__next__)
    numbers, lengths = array("i"), array("i")
    for text in texts:
        words = _WORD.findall(text)
        numbers.extend(map(number.__getitem__, words))
        lengths.append(len(words))
    names = sorted(number)
    place = np.empty(len(names), np.int32)
    place[[number[name] for name in names]] = np.arange(len(names), dtype=np.int32)
    return Words(names, place[np.frombuffer(numbers, np.int32)], np.cumsum(lengths, dtype=np.int64))


def ngrams(
    words: Words,
    fewest: int,
    most: int,
    wanted: Callable[[Ints, Longs], NDArray[np.bool_]] = lambda _, counts: counts > 0,
) -> tuple[int, list[tuple[str, Ints]]]:
    """How many n-grams of up to three words are in `fewest` to `most` texts; those `wanted`, with their texts.

    `wanted` is given the texts of some n-grams, one after the other, and how many each has. Of n-grams in the same
    texts only the longest counts, of equals the last: they cannot be told apart.
    """
    held, digests, tables = bytearray(), bytearray(), [np.empty((3, 0), np.int64)]
    for length, firsts, counts, rows in _frequent(words, fewest):
        ends, kept = counts.cumsum(), wanted(rows, counts)
        few = np.flatnonzero(counts <= most)
        borders = (some[few].tolist() for some in (ends - counts, ends, kept))
        for first, last, keep in zip(*borders, strict=True):
            places = rows[first:last].tobytes()
            held += places if keep else b""
            digests += blake2b(places, digest_size=16).digest()
        tables.append(np.stack([firsts[few], np.full(len(few), length), (counts * kept)[few]]))
    firsts, lengths, counts = np.concatenate(tables, axis=1)
    same = np.frombuffer(digests, np.int64).reshape(-1, 2)
    # Words are sorted, and no character of a word comes before a space but as a word of its own: so the numbers of
    # their words sort n-grams as their names would.
    spelled = [words.numbers[np.where(n < lengths, firsts + n, firsts)] for n in reversed(range(_LONGEST))]
    order = np.lexsort((*spelled, lengths, same[:, 1], same[:, 0]))
    last = np.append((same[order[1:]] != same[order[:-1]]).any(axis=1), True)[: len(order)]
    chosen = order[last & (counts[order] > 0)]
    rows, ends = np.frombuffer(held, np.int32), counts.cumsum()
    found = []
    for first, length, end, count in np.stack([firsts, lengths, ends, counts], axis=1)[chosen].tolist():
        names = [words.names[number] for number in words.numbers[first : first + length].tolist()]
        found.append((" ".join(names), rows[end - count : end]))
    return int(last.sum()), found


def _frequent(words: Words, fewest: int) -> Iterator[tuple[int, Longs, Longs, Ints]]:
    """Parts of the n-grams in at least so many texts: their length, where each stands first, its number of texts; and
    the places of the texts of each, one n-gram after the other.
    """
    size = len(words.numbers)
    numbers = words.numbers  # of the n-gram that begins at each word; below 0 where there is none that is frequent
    parts = min(-(-size // _PART), _PARTS)
    for length in range(1, _LONGEST + 1):
        # An n-gram of one word is a pair of it and nothing; of two words of one text, their two n-grams overlap.
        left, right = (numbers, np.broadcast_to(np.int32(0), size)) if length == 1 else (numbers[:-1], numbers[1:])
        following, known = np.full(size, -1, np.int32), 0
        # Until an n-gram has its number, there is that of its part, as -2, -3 and so on.
        part_of = following[: len(left)]
        np.subtract(-2, np.remainder(np.add(left, right, out=part_of), max(1, parts), out=part_of), out=part_of)
        part_of[left < 0] = -1
        part_of[right < 0] = -1
        if length == 2:
            following[words.ends[words.ends > 0] - 1] = -1  # which begins in the last word of a text
        for part in track(range(parts), parts, f"n-grams of {length}"):
            at = np.flatnonzero(part_of == -2 - part)
            key = left[at].astype(np.int64) << 32 | right[at]
            order = np.argsort(key, kind="stable")  # texts of one n-gram stay in their order
            row = np.searchsorted(words.ends, at, "right").astype(np.int32)[order]
            at, key = at[order], key[order]
            new_key = np.diff(key, prepend=-1) != 0
            del order, key
            new_text = new_key | (np.diff(row, prepend=-1) != 0)
            rows, starts = row[new_text], np.flatnonzero(new_key[new_text])
            counts = np.diff(starts, append=len(rows))
            frequent = counts >= fewest
            number = np.where(frequent, known + np.cumsum(frequent) - 1, -1).astype(np.int32)
            following[at] = np.repeat(number, np.diff(np.flatnonzero(new_key), append=len(at)))
            known += int(frequent.sum())
            yield length, at[new_key][frequent], counts[frequent], rows[np.repeat(frequent, counts)]
        numbers = following
