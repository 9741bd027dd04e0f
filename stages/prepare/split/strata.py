"""A draw that keeps the shares of the labels and never parts near-duplicates."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

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


def draw(groups: Sequence[Group], share: Fraction, seed: int, purpose: str) -> tuple[list[Record], list[Stratum]]:
    """Draw `share` of the records by label and in whole groups.

    Returns the drawn records sorted by id, and one line for each label. Where `drawn` is below `quota`, no whole
    groups add up to it.
    """
    records = [record for group in groups for record in group]
    ideal = ideals(records, share)
    quota = quotas(ideal, seed, purpose)
    drawn = take_groups(groups, quota, seed, purpose)
    rows, found = Counter(row.label for row in records), Counter(row.label for row in drawn)
    labels = sorted(rows, key=lambda label: (label is None, label or ""))
    return drawn, [Stratum(label, rows[label], ideal[label], quota[label], found[label]) for label in labels]


def ideals(records: Iterable[Record], share: Fraction) -> dict[Label, Fraction]:
    """For each label its number of records times `share`. No label (None) is a stratum of its own."""
    return {label: count * share for label, count in Counter(record.label for record in records).items()}


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
    quota is exceeded. A label that misses its quota although it has groups left is drawn anew among its groups of
    one label, to the best sum that they allow.
    """
    left = Counter(quota)
    taken: list[Group] = []
    ordered = in_seeded_order(groups, seed, purpose)
    for group in ordered:
        need = Counter(row.label for row in group)
        if all(left[label] >= count for label, count in need.items()):
            left -= need
            taken.append(group)
    for label in [label for label in quota if left[label]]:
        pure = [group for group in ordered if {row.label for row in group} == {label}]
        mine = [group for group in taken if {row.label for row in group} == {label}]
        if len(mine) < len(pure):
            others = [group for group in taken if group not in mine]
            taken = others + best_sum(pure, left[label] + sum(map(len, mine)))
    return sorted((row for group in taken for row in group), key=lambda record: record.id)


def in_seeded_order(groups: Iterable[Group], seed: int, purpose: str) -> list[Group]:
    return sorted(groups, key=lambda group: min(rank(seed, purpose, row.id) for row in group))


def best_sum(groups: Sequence[Group], goal: int) -> list[Group]:
    """The groups whose sizes come nearest to `goal` without exceeding it; of several choices the one that takes the
    first group, then the second, and so on."""
    reachable = [1]  # bit n of the last number: some of the groups from here to the end have n rows together
    mask = (1 << goal + 1) - 1
    for group in reversed(groups):
        reachable.append((reachable[-1] | reachable[-1] << len(group)) & mask)
    goal = reachable.pop().bit_length() - 1
    chosen = []
    for group in groups:
        rest = reachable.pop()
        if len(group) <= goal and rest >> (goal - len(group)) & 1:
            chosen.append(group)
            goal -= len(group)
    return chosen
