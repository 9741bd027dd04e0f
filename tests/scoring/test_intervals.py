"""Statistics against published values, SciPy, and an exact oracle in fractions."""

import math
from collections.abc import Callable
from dataclasses import astuple
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import bootstrap as scipy_bootstrap
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from stages.params.measure import Scoring
from stages.scoring.intervals import (
    bootstrap,
    independent_difference,
    mcnemar,
    mean_of,
    paired,
    paired_difference,
    proportion_interval,
)
from stages.scoring.summary import perplexity


def scoring(confidence: float, resamples: int, seed: int = 1) -> Scoring:
    return Scoring(confidence=confidence, resamples=resamples, seed=seed)


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
    assert proportion_interval(count, of, confidence) == pytest.approx((low, high), abs=5e-5)


@given(counts, st.floats(0.5, 0.999))
@settings(max_examples=60, deadline=None)
def test_interval_agrees_with_scipy(case: tuple[int, int], confidence: float) -> None:
    count, of = case
    theirs = binomtest(count, of).proportion_ci(confidence, method="exact")
    assert proportion_interval(count, of, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(st.integers(1, 40).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
@settings(max_examples=40, deadline=None)
def test_interval_ends_where_the_exact_tail_is_two_and_a_half_percent(case: tuple[int, int]) -> None:
    count, of = case
    low, high = proportion_interval(count, of, 0.95)
    if count > 0:
        assert float(at_least(count, of, Fraction(low))) == pytest.approx(0.025, rel=1e-9)
    if count < of:
        assert float(1 - at_least(count + 1, of, Fraction(high))) == pytest.approx(0.025, rel=1e-9)


@given(counts)
@settings(max_examples=60, deadline=None)
def test_interval_holds_the_measured_value_and_narrows_with_less_confidence(case: tuple[int, int]) -> None:
    count, of = case
    low, high = proportion_interval(count, of, 0.95)
    narrower = proportion_interval(count, of, 0.8)
    assert 0 <= low <= narrower[0] <= count / of <= narrower[1] <= high <= 1


@pytest.mark.parametrize("case", [(1, 0, 0.95), (0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0), (1, 5, 0.0)])
def test_interval_of_nonsense_is_refused(case: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        proportion_interval(*case)


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


@given(counts, st.floats(0.5, 0.999))
@settings(max_examples=60, deadline=None)
def test_wilson_agrees_with_statsmodels(case: tuple[int, int], confidence: float) -> None:
    count, of = case
    theirs = proportion_confint(count, of, alpha=1 - confidence, method="wilson")
    assert proportion_interval(count, of, confidence, "wilson") == pytest.approx(theirs, abs=1e-9)


def test_wilson_is_the_published_one() -> None:
    # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3
    assert proportion_interval(81, 263, 0.95, "wilson") == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert proportion_interval(0, 20, 0.95, "wilson") == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert proportion_interval(1, 29, 0.95, "wilson") == pytest.approx((0.0061, 0.1718), abs=5e-5)


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_mcnemar_agrees_with_statsmodels(won: int, lost: int) -> None:
    theirs = statsmodels_mcnemar([[5, lost], [won, 5]], exact=True).pvalue if won + lost else 1.0
    assert mcnemar(won, lost) == pytest.approx(theirs, rel=1e-9)


@given(counts, counts)
@settings(max_examples=60, deadline=None)
def test_difference_on_different_rows_agrees_with_statsmodels(one: tuple[int, int], other: tuple[int, int]) -> None:
    theirs = confint_proportions_2indep(*one, *other, method="newcomb", compare="diff")
    assert independent_difference(*one, *other, 0.95) == pytest.approx(theirs, abs=1e-9)


def test_difference_on_the_same_rows_is_the_published_one() -> None:
    # Fagerland, Lydersen & Laake (2014), Statistics in Medicine 33, 2850-2875: airway hyper-responsiveness
    # before and after stem cell transplantation (Bentur et al. 2009), 21 children: 1, 1, 7 and 12.
    assert paired_difference(1, 1, 7, 12, 0.95) == pytest.approx((-0.507, -0.026), abs=5e-4)


@given(*[st.integers(0, 50)] * 4)
@settings(max_examples=80, deadline=None)
def test_difference_on_the_same_rows_holds_the_measured_one_and_mirrors(a: int, b: int, c: int, d: int) -> None:
    if a + b + c + d == 0:
        return
    low, high = paired_difference(a, b, c, d, 0.95)
    assert -1 - 1e-9 <= low <= (b - c) / (a + b + c + d) <= high <= 1 + 1e-9
    assert paired_difference(a, c, b, d, 0.95) == pytest.approx((-high, -low))


@pytest.mark.parametrize("draw", [np.random.Generator.exponential, np.random.Generator.normal])
def test_bootstrap_agrees_with_scipy(draw: Callable[..., np.ndarray[tuple[int], np.dtype[np.float64]]]) -> None:
    values = draw(np.random.default_rng(3), size=50)
    value, low, high = astuple(bootstrap(mean_of(values), scoring(0.95, 20_000, 1)))
    theirs = scipy_bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    assert value == pytest.approx(values.mean())
    width = theirs.high - theirs.low
    assert [low, high] == pytest.approx([theirs.low, theirs.high], abs=0.03 * width)


def test_bootstrap_is_the_interval_of_all_samples_where_they_can_be_counted() -> None:
    """Three rows have 27 equally likely resamples; their mean's quantiles, with no skew and no bias to correct."""
    values = np.array([0.0, 1.0, 2.0])
    means = sorted(float(np.mean([a, b, c])) for a in values for b in values for c in values)
    _, low, high = astuple(bootstrap(mean_of(values), scoring(0.8, 50_000, 1)))
    assert [low, high] == pytest.approx(np.quantile(means, [0.1, 0.9]), abs=0.01)


def test_bootstrap_follows_from_its_seed_and_not_from_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = mean_of(np.random.default_rng(0).random(40))
    first = bootstrap(corpus, scoring(0.95, 500, 1))
    assert bootstrap(corpus, scoring(0.95, 500, 1)) == first
    assert bootstrap(corpus, scoring(0.95, 500, 2)) != first
    monkeypatch.setattr("stages.scoring.intervals._CELLS_AT_ONCE", 40 * 7)
    assert bootstrap(corpus, scoring(0.95, 500, 1)) == first


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    inside = 0
    for _ in range(200):
        _, low, high = astuple(bootstrap(mean_of(random.exponential(size=60)), scoring(0.9, 400, 1)))
        inside += low <= 1.0 <= high
    assert 165 <= inside <= 193  # 180 wanted; outside this range less than once in 200 runs


def test_paired_bootstrap_sees_a_shift_that_unpaired_rows_would_hide() -> None:
    hard = np.random.default_rng(4).normal(size=60) * 5
    before, after = mean_of(hard), mean_of(hard + 0.2 + 0.05 * np.random.default_rng(5).normal(size=60))
    value, low, high = astuple(bootstrap(paired(before, after), scoring(0.95, 1000, 1)))
    assert 0.1 < low < value < high < 0.3


@pytest.mark.parametrize("rows", [1, 3, 48, 400])
def test_rows_that_are_all_alike_are_no_proof_where_the_metric_has_limits(rows: int) -> None:
    right = astuple(bootstrap(mean_of([1.0] * rows, (0, 1)), scoring(0.95, 200, 1)))
    assert right == pytest.approx((1.0, proportion_interval(rows, rows, 0.95)[0], 1.0))
    wrong = astuple(bootstrap(mean_of([0.0] * rows, (0, 1)), scoring(0.95, 200, 1)))
    assert wrong == pytest.approx((0.0, 0.0, proportion_interval(0, rows, 0.95)[1]))
    before = after = mean_of([k % 2 for k in range(2 * rows)], (0, 1))
    value, low, high = astuple(bootstrap(paired(before, after), scoring(0.95, 200, 1)))
    assert (value, low) == (0.0, -high)
    assert high == pytest.approx(proportion_interval(0, 2 * rows, 0.95)[1])


def test_rows_that_are_all_alike_have_an_interval_without_width_where_there_are_no_limits() -> None:
    assert astuple(bootstrap(mean_of([2.0] * 5), scoring(0.95, 200, 1))) == (2.0, 2.0, 2.0)
    assert astuple(bootstrap(mean_of([2.0]), scoring(0.95, 200, 1))) == (2.0, 2.0, 2.0)


@given(
    st.lists(st.tuples(st.floats(0, 690), st.floats(0, 690), st.integers(1, 500)), min_size=1, max_size=12),
    st.sampled_from([0.500001, 0.95, 0.9999]),
)
@pytest.mark.filterwarnings("error")
def test_of_a_model_that_diverged_every_number_is_finite(
    rows: list[tuple[float, float, int]], confidence: float
) -> None:
    """JSON has no word for infinity, so that one overflow would lose all that was measured."""
    before, after = (perplexity([row[side] * row[2] for row in rows], [row[2] for row in rows]) for side in (0, 1))
    settings = scoring(confidence, 100)
    for corpus in (before, after, paired(before, after, np.divide), paired(before, after)):
        value, low, high = astuple(bootstrap(corpus, settings))
        assert all(map(math.isfinite, (value, low, high)))
        assert low <= high


@given(counts, counts, st.sampled_from([0.500001, 0.9999, 1 - 1e-12]))
@pytest.mark.filterwarnings("error")
def test_intervals_are_finite_at_every_confidence_that_can_be_set(
    one: tuple[int, int], other: tuple[int, int], confidence: float
) -> None:
    """The largest is what many groups make of it: theirs is the confidence of all pairs together."""
    low, high = independent_difference(*one, *other, confidence)
    assert -1 <= low <= one[0] / one[1] - other[0] / other[1] <= high <= 1
    for method in ("exact", "wilson"):
        low, high = proportion_interval(*one, confidence, method)
        assert -1e-12 <= low <= one[0] / one[1] + 1e-12
        assert one[0] / one[1] - 1e-12 <= high <= 1 + 1e-12
