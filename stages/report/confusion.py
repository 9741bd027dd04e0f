"""The confusion of labels: what the adapter answers for each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stages.report.formats import excerpt

_ALL_CLASSES = 12  # up to this many, the table shows every value


@dataclass(frozen=True)
class Confusion:
    """Counts by actual value (rows) and predicted value (columns); values without a mistake may be left out."""

    values: list[str]
    counts: list[list[int]]
    rows: int
    right: int
    left_out: int


def confusion(pairs: Sequence[tuple[str, str]]) -> Confusion | None:
    """Count (actual, predicted) pairs; None when there are none. Large tables keep the mistaken values alone."""
    if not pairs:
        return None
    counts = Counter(pairs)
    every = sorted({value for pair in pairs for value in pair})
    mistaken = {value for pair in pairs if pair[0] != pair[1] for value in pair}
    shown = every if len(every) <= _ALL_CLASSES else [value for value in every if value in mistaken]
    return Confusion(
        values=[excerpt(value, 40) if value else "(empty)" for value in shown],
        counts=[[counts[actual, predicted] for predicted in shown] for actual in shown],
        rows=len(pairs),
        right=sum(actual == predicted for actual, predicted in pairs),
        left_out=len(every) - len(shown),
    )
