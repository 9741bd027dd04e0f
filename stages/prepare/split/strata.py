"""Draws that keep the shares of the labels and never part near-duplicates: the hold-out, validation and folds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from stages.core.errors import UserError
from stages.records.content_order import rank
from stages.records.record import Record

Label = str | None
Group = Sequence[Record]


@dataclass(frozen=True, slots=True)
class Stratum:
    """One label: its rows, the exact share of them that was wanted, the whole number aimed at, and the rows drawn."""

    label: Label
    rows: int
    ideal: Fraction
    quota: int
    drawn: int


def label_name(label: Label) -> str:
    return "(no label)" if label is None else label


def stratified_draw(
    groups: Sequence[Group], share: Fraction, seed: int, purpose: str
) -> tuple[list[Record], list[Stratum]]:
    """Draw `share` of the records by label and in whole groups.

    Returns the drawn records sorted by id, and one line for each label. A label without near-duplicates is drawn to
    within one row of its share. Where `drawn` is below `quota`, no group that is left fits.
    """
    rows = Counter(record.label for group in groups for record in group)
    ideal = {label: count * share for label, count in rows.items()}
    quota = quotas(ideal, seed, purpose)
    drawn = take_groups(groups, quota, seed, purpose)
    found = Counter(row.label for row in drawn)
    labels = sorted(rows, key=lambda label: (label is None, label or ""))
    return drawn, [Stratum(label, rows[label], ideal[label], quota[label], found[label]) for label in labels]


def quotas(ideal: Mapping[Label, Fraction], seed: int, purpose: str) -> dict[Label, int]:
    """Whole numbers within one of `ideal`, whose sum is the rounded sum of `ideal` (largest remainders, Hamilton).

    Equal remainders go by the seed, so that no label wins by its name.
    """
    whole = {label: int(amount) for label, amount in ideal.items()}
    left = int(sum(ideal.values()) + Fraction(1, 2)) - sum(whole.values())
    first = sorted(ideal, key=lambda label: (whole[label] - ideal[label], rank(seed, f"{purpose} label", repr(label))))
    for label in first[:left]:
        whole[label] += 1
    return whole


def take_groups(groups: Iterable[Group], quota: Mapping[Label, int], seed: int, purpose: str) -> list[Record]:
    """Take whole groups in a seeded order, each that fits into what is left of the quota of all its labels.

    A group's place is that of its first record, so the draw depends on no order and a new record moves few. No
    quota is exceeded, and none misses as many rows as the smallest group of its label alone that was not taken.
    """
    left = Counter(quota)
    taken: list[Record] = []
    for group in in_seeded_order(groups, seed, purpose):
        need = Counter(row.label for row in group)
        if all(left[label] >= count for label, count in need.items()):
            left -= need
            taken += group
    return sorted(taken, key=lambda record: record.id)


def in_seeded_order(groups: Iterable[Group], seed: int, purpose: str) -> list[Group]:
    return sorted(groups, key=lambda group: min(rank(seed, purpose, row.id) for row in group))


def make_folds(groups: Sequence[Group], count: int, seed: int) -> list[list[Record]]:
    """Part the records into `count` folds of like shares of the labels, in whole groups (StratifiedGroupKFold).

    How far groups prevent equal shares, the metrics say.

    Raises:
        UserError: when there are fewer groups than folds, or fewer rows of every label.
    """
    most = max(Counter(row.label for group in groups for row in group).values(), default=0)
    if min(len(groups), most) < count:
        raise UserError(
            f"split.cross_validation is {count}, but the rows outside the hold-out are {len(groups)} groups of "
            f"near-duplicates, and no label has more than {most} rows; lower it or add rows"
        )
    import warnings

    from sklearn.model_selection import StratifiedGroupKFold

    ordered = in_seeded_order(groups, seed, "fold")
    rows = [row for group in ordered for row in group]
    group_of = [number for number, group in enumerate(ordered) for _ in group]
    labels = [repr(row.label) for row in rows]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # then some folds have no row of that label
        parts = list(StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(rows, labels, group_of))
    return [sorted((rows[place] for place in places), key=lambda row: row.id) for _, places in parts]
