import random
from collections import Counter
from fractions import Fraction

from deduplicated import nearness
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz import fuzz

from stages.near_duplicates.nearness import SHARED_BY, near_groups
from stages.prepare.split.draw import draw_holdout, strata_table
from stages.prepare.split.partition import quotas, take_groups
from stages.records.record import Record, make_record
from stages.text.normal_form import normalise

LABELS = st.sampled_from([None, "a", "b", "null"])
SHARES = st.fractions(0, 1, max_denominator=100)


def row(prompt: str, label: str | None = None, completion: str = "{}") -> Record:
    return make_record(prompt, completion, label, "raw", "raw.jsonl:1")


def unlike(number: int) -> str:
    """A prompt that is near no other of its kind."""
    return f"{random.Random(number).getrandbits(160):040x}"


def near(left: Record, right: Record, rows: list[Record]) -> bool:
    alike = fuzz.ratio(normalise(left.prompt), normalise(right.prompt))
    rare = sum(row.completion == left.completion for row in rows) <= SHARED_BY
    return alike >= (80 if left.completion == right.completion and rare else 90)


# Templates whose slots make chains of near prompts, the same prompts in other cases, and prompts of their own.
PROMPTS = st.one_of(
    st.integers(0, 12).map(lambda n: "book a table for two at the corner" + "!" * n),
    st.sampled_from(["Play some jazz now", "play some jazz now", "play some jazz no", "stop the music"]),
    st.sampled_from(["put on some jazz now", "put on jazz now", "stop that music"]),
    st.integers(0, 30).map(unlike),
)
ROWS = st.lists(
    st.builds(row, PROMPTS, LABELS, st.sampled_from(["{}", "{}", "{}", "[]"])), max_size=40, unique_by=lambda r: r.id
)


@given(ideal=st.dictionaries(LABELS, st.fractions(0, 50, max_denominator=40)), seed=st.integers(0, 99))
def test_quotas_are_within_one_of_the_ideal_and_add_up(ideal: dict[str | None, Fraction], seed: int) -> None:
    found = quotas(ideal, Counter(dict.fromkeys(ideal, 100)), seed, "any")
    assert found.keys() == ideal.keys()
    assert all(abs(found[label] - ideal[label]) < 1 for label in ideal)
    assert abs(Fraction(sum(found.values())) - Fraction(sum(ideal.values()))) <= Fraction(1, 2)


def test_equal_remainders_do_not_go_by_the_name_of_the_label() -> None:
    ideal: dict[str | None, Fraction] = {f"label {n}": Fraction(1, 4) for n in range(20)}
    winners = {
        frozenset(label for label, n in quotas(ideal, dict.fromkeys(ideal, 9), seed, "any").items() if n)
        for seed in range(20)
    }
    assert {len(labels) for labels in winners} == {5}
    assert len(winners) > 10


@settings(max_examples=100, deadline=None)
@given(rows=ROWS)
def test_groups_hold_all_near_prompts_and_every_row_once(rows: list[Record]) -> None:
    groups = near_groups(rows, nearness(rows))
    home = {record.id: number for number, group in enumerate(groups) for record in group}
    assert sorted(record.id for group in groups for record in group) == sorted(record.id for record in rows)
    links = [(left, right) for left in rows for right in rows if near(left, right, rows)]
    assert all(home[left.id] == home[right.id] for left, right in links)
    # No group could be parted: from its first row the near pairs lead to all of it.
    for group in groups:
        reached = {group[0].id}
        for _ in group:
            reached |= {right.id for left, right in links if left.id in reached}
        assert reached == {record.id for record in group}


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, share=st.sampled_from([0.1, 0.15, 0.5, 0.9]), max_rows=st.integers(1, 30), seed=st.integers(0, 9))
def test_a_draw_takes_whole_groups_within_its_quotas_and_as_many_as_fit(
    rows: list[Record], share: float, max_rows: int, seed: int
) -> None:
    drawn, strata = draw_holdout(rows, nearness(rows), share, max_rows, seed)
    ids = {record.id for record in drawn}
    assert len(drawn) == len(ids) <= max_rows
    counts = Counter(record.label for record in drawn)
    left = {stratum.label: stratum.quota - stratum.drawn for stratum in strata}
    for stratum in strata:
        assert stratum.rows == sum(record.label == stratum.label for record in rows)
        assert stratum.ideal == stratum.rows * min(Fraction(str(share)), Fraction(max_rows, len(rows)))
        assert abs(stratum.quota - stratum.ideal) < 1
        assert 0 <= stratum.drawn == counts[stratum.label] <= stratum.quota
    for group in near_groups(rows, nearness(rows)):
        inside = [record.id in ids for record in group]
        assert all(inside) or not any(inside)
        need = Counter(record.label for record in group)
        assert all(inside) or any(need[label] > left[label] for label in need)


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, shuffle=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_draw(rows: list[Record], shuffle: random.Random) -> None:
    moved = rows.copy()
    shuffle.shuffle(moved)
    assert draw_holdout(moved, nearness(moved), 0.3, 10, 17) == draw_holdout(rows, nearness(rows), 0.3, 10, 17)


def test_rows_without_near_duplicates_fill_every_quota() -> None:
    rows = [row(unlike(n), label) for n, label in enumerate(["a"] * 61 + ["b"] * 33 + [None] * 6)]
    drawn, strata = draw_holdout(rows, nearness(rows), 0.15, 1000, 17)
    assert len(drawn) == 15
    assert {stratum.label: stratum.drawn for stratum in strata} == {"a": 9, "b": 5, None: 1}


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, share=st.sampled_from([0.1, 0.4, 0.9]), seed=st.integers(0, 9))
def test_no_draw_takes_the_last_row_of_a_label(rows: list[Record], share: float, seed: int) -> None:
    drawn, strata = draw_holdout(rows, nearness(rows), share, 99, seed)
    left = Counter(record.label for record in rows) - Counter(record.label for record in drawn)
    assert left.keys() == {record.label for record in rows}
    assert all(stratum.quota < stratum.rows for stratum in strata)


def test_the_only_row_of_a_label_stays_and_another_label_gives_one() -> None:
    rows = [row(unlike(n), label) for n, label in enumerate("aaab")]
    assert [(s.label, s.quota) for s in draw_holdout(rows, nearness(rows), 0.4, 99, 17)[1]] == [("a", 2), ("b", 0)]
    rows = [row(unlike(n), f"label {n}") for n in range(20)] + [row(unlike(100 + n), "common") for n in range(40)]
    drawn, _ = draw_holdout(rows, nearness(rows), 0.15, 99, 17)
    assert {record.label for record in drawn} == {"common"}


def test_another_seed_draws_other_rows() -> None:
    rows = [row(unlike(n)) for n in range(50)]
    draws = {tuple(record.id for record in draw_holdout(rows, nearness(rows), 0.2, 99, seed)[0]) for seed in range(5)}
    assert len(draws) == 5


def test_no_label_is_not_the_label_named_null() -> None:
    rows = [row(unlike(n), label) for n, label in enumerate([None, "null"] * 10)]
    assert [(stratum.label, stratum.drawn) for stratum in draw_holdout(rows, nearness(rows), 0.5, 99, 1)[1]] == [
        ("null", 5),
        (None, 5),
    ]


def test_a_group_that_is_too_large_is_kept_back_and_reported() -> None:
    rows = [row("book a table for two at the corner" + "!" * n, "a") for n in range(8)]
    drawn, strata = draw_holdout(rows, nearness(rows), 0.5, 99, 17)
    assert drawn == []
    lines = strata_table(strata)
    assert lines[0].split() == ["label", "rows", "ideal", "drawn", "kept", "back", "by", "groups"]
    assert lines[1].split() == ["a", "8", "4.00", "0", "4"]
    assert lines[2].split() == ["all", "8", "4.00", "0", "4"]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), new=st.integers(100, 120), share=SHARES, seed=st.integers(0, 99))
def test_a_new_row_moves_at_most_one_row_out_and_one_in(count: int, new: int, share: Fraction, seed: int) -> None:
    def draw(rows: list[Record]) -> set[str]:
        groups = [[record] for record in rows]
        quota = quotas({None: len(rows) * share}, {None: 99}, seed, "any")
        return {record.id for record in take_groups(groups, quota, seed, "any")}

    rows = [row(unlike(n)) for n in range(count)]
    before, after = draw(rows), draw([*rows, row(unlike(new))])
    assert len(before - after) <= 1
    assert len(after - before) <= 1


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), max_size=9), quota=st.integers(0, 20), seed=st.integers(0, 9))
def test_a_quota_misses_fewer_rows_than_the_smallest_group_that_is_left(
    sizes: list[int], quota: int, seed: int
) -> None:
    groups = [[row(unlike(10 * n + i), "a") for i in range(size)] for n, size in enumerate(sizes)]
    taken = take_groups(groups, {"a": quota}, seed, "any")
    left = [len(group) for group in groups if group[0] not in taken]
    assert 0 <= quota - len(taken) < min(left, default=quota + 1)
