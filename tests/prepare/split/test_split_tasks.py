"""A text stays on one side of the split, whatever is asked about it and whichever task asks."""

import random

import pytest
from deduplicated import deduplicated, near_prompts, nearness
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz import fuzz

from stages.near_duplicates.nearness import find_nearness, near_groups
from stages.params.prepare import Split
from stages.prepare.split.draw import draw_holdout
from stages.prepare.split.lock import Drawn, make_lock
from stages.prepare.split.partition import partition, restore_locked
from stages.records.record import Message, Record, make_record
from stages.text.normal_form import normalise

HOW = Drawn(max_rows=1, rows=1, seed=1, share=0.5, threshold=90, unique_md5="")
SETTINGS = Split(
    validation_share=0.3, pair_threshold=80, max_train_rows=None, max_source_share=1, cross_validation=None, fold=None
)
TASKS = ("tone", "price", "spam", None)


def row(text: str, task: str | None = None, system: str = "", completion: str = "yes") -> Record:
    context = [Message("system", system)] if system else []
    return make_record(text, completion, None, "raw", "raw.jsonl:1", task=task, context=context)


def text(number: int) -> str:
    return f"{random.Random(number).getrandbits(200):050x}"


@pytest.mark.parametrize("completion", ["equal", "fuzzy", "ignore"])
def test_three_tasks_on_ten_texts_keep_every_row(completion: str) -> None:
    answers = {"tone": ("yes", "no"), "price": ("no", "yes"), "spam": ("yes", "yes")}
    rows = [row(text(n), task, completion=answers[task][n % 2]) for n in range(10) for task in answers]
    kept, dropped = deduplicated(rows, completion)
    assert (len(kept), dropped) == (30, [])


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    drawn=st.integers(1, 3),
    data=st.data(),
)
def test_the_same_text_is_never_on_both_sides(texts: list[int], drawn: int, data: st.DataObject) -> None:
    tasks, systems = st.sampled_from(TASKS), st.sampled_from(["", "Be brief", "Say yes"])
    slips = st.sampled_from(["", "!", " please", "\n\nIs the tone good?"])
    raw = [row(text(n) + data.draw(slips), data.draw(tasks), data.draw(systems)) for n in texts]
    kept, _ = deduplicated(raw)
    holdout = draw_holdout(kept, nearness(kept), 0.5, 99, drawn)[0] or near_groups(kept, nearness(kept))[0]
    later = [row(text(n), data.draw(tasks), data.draw(systems)) for n in texts]
    kept, duplicates = deduplicated([*raw, *later])
    lock = make_lock(holdout, HOW)
    records = kept + restore_locked(kept, duplicates, {record.id for record in holdout})
    parts = partition(records, lock, find_nearness(records, near_prompts(records), 80), SETTINGS, 17)
    assert {record.id for record in parts.holdout} == {record.id for record in holdout}
    sides = (parts.train, parts.validation, parts.holdout)
    for place, side in enumerate(sides):
        for other in sides[:place]:
            assert not any(near(left, right) for left in side for right in other)


def near(left: Record, right: Record) -> bool:
    return fuzz.ratio(normalise(left.prompt), normalise(right.prompt)) >= 90


@pytest.mark.parametrize("asks", [("Sports?", "Is it about music? Answer with yes or no."), ("A", "B", "C", "D", "E")])
@pytest.mark.parametrize("words", [4, 9, 60])
def test_a_text_below_other_instructions_stays_on_one_side(asks: tuple[str, ...], words: int) -> None:
    texts = [f"{text(n)} " * (words // 4) + text(n)[:20] for n in range(12)]
    rows = [row(f"{ask}\n\n{one}", completion=f"{ask} {n}") for n, one in enumerate(texts) for ask in asks]
    kept, duplicates = deduplicated(rows)
    assert (len(kept), duplicates) == (len(rows), [])
    groups = [{record.prompt.split("\n")[-1] for record in group} for group in near_groups(kept, nearness(kept))]
    assert sorted(map(len, groups)) == [1] * 12
    lock = make_lock([rows[0]], HOW)
    parts = partition(kept, lock, find_nearness(kept, near_prompts(kept), 80), SETTINGS, 17)
    assert parts.holdout == [rows[0]]
    assert {r.record.id for r in parts.quarantined} == {record.id for record in rows[1 : len(asks)]}
    assert {r.reason for r in parts.quarantined} <= {"same_text", "near_prompt"}
