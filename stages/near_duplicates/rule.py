"""When two texts are near-duplicates: a test in integers.

Two texts are near-duplicates when `rapidfuzz.fuzz.ratio(a, b) >= threshold`. With D their Indel distance (insertions
and deletions only) and L their summed length in code points, the ratio is 100 * (1 - D / L), so the rule is

    100 * D <= (100 - threshold) * L

without rounding. Two empty texts have D = L = 0 and fit it, as their ratio of 100 says.
"""

from typing import NamedTuple

from rapidfuzz.distance import Indel


class Pair(NamedTuple):
    """Two near texts by their positions, their Indel distance and their summed length in code points."""

    left: int
    right: int
    distance: int
    length: int

    @property
    def score(self) -> float:
        return score(self.distance, self.length)


def pair_of(left: int, right: int, one: str, other: str) -> Pair:
    return Pair(left, right, Indel.distance(one, other), len(one) + len(other))


def score(distance: int, length: int) -> float:
    """The ratio from 0 to 100, rounded down to hundredths: 100 is for equal texts alone."""
    return (10_000 * (length - distance) // length) / 100 if length else 100.0


def is_near(left: str, right: str, threshold: int) -> bool:
    """Whether `fuzz.ratio(left, right) >= threshold`, without rounding."""
    return 100 * Indel.distance(left, right) <= (100 - threshold) * (len(left) + len(right))
