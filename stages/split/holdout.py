"""The draw of the hold-out, and what groups of near-duplicates kept from it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from stages.records import Record
from stages.split.strata import Label, ideals, near_groups, quotas, take_groups


@dataclass(frozen=True, slots=True)
class Stratum:
    """One label: its rows, the exact share of them that was wanted, the whole number aimed at, and the rows drawn."""

    label: Label
    rows: int
    ideal: Fraction
    quota: int
    drawn: int


def draw_holdout(
    records: Sequence[Record], threshold: int, share: float, max_rows: int, seed: int
) -> tuple[list[Record], list[Stratum]]:
    """Draw `share` of the records, at most `max_rows`, by label and in whole groups of near-duplicates.

    Returns the drawn records sorted by id, and one line for each label. Where `drawn` is below `quota`, the groups
    that are left were too large.
    """
    if not records:
        return [], []
    # By way of its text, 0.15 is 15/100 and not the binary number beside it.
    wanted = min(Fraction(str(share)), Fraction(max_rows, len(records)))
    ideal = ideals(records, wanted)
    quota = quotas(ideal, seed, "hold-out")
    drawn = take_groups(near_groups(records, threshold), quota, seed, "hold-out")
    rows, found = Counter(row.label for row in records), Counter(row.label for row in drawn)
    labels = sorted(rows, key=lambda label: (label is None, label or ""))
    return drawn, [Stratum(label, rows[label], ideal[label], quota[label], found[label]) for label in labels]


def table(strata: Sequence[Stratum]) -> Iterator[str]:
    """The lines of a table with one line for each label and the sum."""
    names = [label_name(stratum.label) for stratum in strata]
    width = max(map(len, [*names, "all"]))
    yield f"{'label':{width}}  {'rows':>7}  {'ideal':>8}  {'drawn':>7}  {'kept back by groups':>19}"
    for name, s in zip(names, strata, strict=True):
        yield f"{name:{width}}  {s.rows:7}  {float(s.ideal):8.2f}  {s.drawn:7}  {s.quota - s.drawn:19}"
    rows, drawn, missed = (sum(n) for n in zip(*((s.rows, s.drawn, s.quota - s.drawn) for s in strata), strict=True))
    ideal = float(sum(stratum.ideal for stratum in strata))
    yield f"{'all':{width}}  {rows:7}  {ideal:8.2f}  {drawn:7}  {missed:19}"


def label_name(label: Label) -> str:
    return "(no label)" if label is None else label
