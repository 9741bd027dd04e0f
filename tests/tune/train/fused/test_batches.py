"""How an optimiser batch is cut: nothing lost, nothing too big, and the same for everybody."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.tune.train.examples import Examples, SeededBatches
from stages.tune.train.fused.batches import (
    Row,
    cut,
    deal,
    make_rows,
    pack,
    planned_widths,
    trained_tokens,
    widths_to_fill,
)

LENGTHS = st.lists(st.integers(2, 60), max_size=20)


def rows_of(lengths: list[int]) -> list[Row]:
    return [Row(torch.arange(n), torch.arange(n - 1), torch.arange(1, n)) for n in lengths]


def names(rows: list[Row]) -> Counter[int]:
    return Counter(id(row) for row in rows)


@given(lengths=LENGTHS, parts=st.integers(1, 5))
def test_dealing_loses_no_row_and_is_even(lengths: list[int], parts: int) -> None:
    rows = rows_of(lengths)
    shares = deal(rows, parts)
    assert sum((names(share) for share in shares), Counter()) == names(rows)
    weights = [sum(map(len, share)) for share in shares]
    assert max(weights) - min(weights) <= max(lengths, default=0)


@given(lengths=LENGTHS, tokens=st.integers(1, 100))
def test_parts_hold_all_rows_and_fit(lengths: list[int], tokens: int) -> None:
    rows = rows_of(lengths)
    parts = cut(rows, tokens)
    assert sum((names(part) for part in parts), Counter()) == names(rows)
    for part in parts:
        assert pack(part).ids.numel() <= tokens or len(part) == 1


@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=6), width=st.integers(0, 200), longest=st.integers(30, 90)
)
@settings(deadline=None)
def test_what_is_predicted_is_the_next_token(lengths: list[int], width: int, longest: int) -> None:
    rows = rows_of(lengths)
    packed = pack(rows, width, longest)
    assert max(end - start for start, end in pairwise([0, *packed.ends])) <= longest
    assert len(packed.ends) <= len(rows) + -(-width // longest)
    assert torch.equal(packed.ids.flatten()[packed.predictors] + 1, packed.targets)
    assert torch.equal(packed.positions.flatten()[packed.predictors] + 1, packed.targets)
    assert packed.ids.shape == (1, max(width, sum(lengths)))
    assert packed.ends[-1] == packed.ids.numel()


def test_rows_predict_the_completion_and_nothing_else() -> None:
    rows = make_rows(Examples([[5, 6, 7, 8]], [[0, 0, 1, 1]]))
    assert rows[0].predictors.tolist() == [1, 2]
    assert rows[0].targets.tolist() == [7, 8]
    assert trained_tokens(rows) == 2


@given(st.lists(st.integers(1, 60), min_size=1, max_size=10), st.integers(0, 90), st.sampled_from([1, 4]))
def test_widths_cost_the_least(sizes: list[int], recording: int, multiple: int) -> None:
    """Against every choice of widths."""
    widths = widths_to_fill(sizes, recording, multiple)
    rounded = sorted({-(-size // multiple) * multiple for size in sizes})
    choices = [(*some, rounded[-1]) for n in range(len(rounded)) for some in combinations(rounded[:-1], n)]
    assert tuple(widths) in choices
    costs = [filled(sizes, choice) + recording * len(choice) for choice in choices]
    assert filled(sizes, widths) + recording * len(widths) == min(costs)


def filled(sizes: list[int], widths: Sequence[int]) -> int:
    return sum(min(width for width in widths if width >= size) for size in sizes)


@given(st.lists(st.integers(2, 900), min_size=4, max_size=30), st.integers(1, 3), st.integers(900, 3000))
@settings(deadline=None)
def test_every_batch_of_a_run_finds_a_width_and_room_for_its_predictors(
    lengths: list[int], devices: int, tokens: int
) -> None:
    rows = rows_of(lengths)
    batches = SeededBatches(lengths, 4, 12, seed=1)
    planned = [planned_widths(rows, batches, devices, tokens, recording) for recording in (0, 100, 1 << 30)]
    for batch in batches:
        for share in deal([rows[row] for row in batch], devices):
            for part in cut(share, tokens):
                size = sum(map(len, part))
                for widths in planned:
                    width = min(width for width in widths if width >= size)
                    assert widths[width].predictors >= trained_tokens(part)
                    assert widths[width].segments >= len(pack(part, width, 900).ends)
    assert len(planned[0]) >= len(planned[1]) >= len(planned[2]) == 1


def test_a_longer_run_has_more_widths_and_two_devices_pay_for_theirs_beside_each_other() -> None:
    lengths = [5 * n % 900 + 20 for n in range(400)]
    rows = rows_of(lengths)
    few, more, most = (
        len(planned_widths(rows, SeededBatches(lengths, 4, steps, seed=1), 1, 3600)) for steps in (30, 300, 30_000)
    )
    assert 1 <= few < more < most
    shared = len(planned_widths(rows, SeededBatches(lengths, 8, 300, seed=1), 2, 3600))
    assert abs(shared - more) <= 1, "each device has as many tokens as one had"
