import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz import fuzz

from stages.near_duplicates.pairs import near_pairs
from stages.near_duplicates.rule import same_questions
from stages.prepare.dedup.duplicates import (
    agreement,
    drop_exact,
    drop_near,
    giants,
    near_clusters,
    summarise,
    with_kept_witness,
)
from stages.records.prompt import Question, by_question, compared
from stages.records.record import Dropped, Record, make_record
from stages.text.normal_form import normalise
from stages.text.strict_json import completion_key

RULES = st.sampled_from(["equal", "fuzzy", "ignore"])


def row(prompt: str, completion: str = "{}", label: str | None = None, origin: str = "raw.jsonl:1") -> Record:
    return make_record(prompt, completion, label, "raw.jsonl", origin)


def alike(records: list[Record], threshold: int = 90) -> list[tuple[Question, Question, float]]:
    texts = sorted(set(map(compared, records)))
    near = [(texts[pair.left], texts[pair.right], pair.score) for pair in near_pairs(texts, threshold)]
    return same_questions(by_question(records), near)


def dedup(records: list[Record], rule: str = "equal", threshold: int = 90) -> tuple[list[Record], list[Dropped]]:
    distinct, exact = drop_exact(records)
    agree = agreement(rule, threshold)  # type: ignore[arg-type]
    kept, near = drop_near(by_question(distinct), alike(distinct, threshold), agree)
    return kept, near + with_kept_witness(exact, near)


def slow_duplicates(left: Record, right: Record, rule: str) -> bool:
    """The promise itself, by rapidfuzz's own ratio."""
    if fuzz.ratio(normalise(left.prompt), normalise(right.prompt)) < 90:
        return False
    keys = completion_key(left.completion), completion_key(right.completion)
    return {"equal": keys[0] == keys[1], "fuzzy": fuzz.ratio(*keys) >= 90, "ignore": True}[rule]


PROMPTS = st.one_of(
    st.sampled_from(["Play some jazz", "play some jazz", "play  some jazz!", "play some jazzy", "plays some jazzy"]),
    st.integers(20, 30).map(lambda n: "abcdefghij" * 2 + "x" * (n - 20)),
    st.text("ab", min_size=1, max_size=11),
)
COMPLETIONS = st.sampled_from(['{"a": 1, "b": 2}', '{"b":2,"a":1}', '{"a": 1, "b": 3}', "text", "texts and texts"])
ROWS = st.builds(row, PROMPTS, COMPLETIONS, st.sampled_from([None, "x", "y"]))


def numbered(rows: list[Record]) -> list[Record]:
    return [row(r.prompt, r.completion, r.label, f"raw.jsonl:{n}") for n, r in enumerate(rows, start=1)]


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(ROWS, max_size=25), rule=RULES)
def test_no_two_kept_rows_are_duplicates_of_each_other(rows: list[Record], rule: str) -> None:
    kept, _ = dedup(rows, rule)
    for index, left in enumerate(kept):
        assert not any(slow_duplicates(left, right, rule) for right in kept[:index])


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(ROWS, max_size=25), rule=RULES)
def test_every_dropped_row_is_a_duplicate_of_its_kept_witness(rows: list[Record], rule: str) -> None:
    kept, dropped = dedup(numbered(rows), rule)
    by_id = {record.id: record for record in kept}
    for drop in dropped:
        assert drop.witness is not None
        witness = by_id[drop.witness]
        assert slow_duplicates(drop.record, witness, rule)
        assert (drop.reason == "exact") == (drop.record.id == witness.id)
        ratio = fuzz.ratio(normalise(drop.record.prompt), normalise(witness.prompt))
        assert drop.score == pytest.approx(ratio, abs=0.0101)
    origins = [record.origin for record in kept] + [drop.record.origin for drop in dropped]
    assert sorted(origins) == sorted(record.origin for record in numbered(rows))


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(ROWS, max_size=25), rule=RULES, shuffle=st.randoms(use_true_random=False))
def test_order_changes_nothing(rows: list[Record], rule: str, shuffle: random.Random) -> None:
    def outcome(records: list[Record]) -> tuple[list[Record], list[str]]:
        kept, dropped = dedup(records, rule)
        return kept, sorted(repr(drop) for drop in dropped)

    moved = rows.copy()
    shuffle.shuffle(moved)
    assert outcome(moved) == outcome(rows)


def test_the_longer_wording_stays() -> None:
    long, short = row("Where is my order 12345, please?"), row("Where is my order 12345, please")
    kept, dropped = dedup([short, long])
    assert kept == [long]
    assert (dropped[0].witness, dropped[0].reason) == (long.id, "near")


def test_a_copy_of_a_row_that_goes_names_the_row_that_stays() -> None:
    long, short = row("Where is my order 12345, please?"), row("Where is my order 12345, please")
    _, dropped = dedup([short, long, short])
    assert [(drop.reason, drop.witness) for drop in dropped] == [("near", long.id)] * 2


def test_white_space_makes_no_wording_longer() -> None:
    rows = [row(prompt) for prompt in ("play   jazz", "play jazz", "Play jazz")]
    kept, _ = dedup(rows)
    assert kept == [min(rows, key=lambda record: record.id)]


def test_a_chain_keeps_its_ends() -> None:
    """Near is not transitive: the middle goes, and the ends, which are not near, stay."""
    ends = row("a" * 23), row("a" * 17)
    kept, dropped = dedup([*ends, row("a" * 20)])
    assert set(kept) == set(ends)
    assert [drop.witness for drop in dropped] == [ends[0].id]


def test_near_prompts_with_other_answers_both_stay_under_equal() -> None:
    rows = [row(f"Rate this book {n} stars out of 6", f'{{"rating": {n}}}') for n in (4, 5)]
    assert fuzz.ratio(rows[0].prompt, rows[1].prompt) > 90
    assert len(dedup(rows, "equal")[0]) == 2
    assert len(dedup(rows, "fuzzy")[0]) == 1
    assert len(dedup(rows, "ignore")[0]) == 1


def test_json_is_compared_by_value_and_text_by_characters() -> None:
    assert completion_key('{"a": 1, "b": [1, 2]}') == completion_key('{"b":[1,2],"a":1}')
    assert completion_key('{"a": 1}') != completion_key('{"a": "1"}')
    assert completion_key('{"a": 1, "a": 1}') == '{"a": 1, "a": 1}'
    assert completion_key("yes ") != completion_key("yes")


def test_of_exact_duplicates_the_first_line_stays_and_line_10_comes_after_line_9() -> None:
    rows = [row("Hello there", origin=f"raw.jsonl:{n}") for n in (10, 9, 11)]
    kept, dropped = drop_exact(rows)
    assert [record.origin for record in kept] == ["raw.jsonl:9"]
    assert [drop.record.origin for drop in dropped] == ["raw.jsonl:10", "raw.jsonl:11"]


def test_a_lost_label_is_named() -> None:
    rows = [row("Hello there", label=label, origin=f"raw.jsonl:{n}") for n, label in enumerate([None, "b", "a"])]
    kept, dropped = drop_exact(rows)
    assert kept[0].label == "a"
    assert [drop.detail.partition(", but ")[2] for drop in dropped] == [
        "its label is 'a' instead of 'b'",
        "its label is 'a' instead of None",
    ]


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(ROWS, max_size=20))
def test_counts_are_those_of_a_count_by_hand(rows: list[Record]) -> None:
    distinct, exact = drop_exact(rows)
    questions, pairs = by_question(distinct), alike(distinct)
    kept, near = drop_near(questions, pairs, agreement("equal", 90))
    clusters = near_clusters(questions, pairs)
    found = summarise(rows, questions, pairs, clusters, [], kept, near + with_kept_witness(exact, near))

    near_rows = [
        (i, j)
        for j in range(len(distinct))
        for i in range(j)
        if fuzz.ratio(normalise(distinct[i].prompt), normalise(distinct[j].prompt)) >= 90
    ]
    exact_rows = sum(rows[i].id == rows[j].id for j in range(len(rows)) for i in range(j))
    assert found["pairs"] == {"exact": exact_rows, "near": len(near_rows)}
    assert found["rows"]["in"] == found["rows"]["kept"] + found["dropped"]["exact"] + found["dropped"]["near"]
    conflicting = {
        i
        for pair in ((i, j) for i in range(len(distinct)) for j in range(len(distinct)))
        for i in pair
        if normalise(distinct[pair[0]].prompt) == normalise(distinct[pair[1]].prompt)
        and completion_key(distinct[pair[0]].completion) != completion_key(distinct[pair[1]].completion)
    }
    assert found["conflicts"]["rows"] == len(conflicting)
    assert found["conflicts"]["prompts"] == len({normalise(distinct[i].prompt) for i in conflicting})
    assert (found["clusters"]["count"] > 0) == bool(near_rows)


def test_clusters_count_rows_and_chains() -> None:
    rows = [row("a" * 18), row("a" * 20), row("a" * 22), row("A" * 22, "other"), row("z")]
    questions, pairs = by_question(rows), alike(rows)
    clusters = near_clusters(questions, pairs)
    found = summarise(rows, questions, pairs, clusters, giants(clusters, 4), rows, [])
    assert found["clusters"] == {"count": 1, "largest": 4, "giant": 1, "giant_rows": 4}
    assert giants(clusters, 5) == []
    assert found["conflicts"] == {"prompts": 1, "rows": 2}
    assert json.dumps(found)
