"""Agreement beyond chance, against published values and another library."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from stages.measure.review.__main__ import _squares, cohen_kappa, krippendorff_alpha

CATEGORIES = st.sampled_from(["win", "tie", "loss"])


def published() -> list[list[str]]:
    """Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units."""
    observers = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]
    units = zip(*(observer.split() for observer in observers), strict=True)
    return [[said for said in unit if said != "."] for unit in units]


def test_the_published_example_of_alpha() -> None:
    assert krippendorff_alpha(published()) == pytest.approx(0.743, abs=5e-4)


def test_the_textbook_example_of_kappa() -> None:
    """20 + 15 of 50 agree where chance alone gives half: (0.7 - 0.5) / (1 - 0.5)."""
    pairs = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    assert cohen_kappa(pairs) == pytest.approx(0.4)


@given(st.lists(st.tuples(CATEGORIES, CATEGORIES), min_size=2))
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    one, other = zip(*pairs, strict=True)
    found = cohen_kappa(pairs)
    if found is None:
        assert len({*one, *other}) == 1
    else:
        assert found == pytest.approx(cohen_kappa_score(one, other))


@given(st.lists(st.lists(CATEGORIES, max_size=4)))
def test_alpha_is_the_disagreement_over_all_pairs(units: list[list[str]]) -> None:
    """The definition, pair by pair: 1 - observed / expected disagreement."""
    rated = [unit for unit in units if len(unit) > 1]
    everything = [said for unit in rated for said in unit]
    of = len(everything)
    observed = sum(_unequal(unit) / (len(unit) - 1) for unit in rated)
    expected = _unequal(everything)
    found = krippendorff_alpha(units)
    if not expected:
        assert found is None
    else:
        assert found == pytest.approx(1 - (observed / of) / (expected / (of * (of - 1))))


def test_the_published_example_of_alpha_on_an_interval_scale() -> None:
    """The same observers and units, section E: 0.849."""
    assert krippendorff_alpha([[int(one) for one in unit] for unit in published()], _squares) == pytest.approx(
        0.849, abs=5e-4
    )


@given(st.lists(st.integers(1, 5), max_size=9))
def test_squares_are_those_of_all_pairs(said: list[int]) -> None:
    assert _squares(Counter(said)) == sum((a - b) ** 2 for a in said for b in said)


def _unequal(said: list[str]) -> int:
    return sum(a != b for i, a in enumerate(said) for j, b in enumerate(said) if i != j)


def test_perfect_and_undefined() -> None:
    assert cohen_kappa([("win", "win"), ("loss", "loss")]) == krippendorff_alpha([["a", "a"], ["b", "b"]]) == 1
    assert cohen_kappa([]) is krippendorff_alpha([]) is krippendorff_alpha([["a"], ["b"]]) is None
    assert cohen_kappa([("win", "win")] * 3) is None
