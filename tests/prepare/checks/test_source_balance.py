import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelled_rows import from_source, intents

from stages.prepare.checks.conflicts_and_sources import by_source, total_variation
from stages.records.record import Record

COUNTS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 9))


def measure(rows: list[Record], min_rows: int = 20) -> dict[str, Any]:
    return by_source(rows, [row.label for row in rows], min_rows)


@given(left=COUNTS, right=COUNTS)
def test_total_variation_is_the_share_that_must_move(left: dict[str, int], right: dict[str, int]) -> None:
    total = sum(left.values()), sum(right.values())
    if not all(total):
        assert total_variation(left, right) == 0
        return
    common = sum(min(Fraction(left.get(k, 0), total[0]), Fraction(right.get(k, 0), total[1])) for k in "abcd")
    assert total_variation(left, right) == pytest.approx(float(1 - common), abs=1e-12)
    assert total_variation(left, right) == total_variation(right, left)


def test_a_dominant_source_is_found() -> None:
    rows = intents(100, 1)
    found = measure(from_source(rows[:90], "scraped") + from_source(rows[90:], "ours"))
    assert (found["count"], found["largest_share"]) == (2, 0.9)


def test_a_source_with_labels_of_its_own_is_found() -> None:
    rows = intents(200, 1)
    refunds = [row for row in rows if row.label == "refund"]
    others = [row for row in rows if row.label != "refund"]
    found = measure(from_source(refunds, "bought") + others)
    assert found["largest_distance"] == found["by_source"]["bought"]["label_distance"] == 1.0
    assert found["by_source"]["bought"]["labels"] == {"refund": 50}


def test_a_source_that_writes_at_other_lengths_is_found() -> None:
    rows = intents(100, 1)
    short = [Record(**{**{f: getattr(row, f) for f in row.__slots__}, "prompt": row.prompt[:5]}) for row in rows[:50]]
    found = measure(from_source(short, "short") + rows[50:])
    assert found["largest_distance"] == found["by_source"]["short"]["prompt_length_distance"] == 1.0
    assert found["by_source"]["short"]["completion_length_distance"] < 0.3


@pytest.mark.parametrize("seed", range(20))
def test_sources_by_chance_are_no_alarm(seed: int) -> None:
    """A hundred rows each and nothing but chance between them: all distances stay far below the gates' one half."""
    rows = random.Random(seed).sample(intents(300, 1), 300)
    found = measure([row for n in range(3) for row in from_source(rows[100 * n : 100 * n + 100], f"s{n}")])
    assert found["largest_distance"] < 0.35


def test_a_source_of_few_rows_is_listed_and_not_judged() -> None:
    rows = intents(100, 1)
    odd = [row for row in rows if row.label == "refund"][:19]
    found = measure(from_source(odd, "small") + [row for row in rows if row not in odd])
    assert found["largest_distance"] == 0
    assert found["by_source"]["small"]["label_distance"] > 0.7


def test_one_source_is_far_from_nothing() -> None:
    found = measure(intents(40, 1))
    assert (found["largest_share"], found["largest_distance"]) == (1.0, 0.0)
    assert Counter(found["by_source"]["raw"]["labels"]) == Counter(
        {"account": 10, "refund": 10, "tracking": 10, "warranty": 10}
    )
