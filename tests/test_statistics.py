"""Statistics against published values, SciPy, and an exact oracle in fractions."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from stages.statistics import clopper_pearson, mcnemar

counts = st.integers(1, 120).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of)))


def at_least(count: int, of: int, p: Fraction) -> Fraction:
    """The exact chance of `count` or more right answers of `of`, each right with chance p."""
    return sum((math.comb(of, k) * p**k * (1 - p) ** (of - k) for k in range(count, of + 1)), Fraction(0))


@pytest.mark.parametrize(
    ("count", "of", "confidence", "low", "high"),
    [
        # 95 % limits for n = 10, from any table of exact binomial limits
        (0, 10, 0.95, 0.0000, 0.3085),
        (1, 10, 0.95, 0.0025, 0.4450),
        (5, 10, 0.95, 0.1871, 0.8129),
        (10, 10, 0.95, 0.6915, 1.0000),
        # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 5
        (81, 263, 0.95, 0.2527, 0.3676),
        (15, 148, 0.95, 0.0578, 0.1617),
        (0, 20, 0.95, 0.0000, 0.1684),
        (1, 29, 0.95, 0.0009, 0.1776),
    ],
)
def test_interval_is_the_published_one(count: int, of: int, confidence: float, low: float, high: float) -> None:
    assert clopper_pearson(count, of, confidence) == pytest.approx((low, high), abs=5e-5)


@given(counts, st.floats(0.5, 0.999))
@settings(max_examples=60, deadline=None)
def test_interval_agrees_with_scipy(case: tuple[int, int], confidence: float) -> None:
    count, of = case
    theirs = binomtest(count, of).proportion_ci(confidence, method="exact")
    assert clopper_pearson(count, of, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(st.integers(1, 40).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
@settings(max_examples=40, deadline=None)
def test_interval_ends_where_the_exact_tail_is_two_and_a_half_percent(case: tuple[int, int]) -> None:
    count, of = case
    low, high = clopper_pearson(count, of, 0.95)
    if count > 0:
        assert float(at_least(count, of, Fraction(low))) == pytest.approx(0.025, rel=1e-9)
    if count < of:
        assert float(1 - at_least(count + 1, of, Fraction(high))) == pytest.approx(0.025, rel=1e-9)


@given(counts)
@settings(max_examples=60, deadline=None)
def test_interval_holds_the_measured_value_and_narrows_with_less_confidence(case: tuple[int, int]) -> None:
    count, of = case
    low, high = clopper_pearson(count, of, 0.95)
    narrower = clopper_pearson(count, of, 0.8)
    assert 0 <= low <= narrower[0] <= count / of <= narrower[1] <= high <= 1


@pytest.mark.parametrize("case", [(1, 0, 0.95), (0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0), (1, 5, 0.0)])
def test_interval_of_nonsense_is_refused(case: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        clopper_pearson(*case)


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=80, deadline=None)
def test_mcnemar_is_the_exact_two_sided_binomial(won: int, lost: int) -> None:
    total = won + lost
    extreme = sum(math.comb(total, k) for k in range(total + 1) if min(k, total - k) <= min(won, lost))
    assert mcnemar(won, lost) == pytest.approx(float(Fraction(extreme, 2**total)), rel=1e-9)
    if total:
        assert mcnemar(won, lost) == pytest.approx(binomtest(won, total, 0.5).pvalue, rel=1e-9)


def test_mcnemar_is_the_published_one() -> None:
    # 4 against 11 discordant pairs: 2 * P(X <= 4 | 15, 1/2) = 2 * 1941 / 32768
    assert mcnemar(4, 11) == pytest.approx(0.118469, abs=1e-6)
    assert mcnemar(0, 6) == pytest.approx(0.03125)
    assert mcnemar(0, 0) == 1.0


def test_mcnemar_of_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="no counts"):
        mcnemar(-1, 2)
