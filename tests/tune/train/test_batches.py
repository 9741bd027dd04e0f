"""How an optimiser batch is cut: nothing lost, nothing too big, and the same for everybody."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.tune.train.batches import Row, SeededBatches, cut, deal, make_rows, pack, pad, trained_tokens
from stages.tune.train.examples import IGNORED, Examples

LENGTHS = st.lists(st.integers(2, 60), max_size=20)


def rows_of(lengths: list[int]) -> list[Row]:
    return [Row(torch.arange(n), torch.arange(n - 1), torch.arange(1, n)) for n in lengths]


def names(rows: list[Row]) -> Counter[int]:
    return Counter(id(row) for row in rows)


@given(lengths=LENGTHS, parts=st.integers(1, 5))
def test_dealing_loses_no_row_and_is_even(lengths: list[int], parts: int) -> None:
    rows = rows_of(lengths)
    hands = deal(rows, parts)
    assert sum((names(hand) for hand in hands), Counter()) == names(rows)
    weights = [sum(map(len, hand)) for hand in hands]
    assert max(weights) - min(weights) <= max(lengths, default=0)


@given(lengths=LENGTHS, tokens=st.integers(1, 100), packed=st.booleans())
def test_parts_hold_all_rows_and_fit(lengths: list[int], tokens: int, packed: bool) -> None:
    rows = rows_of(lengths)
    parts = cut(rows, tokens, packed)
    assert sum((names(part) for part in parts), Counter()) == names(rows)
    for part in parts:
        size = (pack(part) if packed else pad(part)).ids.numel()
        assert size <= tokens or len(part) == 1


@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=6), width=st.integers(0, 200))
@settings(deadline=None)
def test_what_is_predicted_is_the_next_token(lengths: list[int], width: int) -> None:
    rows = rows_of(lengths)
    for batch in (pack(rows, width), pad(rows)):
        assert torch.equal(batch.ids.flatten()[batch.predictors] + 1, batch.targets)
        assert torch.equal(batch.positions.flatten()[batch.predictors] + 1, batch.targets)
    packed = pack(rows, width)
    assert packed.ids.shape == (1, max(width, sum(lengths)))
    assert packed.ends is not None
    assert packed.ends[-1] == packed.ids.numel()


def test_rows_predict_the_completion_and_nothing_else() -> None:
    rows = make_rows(Examples([[5, 6, 7, 8]], [[IGNORED, IGNORED, 7, 8]]))
    assert rows[0].predictors.tolist() == [1, 2]
    assert rows[0].targets.tolist() == [7, 8]
    assert trained_tokens(rows) == 2


@pytest.mark.parametrize("batch_size", [1, 4, 10, 11])
def test_every_epoch_takes_every_row_once_in_its_own_order(batch_size: int) -> None:
    epoch = 0
    batches = SeededBatches(10, batch_size, 7, lambda: epoch)
    first = list(batches)
    assert len(first) == len(batches)
    assert sorted(row for batch in first for row in batch) == list(range(10))
    assert first == list(batches)
    epoch = 1
    assert first != list(batches)
