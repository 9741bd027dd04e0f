"""The join for many texts against the plain one, and its bounds."""

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from rapidfuzz.distance import Indel
from variants import LATIN, MIXED, texts_with_variants

from stages.core.errors import UserError
from stages.near_duplicates import kernels, pairs, sketched
from stages.near_duplicates.pairs import cross_pairs, near_pairs, sorted_by_length, within_window
from stages.near_duplicates.rule import Pair

ROOT = Path(__file__).parents[2]


def by_brute_force(call: Any, *arguments: Any) -> list[Pair]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_FEW", 10**15)
        found: list[Pair] = call(*arguments)
    return found


@pytest.mark.parametrize("threshold", [1, 50, 75, 87, 88, 90, 97, 100])
@pytest.mark.parametrize(
    ("count", "length", "letters"),
    [(1500, 12, LATIN), (1200, 60, MIXED), (700, 150, LATIN), (90, 1400, LATIN), (60, 1300, MIXED)],
)
def test_the_pairs_are_those_of_brute_force(
    count: int, length: int, letters: str, threshold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if threshold == 1:
        count //= 10  # nearly every pair is near
    monkeypatch.setattr(pairs, "_FEW", 0)
    monkeypatch.setattr(pairs, "_LONG", 10)
    texts = texts_with_variants(count, length, letters)
    expected = by_brute_force(near_pairs, texts, threshold)
    assert near_pairs(texts, threshold) == expected
    assert expected, "a test without pairs shows nothing"
    left, right = texts[: count // 3], texts[count // 3 :]
    assert cross_pairs(left, right, threshold) == by_brute_force(cross_pairs, left, right, threshold)


LETTERS = st.sampled_from("aab é́漢😀")


@settings(max_examples=150, deadline=None)
@given(
    left=st.text(LETTERS, max_size=30) | st.text("ab", max_size=600),
    edits=st.lists(st.tuples(st.integers(0, 600), st.booleans(), LETTERS), max_size=25),
    q=st.sampled_from([2, 3]),
)
def test_no_pair_is_further_apart_by_a_bound_than_by_its_distance(
    left: str, edits: Sequence[tuple[int, bool, str]], q: int
) -> None:
    right = left
    for place, insert, letter in edits:
        right = right[:place] + letter + right[place:] if insert else right[:place] + right[place + 1 :]
    distance = Indel.distance(left, right)
    side = sorted_by_length([left, right])
    (bags,) = sketched.character_bags([side])
    assert np.abs(np.diff(bags.astype(int), axis=0)).sum() <= distance
    for words in (1, 4, 64, 256):
        full = sketched.sketches(side.texts, q, words)
        for first, second in (full, sketched.folded(full)):
            assert int(np.bitwise_count(first ^ second).sum()) <= (2 * q - 1) * distance


@njit  # type: ignore[untyped-decorator]
def within(bags: Any, strips: Any, strip: int, starts: Any, over: int) -> Any:
    return [kernels.within(bags, row, strips, strip, starts, starts.dtype.type(over)) for row in range(len(bags))]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@given(seed=st.integers(0, 2**32), most=st.sampled_from([3, 20, 255]), over=st.integers(0, 255))
@settings(max_examples=50, deadline=None)
def test_columns_within_a_bag_are_those_of_plain_sums(kind: Any, seed: int, most: int, over: int) -> None:
    draw = np.random.default_rng(seed)
    bags = draw.integers(0, most + 1, (100, kernels.BUCKETS)).astype(np.uint8)
    starts = draw.integers(0, most // 2 + 1, kernels.LANES).astype(kind)
    columns = np.zeros((2 * kernels.LANES, kernels.BUCKETS), int)
    columns[:100] = bags
    excess = np.maximum(bags.astype(int)[:, None] - columns[kernels.LANES :], 0).sum(axis=2)
    words = np.array(within(bags, sketched.in_strips(bags), 1, starts, over), np.uint64)
    found = np.unpackbits(words.view(np.uint8).reshape(len(bags), -1), axis=1, bitorder="little")
    assert np.array_equal(found, np.minimum(excess + starts, np.iinfo(kind).max) < over)


def test_repeated_grams_are_told_apart() -> None:
    """The parity of plain grams would say that these are the same."""
    first, second = sketched.sketches(["abc", "abc" + "abc" * 2], 3, 64)
    assert int(np.bitwise_count(first ^ second).sum()) == 6


def test_shuffled_texts_have_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_FEW", 0)
    texts = list(dict.fromkeys(texts_with_variants(400, 40, LATIN)))

    def named(order: list[str]) -> set[tuple[frozenset[str], int]]:
        return {(frozenset([order[p.left], order[p.right]]), p.distance) for p in near_pairs(order, 90)}

    assert named(texts) == named(random.Random(1).sample(texts, len(texts)))


@given(left=st.lists(st.text("a", max_size=30), max_size=20), right=st.lists(st.text("a", max_size=30), max_size=20))
def test_comparisons_are_the_pairs_that_lengths_allow(left: list[str], right: list[str]) -> None:
    def near(a: str, b: str) -> bool:
        return 90 * max(len(a), len(b)) <= 110 * min(len(a), len(b))

    one, other = sorted_by_length(left), sorted_by_length(right)
    assert within_window(one, other, 90) == sum(near(a, b) for a in left for b in right)
    assert within_window(one, one, 90) == sum(near(a, b) for i, a in enumerate(left) for b in left[:i])


@pytest.mark.parametrize("few", [0, 10**9])
def test_too_many_pairs_end_in_a_sentence(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_FEW", few)
    monkeypatch.setattr(pairs, "_MOST", 1000)
    with pytest.raises(UserError, match=r"more than 1,000 pairs .* raise dedup\.threshold"):
        near_pairs([f"Write a story about {number}" for number in range(100)], 80)


def test_numba_is_loaded_for_many_texts_alone() -> None:
    code = (
        "import sys; from stages.near_duplicates.pairs import near_pairs;"
        "near_pairs([str(n) for n in range(500)], 90); assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
