import re
from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.prepare.checks.ngrams import distinct, ngrams, read_words
from stages.records.record import make_record

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


@given(texts=TEXTS, fewest=st.integers(1, 4), more=st.integers(0, 6))
def test_the_rows_of_every_ngram_are_those_of_looking_at_all(texts: list[str], fewest: int, more: int) -> None:
    words = read_words([make_record(text, "{}", None, "raw", "raw.jsonl:1") for text in texts])
    found = {tuple(rows.tolist()): gram for gram, rows in ngrams(words, fewest, fewest + more)}
    assert {rows: len(gram) for rows, gram in found.items()} == slowly(texts, fewest, fewest + more)
    for rows, gram in found.items():
        text = " ".join(words.names[word] for word in gram)
        assert all(f" {text} " in f" {texts[row]} " for row in rows)


@given(texts=TEXTS)
def test_distinct_words_of_each_row(texts: list[str]) -> None:
    words = read_words([make_record(text, "{}", None, "raw", "raw.jsonl:1") for text in texts])
    once = distinct(words)
    for row, text in enumerate(texts):
        mine = once.flat[once.starts[row] : once.starts[row + 1]]
        assert sorted(once.names[word] for word in mine) == sorted(set(text.split()))
    assert isinstance(once.starts, np.ndarray)
    assert len(once.starts) == len(texts) + 1
