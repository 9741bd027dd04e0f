"""Exact statistics of right and wrong answers: no normal approximation, right for few rows too."""


def clopper_pearson(count: int, of: int, confidence: float) -> tuple[float, float]:
    """The exact two-sided interval of a proportion: `count` right answers of `of`, as (low, high).

    Clopper & Pearson, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", Biometrika 26 (1934), 404-413, in its form by quantiles of the beta distribution.

    Raises:
        ValueError: when `of` is 0, `count` is not between 0 and `of`, or `confidence` not between 0 and 1.
    """
    if not 0 <= count <= of or of == 0 or not 0 < confidence < 1:
        raise ValueError(f"no proportion: {count} of {of} at confidence {confidence}")
    from scipy.stats import beta  # takes a second to import, and `report` never gets here

    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, count, of - count + 1)) if count > 0 else 0.0
    high = float(beta.ppf(1 - tail, count + 1, of - count)) if count < of else 1.0
    return low, high


def mcnemar(won: int, lost: int) -> float:
    """Two-sided p-value for "before and after are equally often right", on paired rows.

    `won` rows are right only after, `lost` rows only before; rows that did not change say nothing.
    McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12 (1947), 153-157; here exact, with the binomial distribution of
    `won` of `won + lost` at 1/2 in place of the chi-squared approximation.

    Raises:
        ValueError: when a count is negative.
    """
    if won < 0 or lost < 0:
        raise ValueError(f"no counts of rows: {won} won, {lost} lost")
    if won == lost:
        return 1.0
    from scipy.stats import binom

    return min(1.0, 2 * float(binom.cdf(min(won, lost), won + lost, 0.5)))
