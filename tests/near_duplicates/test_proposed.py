import pytest
from rapidfuzz import fuzz
from variants import LATIN, MIXED, texts_with_variants

from stages.near_duplicates import near_pairs, proposed, proposed_pairs
from stages.near_duplicates.sides import sorted_by_length


@pytest.mark.parametrize(("length", "letters"), [(60, LATIN), (150, MIXED)])
def test_most_near_pairs_are_found_and_no_others(length: int, letters: str) -> None:
    texts = list(dict.fromkeys(texts_with_variants(900, length, letters)))
    exact, found = near_pairs(texts, 90), proposed_pairs(texts, 90)
    assert set(found) <= set(exact)
    assert found == sorted(set(found))
    assert 0.8 * len(exact) < len(found)
    assert len(exact) > 100


def test_texts_that_share_all_bands_take_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts without a trigram have all hashes in common."""
    monkeypatch.setattr(proposed, "_REACH", 2)
    texts = sorted({a + b for a in "abcdefgh" for b in "abcdefgh"})
    side = sorted_by_length(texts)
    assert sum(map(len, proposed.join(side, 50))) <= 2 * len(texts)
    assert all(fuzz.ratio(texts[pair.left], texts[pair.right]) >= 50 for pair in proposed_pairs(texts, 50))


def test_no_and_empty_texts() -> None:
    assert proposed_pairs([], 90) == []
    assert len(proposed_pairs(["", ""], 90)) == 1
