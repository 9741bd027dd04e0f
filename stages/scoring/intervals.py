"""Intervals and tests that decide: exact or score-based for proportions, the paired bootstrap for all else."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.params.measure import Scoring
from stages.scoring.metrics import Interval, Share

Array = NDArray[np.float64]
_CELLS_AT_ONCE = 1 << 22  # of the table resamples x rows: 32 MiB


def share(answers: Iterable[bool], confidence: float) -> Share:
    """The proportion of right answers with its exact interval. Raises ValueError when there are no answers."""
    right = list(answers)
    return Share(sum(right), len(right), *proportion_interval(sum(right), len(right), confidence))


def proportion_interval(
    count: int, n: int, confidence: float, method: Literal["exact", "wilson"] = "exact"
) -> tuple[float, float]:
    """The two-sided interval of `count` right answers of `n`, as (low, high), by scipy.

    Exact: Clopper & Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
    Biometrika 26 (1934), 404-413. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927), 209-212: narrower; the block that Newcombe builds on.
    Raises ValueError when `n` is 0, `count` is not between 0 and `n`, or `confidence` not between 0 and 1.
    """
    if not 0 <= count <= n or n == 0 or not 0 < confidence < 1:
        raise ValueError(f"no proportion: {count} of {n} at confidence {confidence}")
    from scipy.stats import binomtest  # takes a second to import, and `report` never gets here

    found = binomtest(count, n).proportion_ci(confidence, method=method)
    return float(found.low), float(found.high)


def mcnemar(won: int, lost: int) -> float:
    """Two-sided p-value for "before and after are equally often right", on paired rows.

    `won` rows are right only after, `lost` rows only before; rows that did not change say nothing.
    McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12 (1947), 153-157; here exact, with the binomial distribution of
    `won` of `won + lost` at 1/2 in place of the chi-squared approximation.
    """
    if won == lost:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(won, won + lost).pvalue)


def paired_difference(both: int, won: int, lost: int, neither: int, confidence: float) -> tuple[float, float]:
    """The interval of a proportion's change (after less before) on the same rows, as (low, high).

    `both` rows are right before and after, `won` only after, `lost` only before. Newcombe, "Improved
    confidence intervals for the difference between binomial proportions based on paired data",
    Statistics in Medicine 17 (1998), 2635-2650, method 10. The bootstrap has no width where no row
    changed, as if that proved that none ever will; this has.
    """
    n = both + won + lost + neither
    after, before = both + won, both + lost
    after_low, after_high = proportion_interval(after, n, confidence, "wilson")
    before_low, before_high = proportion_interval(before, n, confidence, "wilson")
    product = after * (n - after) * before * (n - before)
    excess = float(both * neither - won * lost)
    if excess > 0:  # a correction for continuity, which the method asks for in this case alone
        excess = max(excess - n / 2, 0.0)
    phi = excess / math.sqrt(product) if product else 0.0
    p, q = after / n, before / n

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))

    return p - q - reach(p - after_low, before_high - q), p - q + reach(after_high - p, q - before_low)


def independent_difference(
    count: int, n: int, other_count: int, other_n: int, confidence: float
) -> tuple[float, float]:
    """The interval of the difference of two proportions on different rows (first less second).

    Newcombe, "Interval estimation for the difference between independent proportions: comparison of
    eleven methods", Statistics in Medicine 17 (1998), 873-890, method 10.
    """
    p, q = count / n, other_count / other_n
    low, high = proportion_interval(count, n, confidence, "wilson")
    other_low, other_high = proportion_interval(other_count, other_n, confidence, "wilson")
    return p - q - math.hypot(p - low, other_high - q), p - q + math.hypot(high - p, q - other_low)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A metric of a set of rows that follows from sums over them, as means, perplexity, F1 and BLEU do.

    Attributes:
        rows: what each row adds to the sums; rows x sums.
        value: the metric of many sums at once; (many x sums) to (many).
        limits: the least and the largest value that the metric can have, None where it has no such limits.
    """

    rows: Array
    value: Callable[[Array], Array]
    limits: tuple[float, float] | None = None

    def estimate(self) -> float:
        return float(self.value(self.rows.sum(axis=0)[None])[0])


def mean_of(values: Any, limits: tuple[float, float] | None = None) -> Corpus:
    """The mean of one number a row."""
    numbers = np.asarray(list(values), dtype=np.float64)
    return Corpus(np.column_stack([numbers, np.ones(len(numbers))]), lambda sums: sums[:, 0] / sums[:, 1], limits)


def paired(before: Corpus, after: Corpus, change: Callable[[Array, Array], Array] = np.subtract) -> Corpus:
    """The change of a metric on the same rows in the same order: change(after, before).

    A resample draws each row's two sides together, which is what makes the bootstrap paired.
    """
    width, limits = before.rows.shape[1], None
    if before.limits and after.limits and change is np.subtract:
        limits = after.limits[0] - before.limits[1], after.limits[1] - before.limits[0]
    return Corpus(
        np.hstack([before.rows, after.rows]),
        lambda sums: change(after.value(sums[:, width:]), before.value(sums[:, :width])),
        limits,
    )


def bootstrap(corpus: Corpus, scoring: Scoring) -> Interval:
    """The metric and its bias-corrected and accelerated bootstrap interval.

    Efron, "Better bootstrap confidence intervals", Journal of the American Statistical Association 82
    (1987), 171-185; the acceleration from the jackknife, as in Efron & Tibshirani, "An Introduction to
    the Bootstrap" (1993), 14.3. Rows that are all alike give the same value in every resample, as if
    that proved that no other row ever comes. Where the metric has limits, the interval then reaches as
    far towards them as rows unlike all of these may be frequent: for n right answers of n that is
    Clopper and Pearson's interval. Without limits it has no width.
    """
    from scipy.special import ndtr, ndtri

    confidence, resamples = scoring.confidence, scoring.resamples
    estimate = corpus.estimate()
    draws = np.concatenate([corpus.value(w @ corpus.rows) for w in _weights(len(corpus.rows), resamples, scoring.seed)])
    if np.ptp(draws) <= 1e-12 * abs(estimate):
        unseen = 1 - ((1 - confidence) / 2) ** (1 / len(corpus.rows))
        least, most = corpus.limits or (estimate, estimate)
        return Interval(estimate, estimate - unseen * (estimate - least), estimate + unseen * (most - estimate))
    below = ((draws < estimate).mean() + (draws <= estimate).mean()) / 2
    bias = ndtri(min(max(below, 0.5 / resamples), 1 - 0.5 / resamples))
    moved = bias + ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = np.quantile(draws, ndtr(bias + moved / np.maximum(1 - _acceleration(corpus) * moved, 1e-3)))
    return Interval(estimate, float(low), float(high))


def _weights(rows: int, resamples: int, seed: int) -> Iterable[Array]:
    """How often each resample draws each row, in blocks of resamples x rows; the same for the same arguments."""
    return _one_block(rows, resamples, seed) if rows * resamples <= _CELLS_AT_ONCE else _drawn(rows, resamples, seed)


@lru_cache(maxsize=1)
def _one_block(rows: int, resamples: int, seed: int) -> list[Array]:
    """Kept, since a stage asks for many intervals of the same rows: drawing takes longer than all the rest of one."""
    return list(_drawn(rows, resamples, seed))


def _drawn(rows: int, resamples: int, seed: int) -> Iterator[Array]:
    random = np.random.default_rng(seed)
    block = max(1, _CELLS_AT_ONCE // rows)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        yield random.multinomial(rows, np.full(rows, 1 / rows), size=size).astype(np.float64)


def _acceleration(corpus: Corpus) -> float:
    """How the metric's spread changes with its value, from leaving out each row once."""
    left_out = corpus.value(corpus.rows.sum(axis=0) - corpus.rows)
    distance = left_out.mean() - left_out
    largest = float(np.abs(distance).max())
    if not largest:
        return 0.0
    distance = distance / largest  # the measure has no scale, and the cube of a large perplexity is no float
    return float((distance**3).sum() / (6 * (distance**2).sum() ** 1.5))
