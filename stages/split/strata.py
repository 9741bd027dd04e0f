"""A draw that keeps the shares of the labels and never parts near-duplicates."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from stages.near_duplicates import clusters, near_pairs
from stages.prompts import by_prompt
from stages.records import Record
from stages.seeded import rank

Label = str | None


def near_groups(records: Iterable[Record], threshold: int) -> list[list[Record]]:
    """Records in groups: the same group for prompts that are the same or near, directly or through others."""
    prompts = by_prompt(records)
    pairs = near_pairs(list(prompts), threshold)
    roots = clusters(len(prompts), ((pair.left, pair.right) for pair in pairs))
    groups: dict[int, list[Record]] = defaultdict(list)
    for root, rows in zip(roots, prompts.values(), strict=True):
        groups[root] += rows
    return list(groups.values())


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


def take_groups(
    groups: Iterable[Sequence[Record]], quota: Mapping[Label, int], seed: int, purpose: str
) -> list[Record]:
    """Take whole groups in a seeded order, each that fits into what is left of the quota of all its labels.

    A group's place is that of its first record, so the draw depends on no order and a new record moves few. No
    quota is exceeded; one is missed only when every group that is left is too large or has a label that is full.
    """
    left = Counter(quota)
    taken: list[Record] = []
    for _, group in sorted((min(rank(seed, purpose, row.id) for row in group), group) for group in groups):
        need = Counter(row.label for row in group)
        if all(left[label] >= count for label, count in need.items()):
            left -= need
            taken += group
    return sorted(taken, key=lambda record: record.id)
