import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz import fuzz
from rapidfuzz.distance import Indel

from stages.prepare.augment.added_rows import break_prompt, find_object, malformed_rows
from stages.records.prompt import compared
from stages.records.record import Message, Record, make_record
from stages.text.normal_form import normalise
from stages.text.strict_json import BrokenContract, parse_json

ANSWER = '{"intent": "unreadable"}'


def row(prompt: str, origin: str = "raw.jsonl:7") -> Record:
    return make_record(prompt, "{}", "label", "raw", origin)


TICKETS = [
    row(f"Where is my order number {n * 7919}? I have been waiting for {n} days", f"raw.jsonl:{n}") for n in range(60)
]
PROMPTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).filter(str.strip)


@settings(max_examples=300, deadline=None)
@given(prompt=PROMPTS, seed=st.integers(0, 3))
def test_a_broken_prompt_is_unlike_its_origin_and_no_known_prompt(prompt: str, seed: int) -> None:
    first = break_prompt(row(prompt), set(), seed)
    second = break_prompt(row(prompt), {normalise(first)}, seed)
    assert normalise(first) != normalise(second)
    for broken in (first, second):
        assert normalise(broken)
        assert fuzz.ratio(normalise(broken), normalise(prompt)) < 60


def test_what_comes_before_a_prompt_counts_where_broken_prompts_are_compared() -> None:
    talk = (Message("user", "Hi"), Message("assistant", "What is wrong?"))
    with_context = replace(row("My lamp is dark and the switch is loose"), context=talk)
    first = break_prompt(with_context, set(), 17)
    assert break_prompt(with_context, {normalise(first)}, 17) == first  # another question, without the turns before
    known = {compared(replace(with_context, prompt=first))}
    assert break_prompt(with_context, known, 17) != first
    (made,) = malformed_rows([with_context], 1, ANSWER, known, 17)
    assert compared(made) not in known


def test_no_broken_prompt_has_a_long_word_of_its_origin() -> None:
    for ticket in TICKETS:
        words = {word for word in normalise(ticket.prompt).split() if len(word) > 4}
        assert not words & set(normalise(break_prompt(ticket, set(), 17)).split())


ORDER = '{"id": 7, "lines": [{"item": "lamp", "count": 2}, {"item": "desk", "count": 1}], "note": "a } in , text"}'
OBJECTS = st.dictionaries(
    st.text("ab", min_size=1, max_size=3),
    st.one_of(st.integers(), st.text('a,}{\\"', max_size=4), st.lists(st.integers(), max_size=3)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=200, deadline=None)
@given(value=OBJECTS, before=st.sampled_from(["", "Book this: ", "a { b "]), seed=st.integers(0, 3))
def test_an_object_in_a_prompt_is_broken_in_its_syntax(value: dict[str, object], before: str, seed: int) -> None:
    text = json.dumps(value)
    prompt = before + text + " please"
    assert find_object(prompt) == (len(before), len(before) + len(text))
    broken = break_prompt(row(prompt), {normalise(prompt)}, seed)
    assert broken.startswith(before)
    assert broken.endswith(" please")
    inside = broken.removeprefix(before).removesuffix(" please")
    with pytest.raises(BrokenContract):
        parse_json(inside)
    assert Indel.distance(inside, text) == 1 or text.startswith(inside)


def test_all_ways_of_breaking_an_object_occur() -> None:
    broken, taken = [], {normalise(ORDER)}
    for seed in range(60):
        broken.append(break_prompt(row(ORDER), taken, seed))
    assert {len(text) for text in broken} >= {len(ORDER) - 1, len(ORDER) + 1}
    for mark in ',{}[]":':
        assert any(text.count(mark) != ORDER.count(mark) and abs(len(text) - len(ORDER)) == 1 for text in broken), mark
    assert any(ORDER.startswith(text) for text in broken)


@pytest.mark.parametrize("prompt", ["no object", "{} is empty", "{broken: 1}", "[1, 2]", "{"])
def test_prompts_without_an_object(prompt: str) -> None:
    assert find_object(prompt) == (0, 0)


def test_all_ways_of_breaking_occur() -> None:
    broken = [break_prompt(ticket, set(), 17) for ticket in TICKETS]
    letters = {tuple(sorted(ticket.prompt[:80])) for ticket in TICKETS}
    assert any(tuple(sorted(text)) in letters for text in broken)
    assert any(len(text) >= 8 and set(text) <= set("asdfghjkl;") for text in broken)


def test_rows_that_are_added() -> None:
    made = malformed_rows(TICKETS, 10, ANSWER, {row.prompt for row in TICKETS}, 17)
    assert len(made) == 6
    assert {(r.completion, r.label, r.source) for r in made} == {(ANSWER, None, "augment:malformed")}
    assert {r.origin for r in made} < {r.origin for r in TICKETS}
    assert len({normalise(r.prompt) for r in made}) == 6
    assert malformed_rows(TICKETS[:9], 10, ANSWER, set(), 17) == []


def test_order_changes_nothing_and_the_seed_does() -> None:
    moved = random.Random(1).sample(TICKETS, len(TICKETS))
    assert malformed_rows(moved, 10, ANSWER, set(), 17) == malformed_rows(TICKETS, 10, ANSWER, set(), 17)
    assert malformed_rows(TICKETS, 10, ANSWER, set(), 18) != malformed_rows(TICKETS, 10, ANSWER, set(), 17)
