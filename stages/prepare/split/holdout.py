"""The draw of the hold-out, and what groups of near-duplicates kept from it."""

from collections.abc import Iterator, Sequence
from fractions import Fraction

from stages.prepare.split.nearness import Nearness, near_groups
from stages.prepare.split.strata import Stratum, draw, label_name
from stages.records.record import Record


def draw_holdout(
    records: Sequence[Record], nearness: Nearness, share: float, max_rows: int, seed: int
) -> tuple[list[Record], list[Stratum]]:
    """Draw `share` of the records, at most `max_rows`, by label and in whole groups of near-duplicates."""
    if not records:
        return [], []
    # By way of its text, 0.15 is 15/100 and not the binary number beside it.
    wanted = min(Fraction(str(share)), Fraction(max_rows, len(records)))
    return draw(near_groups(records, nearness), wanted, seed, "hold-out")


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
