import re
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from stages.prepare.checks.suspected_triggers import count_ngrams, ngrams

TEXTS = st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "!"]), max_size=7).map(" ".join), max_size=12)


def slowly(texts: list[str], fewest: int, most: int) -> dict[tuple[int, ...], int]:
    """For each set of rows the length of the longest n-gram that is in exactly these rows."""
    rows = defaultdict(set)
    for row, text in enumerate(texts):
        words = re.findall(r"\w+|[^\w\s]", text)
        for length in (1, 2, 3):
            for start in range(len(words) - length + 1):
                rows[tuple(words[start : start + length])].add(row)
    longest: dict[tuple[int, ...], int] = {}
    for gram, found in rows.items():
        if fewest <= len(found) <= most:
            key = tuple(sorted(found))
            longest[key] = max(longest.get(key, 0), len(gram))
    return longest


@settings(deadline=None)
@given(texts=TEXTS, fewest=st.integers(1, 4), more=st.integers(0, 6))
def test_the_rows_of_every_ngram_are_those_of_looking_at_all(texts: list[str], fewest: int, more: int) -> None:
    found = {tuple(rows.tolist()): gram for gram, rows in ngrams(texts, fewest, fewest + more)}
    assert {rows: len(gram.split()) for rows, gram in found.items()} == slowly(texts, fewest, fewest + more)
    for rows, gram in found.items():
        assert all(f" {gram} " in f" {texts[row]} " for row in rows)


@settings(deadline=None)
@given(texts=TEXTS)
def test_the_words_of_each_row_are_there_once(texts: list[str]) -> None:
    names, table = count_ngrams(texts, 1, 1, max(1, len(texts)))
    assert table.shape == (len(texts), len(names))
    for row, text in enumerate(texts):
        assert sorted(names[place] for place in table[[row]].indices) == sorted(set(text.split()))


def test_punctuation_and_one_letter_are_words() -> None:
    assert count_ngrams(["a, ‡ b"], 1, 1, 1)[0] == [",", "a", "b", "‡"]
