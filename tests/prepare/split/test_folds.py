import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.prepare.split.partition import make_folds
from stages.records.record import Record, make_record

LABELS = st.sampled_from([None, "a", "b"])
GROUPS = st.lists(st.lists(LABELS, min_size=1, max_size=4), min_size=5, max_size=40)


def rows(labels: list[list[str | None]]) -> list[list[Record]]:
    return [
        [make_record(f"{group} {place}", "{}", label, "raw", "raw.jsonl:1") for place, label in enumerate(found)]
        for group, found in enumerate(labels)
    ]


@given(labels=GROUPS, count=st.integers(2, 5), shuffle=st.randoms(use_true_random=False))
def test_every_row_is_in_one_fold_with_its_whole_group_whatever_the_order(
    labels: list[list[str | None]], count: int, shuffle: random.Random
) -> None:
    groups = rows(labels + [["c"] for _ in range(count)])  # one label with a row for each fold at least
    folds = make_folds(groups, count, 17)
    assert len(folds) == count
    home = {record.id: number for number, fold in enumerate(folds) for record in fold}
    assert len(home) == sum(map(len, folds)) == sum(map(len, groups))
    assert all(len({home[record.id] for record in group}) == 1 for group in groups)
    moved = shuffle.sample(groups, len(groups))
    assert make_folds(moved, count, 17) == folds


@given(labels=st.lists(LABELS, min_size=5, max_size=60), count=st.integers(2, 5), seed=st.integers(0, 9))
def test_without_near_duplicates_folds_differ_by_one_row_at_most_in_every_label(
    labels: list[str | None], count: int, seed: int
) -> None:
    labels = labels + ["c"] * count
    folds = make_folds(rows([[label] for label in labels]), count, seed)
    sizes = [len(fold) for fold in folds]
    assert max(sizes) - min(sizes) <= 2
    for label in set(labels):
        found = [Counter(record.label for record in fold)[label] for fold in folds]
        assert max(found) - min(found) <= 1


def test_another_seed_makes_other_folds() -> None:
    groups = rows([["a"]] * 20)
    assert make_folds(groups, 4, 17) != make_folds(groups, 4, 18)


@pytest.mark.parametrize("labels", [[["a", "a", "a"], ["b"]], [["a"], ["b"], ["c"], ["a"]]])
def test_fewer_groups_than_folds_or_fewer_rows_of_every_label(labels: list[list[str | None]]) -> None:
    with pytest.raises(UserError, match=r"split\.cross_validation is 3, but .* groups .* no label has more than"):
        make_folds(rows(labels), 3, 17)


@pytest.mark.filterwarnings("error")
def test_a_rare_label_is_no_warning() -> None:
    make_folds(rows([[label] for label in "aaaaab"]), 3, 17)
