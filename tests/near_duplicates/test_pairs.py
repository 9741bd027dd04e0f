from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz import fuzz

from stages.near_duplicates import pairs, sketched
from stages.near_duplicates.pairs import cross_pairs, near_pairs, nearest
from stages.near_duplicates.rule import Pair, is_near, score


def slow_indel(left: str, right: str) -> int:
    """Insertions and deletions that turn one text into the other, from the textbook recurrence."""
    previous = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        current = [i]
        for j, b in enumerate(right, start=1):
            current.append(previous[j - 1] if a == b else 1 + min(previous[j], current[j - 1]))
        previous = current
    return previous[-1]


def slow_pairs(left: Sequence[str], right: Sequence[str], threshold: int) -> list[Pair]:
    found = []
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            distance, length = slow_indel(a, b), len(a) + len(b)
            if 100 * distance <= (100 - threshold) * length:
                found.append(Pair(i, j, distance, length))
    return found


# Few letters make near texts likely; the others are two- and four-byte characters and a combining accent.
LETTERS = st.sampled_from("aab é́ßЖ漢😀")
TEXTS = st.one_of(
    st.text(LETTERS, max_size=12),
    st.text(LETTERS, min_size=18, max_size=22),
    st.integers(0, 40).map(lambda n: "x" * n),
    st.integers(0, 40).map(lambda n: "ab" * n + "c"),
    st.sampled_from(["\ud800", "\ud800" * 9, "\U0010ffff" * 20, "ﬁ" * 10]),
)
THRESHOLDS = st.one_of(st.just(90), st.integers(1, 100))


# Each way to join, with tiles so small that a few texts fill several of them.
@pytest.fixture(params=["brute", "brute, small tiles", "sketched", "sketched, small tiles"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "sketched" in request.param:
        monkeypatch.setattr(pairs, "_FEW", 0)
    if "small" in request.param:
        for module in (pairs, sketched):
            monkeypatch.setattr(module, "_HEIGHT", 2)
            monkeypatch.setattr(module, "_WIDTH", 3)
        monkeypatch.setattr(pairs, "_LONG", 5)
        monkeypatch.setattr(sketched, "_ALIGNED", 2)
        monkeypatch.setattr(sketched, "_BATCH", 3)


@pytest.mark.usefixtures("way")
def test_near_pairs_are_all_pairs_of_the_rule() -> None:
    @settings(max_examples=60, deadline=None)
    @given(texts=st.lists(TEXTS, max_size=14), threshold=THRESHOLDS)
    def check(texts: list[str], threshold: int) -> None:
        expected = [pair for pair in slow_pairs(texts, texts, threshold) if pair.left < pair.right]
        assert near_pairs(texts, threshold) == expected

    check()


@pytest.mark.usefixtures("way")
def test_cross_pairs_are_all_pairs_of_the_rule() -> None:
    @settings(max_examples=60, deadline=None)
    @given(left=st.lists(TEXTS, max_size=10), right=st.lists(TEXTS, max_size=10), threshold=THRESHOLDS)
    def check(left: list[str], right: list[str], threshold: int) -> None:
        assert cross_pairs(left, right, threshold) == slow_pairs(left, right, threshold)

    check()


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(TEXTS, max_size=14))
def test_near_pairs_are_those_of_fuzz_ratio_at_90(texts: list[str]) -> None:
    expected = {(i, j) for j in range(len(texts)) for i in range(j) if fuzz.ratio(texts[i], texts[j]) >= 90}
    assert {(pair.left, pair.right) for pair in near_pairs(texts, 90)} == expected


def edited(base: str, changes: int) -> str:
    """`base` with some of its letters replaced by one that it lacks: a distance of two for each."""
    return "#" * changes + base[changes:]


@pytest.mark.parametrize("length", [10, 20, 40, 400])
def test_a_ratio_of_exactly_90_is_near_and_the_next_below_is_not(length: int) -> None:
    base = "abcdefghij" * (length // 10)
    tie, below = edited(base, length // 10), edited(base, length // 10 + 1)
    assert fuzz.ratio(base, tie) == 90
    assert near_pairs([base, tie], 90) == [Pair(0, 1, 2 * (length // 10), 2 * length)]
    assert near_pairs([base, below], 90) == []


def test_a_ratio_that_rounds_up_to_90_is_not_near() -> None:
    # 19 of 181 code points differ: 89.5, which 8-bit scores show as 90.
    left, right = "a" * 100, "a" * 81
    assert 89.4 < fuzz.ratio(left, right) < 90
    assert near_pairs([left, right], 90) == []


def test_length_alone_can_make_an_exact_tie() -> None:
    # 9b = 11a, the edge of the length window.
    assert near_pairs(["a" * 9, "a" * 11], 90) == [Pair(0, 1, 2, 20)]
    assert cross_pairs(["a" * 11], ["a" * 9], 90) == [Pair(0, 0, 2, 20)]
    assert near_pairs(["a" * 9, "a" * 12], 90) == []


def test_empty_texts_equal_each_other_alone() -> None:
    assert near_pairs(["", "a", ""], 90) == [Pair(0, 2, 0, 0)]
    assert fuzz.ratio("", "") == 100


@given(left=TEXTS, right=TEXTS, data=st.data())
def test_texts_that_lose_as_much_at_their_ends_are_no_further_apart(left: str, right: str, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, min(len(left), len(right))))
    assert slow_indel(left[: len(left) - lost], right[: len(right) - lost]) <= slow_indel(left, right)


@given(left=TEXTS, right=TEXTS, threshold=THRESHOLDS)
def test_is_near_is_the_same_rule(left: str, right: str, threshold: int) -> None:
    assert is_near(left, right, threshold) == bool(slow_pairs([left], [right], threshold))


@given(length=st.integers(1, 2000), data=st.data())
def test_a_score_is_rounded_down(length: int, data: st.DataObject) -> None:
    distance = data.draw(st.integers(0, length))
    assert (score(distance, length) == 100) == (distance == 0)
    assert 0 <= 100 * (length - distance) - score(distance, length) * length < 0.01 * length + 1e-6


@pytest.mark.parametrize("tile", [1, 2, 10**6])
def test_the_nearest_is_the_first_of_the_highest_ratio(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_CANDIDATES", tile)
    monkeypatch.setattr(pairs, "_ROWS", tile)

    @settings(deadline=None)
    @given(texts=st.lists(TEXTS, max_size=6), candidates=st.lists(TEXTS, max_size=8))
    def check(texts: list[str], candidates: list[str]) -> None:
        found = nearest(texts, candidates, len(candidates))
        assert [pair.left for pair in found] == (list(range(len(texts))) if candidates else [])
        for pair in found:
            ratios = [fuzz.ratio(texts[pair.left], candidate) for candidate in candidates]
            assert pair.right == ratios.index(max(ratios))
            assert pair.score == pytest.approx(max(ratios), abs=0.01)

    check()
