"""How far reviewers agree beyond chance."""

from collections import Counter
from collections.abc import Iterable, Sequence


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Agreement of two raters, from one pair of categories for each unit that both rated; 1 is perfect, 0 is chance.

    Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20 (1960),
    37-46. None where it is not defined: no units, or both raters say one and the same throughout.
    """
    if not pairs:
        return None
    of = len(pairs)
    observed = sum(one == other for one, other in pairs) / of
    left, right = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    expected = sum(left[category] * right[category] for category in left) / of**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(units: Iterable[Sequence[str]]) -> float | None:
    """Agreement of any number of raters, each unit with the categories of those who rated it; nominal scale.

    Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C. Units with one rating are left out.
    None where it is not defined: fewer than two ratings to pair, or one category throughout.
    """
    rated = [Counter(unit) for unit in units if len(unit) > 1]
    totals = sum(rated, Counter[str]())
    of = totals.total()
    expected = of**2 - sum(count**2 for count in totals.values())
    if not expected:
        return None
    observed = sum(
        (unit.total() ** 2 - sum(count**2 for count in unit.values())) / (unit.total() - 1) for unit in rated
    )
    return 1 - (of - 1) * observed / expected
