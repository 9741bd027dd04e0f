from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from stages.prepare.checks import ngrams as counting
from stages.prepare.checks.ngrams import ngrams, numbered

PATTERN = r"\w+|[^\w\s]"
WORDS = st.sampled_from(["a", "b", "c", "B", "!", "ä", "a\u0308", "‡", "是", "x_1", "\U0001f600", "\u200d"])
TEXTS = st.lists(st.one_of(st.lists(WORDS, max_size=7).map(" ".join), st.text(max_size=12)), max_size=12)


def counted(texts: list[str], longest: int, fewest: int, most: int) -> dict[str, tuple[int, ...]]:
    """The rows of every n-gram that scikit-learn finds in so many texts."""
    counter = CountVectorizer(
        token_pattern=PATTERN, lowercase=False, ngram_range=(1, longest), min_df=fewest, max_df=most, binary=True
    )
    try:
        columns = counter.fit_transform(texts).tocsc()
    except ValueError:  # no word, or no n-gram is so frequent
        return {}
    columns.sort_indices()
    borders = zip(columns.indptr, columns.indptr[1:], strict=False)
    rows = [tuple(columns.indices[first:last].tolist()) for first, last in borders]
    return dict(zip(counter.get_feature_names_out(), rows, strict=True))


def slowly(texts: list[str], fewest: int, most: int) -> dict[str, tuple[int, ...]]:
    """The last of the longest n-grams of the same rows."""
    grams = defaultdict(list)
    for gram, rows in counted(texts, 3, fewest, most).items():
        grams[rows].append(gram)
    return {max(same, key=lambda gram: (gram.count(" "), gram)): rows for rows, same in grams.items()}


@settings(deadline=None)
@given(texts=TEXTS, fewest=st.integers(1, 4), more=st.integers(0, 6), part=st.sampled_from([1, 2, 5, 1 << 22]))
def test_ngrams_and_their_rows_are_those_of_scikit_learn(texts: list[str], fewest: int, more: int, part: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_PART", part)
        count, found = ngrams(numbered(texts), fewest, fewest + more)
    assert {gram: tuple(rows.tolist()) for gram, rows in found} == slowly(texts, fewest, fewest + more)
    assert count == len(found)


@settings(deadline=None)
@given(texts=TEXTS, part=st.sampled_from([1, 3, 1 << 22]))
def test_the_words_of_each_row_are_those_of_scikit_learn(texts: list[str], part: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_PART", part)
        words = numbered(texts)
        table = words.table()
    expected = counted(texts, 1, 1, max(1, len(texts)))
    assert words.names == list(expected)
    assert table.shape == (len(texts), len(expected))
    assert table.has_sorted_indices
    columns = table.tocsc()
    rows = [tuple(columns[:, [place]].indices.tolist()) for place in range(len(expected))]
    assert rows == list(expected.values())
    assert set(table.data.tolist()) <= {1}


def test_many_texts_of_few_words() -> None:
    draw = np.random.default_rng(1)
    texts = [" ".join(map(str, draw.zipf(1.5, draw.integers(0, 30)) % 500)) for _ in range(2000)]
    found = {gram: tuple(rows.tolist()) for gram, rows in ngrams(numbered(texts), 5, 100)[1]}
    assert found == slowly(texts, 5, 100)
    count, even = ngrams(numbered(texts), 5, 100, lambda rows, counts: rows[counts.cumsum() - counts] % 2 == 0)
    assert {gram: tuple(rows.tolist()) for gram, rows in even} == {g: r for g, r in found.items() if r[0] % 2 == 0}
    assert count == len(found)
    assert any(gram.count(" ") == 2 for gram in found)


def test_punctuation_and_one_letter_are_words() -> None:
    assert numbered(["a, ‡ b"]).names == [",", "a", "b", "‡"]


@pytest.mark.parametrize("texts", [[], [""], [" ", "\n"]])
def test_no_text_and_texts_without_words(texts: list[str]) -> None:
    assert ngrams(numbered(texts), 1, 9) == (0, [])
    assert numbered(texts).table().shape == (len(texts), 0)
