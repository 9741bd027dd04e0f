import itertools
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.prepare.augment.added_rows import plan, repeat_structured, training_order
from stages.records.record import Record, make_record
from stages.text.strict_json import is_structured

SHARES = st.integers(0, 60).map(lambda n: n / 100)


def row(prompt: str, completion: str = "{}") -> Record:
    return make_record(prompt, completion, None, "raw", "raw.jsonl:1")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"a": 1}', True),
        ("[1]", True),
        ("{}", True),
        ("12", False),
        ('"yes"', False),
        ("yes", False),
        ("{'a': 1}", False),
    ],
)
def test_structured_is_an_object_or_an_array(completion: str, expected: bool) -> None:
    assert is_structured(completion) == expected


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(1, 30),
    data=st.data(),
    replay=st.integers(0, 6),
    structured_share=SHARES,
    replay_share=st.integers(0, 50).map(lambda n: n / 100),
)
def test_a_plan_keeps_both_shares_with_the_fewest_repeats(
    rows: int, data: st.DataObject, replay: int, structured_share: float, replay_share: float
) -> None:
    structured = data.draw(st.integers(0, rows))
    repeats, taken = plan(rows, structured, replay, structured_share, replay_share)

    def most_replay(repeats: int) -> int:
        """By trying every number."""
        within = (n for n in range(replay + 1) if n <= Fraction(str(replay_share)) * (rows + repeats + n))
        return max(within)

    def fits(repeats: int) -> bool:
        taken = most_replay(repeats)
        return structured + repeats >= Fraction(str(structured_share)) * (rows + repeats + taken)

    assert taken == most_replay(repeats)
    assert repeats == next(n for n in itertools.count() if fits(n))


def test_all_rows_structured_is_asked_for() -> None:
    assert plan(10, 10, 0, 1.0, 0.0) == (0, 0)
    with pytest.raises(UserError, match="structured_share is 1, but 2 rows have no JSON"):
        plan(10, 8, 0, 1.0, 0.0)


def test_a_share_is_its_decimal_number() -> None:
    # 0.3 as a binary number is a little less than 3/10, and 0.07 a little more than 7/100.
    assert plan(10, 3, 0, 0.3, 0.0) == (0, 0)
    assert plan(100, 7, 0, 0.07, 0.0) == (0, 0)
    assert plan(93, 0, 20, 0.0, 0.07) == (0, 7)


def test_repeats_go_round_all_structured_rows() -> None:
    rows = [row("a"), row("b"), row("c", "text")]
    made = repeat_structured(rows, 5, 17)
    assert sorted(Counter(r.prompt for r in made).values()) == [2, 3]
    assert {r.prompt for r in made} == {"a", "b"}
    assert {(r.source, r.origin) for r in made} == {("augment:structured", "raw.jsonl:1")}
    assert repeat_structured(rows[::-1], 5, 17) == made
    assert repeat_structured([row("c", "text")], 0, 17) == []
    with pytest.raises(UserError, match="no training row has a JSON completion"):
        repeat_structured([row("c", "text")], 1, 17)


def test_the_training_order_is_a_seeded_shuffle_that_a_new_row_leaves_as_it_is() -> None:
    rows = [row(f"{n}") for n in range(30)]
    order = training_order(rows, 17)
    assert sorted(order, key=lambda r: r.id) == sorted(rows, key=lambda r: r.id)
    assert order not in (rows, sorted(rows, key=lambda r: r.id))
    assert training_order(rows[::-1], 17) == order
    assert training_order(rows, 18) != order
    assert [r for r in training_order([row("new"), *rows], 17) if r.prompt != "new"] == order


def test_copies_of_a_row_are_spread() -> None:
    rows = [row(f"{n}") for n in range(20)]
    order = training_order(rows + repeat_structured(rows, 40, 17), 17)
    beside = sum(left.id == right.id for left, right in itertools.pairwise(order))
    assert len(order) == 60
    assert beside < 10
