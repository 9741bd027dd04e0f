"""Folds for cross-validation: the rows outside the hold-out in k parts, each once the validation rows."""

from collections import Counter
from collections.abc import Sequence

from stages.core.errors import UserError
from stages.prepare.split.strata import Group, Label, in_seeded_order
from stages.records.record import Record


def make_folds(groups: Sequence[Group], count: int, seed: int) -> list[list[Record]]:
    """Part the records into `count` folds of like size and like shares of the labels, in whole groups.

    Large groups first, then label by label in a seeded order, each goes where its labels are rarest and then where the
    fewest rows are. So without near-duplicates the folds differ by at most one row in every label and in all; how far
    groups prevent that, the metrics say.

    Raises:
        UserError: when there are fewer groups than folds.
    """
    if len(groups) < count:
        raise UserError(
            f"split.cross_validation is {count}, but the rows outside the hold-out are {len(groups)} groups of "
            "near-duplicates; lower it or add rows"
        )
    folds: list[list[Record]] = [[] for _ in range(count)]
    labels: list[Counter[Label]] = [Counter() for _ in range(count)]
    ordered = in_seeded_order(groups, seed, "fold")
    for group in sorted(ordered, key=lambda group: (-len(group), sorted(repr(row.label) for row in group))):
        need = Counter(row.label for row in group)
        place = min(range(count), key=lambda n: (sum(labels[n][label] * need[label] for label in need), len(folds[n])))
        folds[place] += group
        labels[place] += need
    return [sorted(fold, key=lambda record: record.id) for fold in folds]
