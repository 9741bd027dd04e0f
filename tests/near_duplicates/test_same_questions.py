"""What the model reads decides: the same text for another task is no duplicate and no conflict."""

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz import fuzz

from stages.near_duplicates.pairs import near_pairs
from stages.near_duplicates.rule import CONTEXT, ask_the_same, same_questions
from stages.records.prompt import Question, by_question, compared, lines
from stages.records.record import Message, Record, make_record
from stages.text.normal_form import normalise

PASSAGE = (
    "The ferry to the northern islands left the harbour at seven in the morning, an hour late because of the fog. On "
    "board were forty schoolchildren, two teachers and a goat that belonged to nobody. By noon the sea was calm again, "
    "and the captain let the children steer, one after the other, until the first lighthouse came into sight."
)


def row(prompt: str, completion: str = "yes", task: str | None = None, system: str = "") -> Record:
    context = [Message("system", system)] if system else []
    return make_record(prompt, completion, None, "raw", "raw.jsonl:1", task=task, context=context)


def alike(rows: Sequence[Record], threshold: int = 90) -> set[frozenset[Question]]:
    """The pairs that the stages take for one question."""
    texts, questions = sorted(set(map(compared, rows))), by_question(rows)
    near = ((texts[pair.left], texts[pair.right], pair.score) for pair in near_pairs(texts, threshold))
    return {frozenset(pair[:2]) for pair in same_questions(questions, near)}


def apart(rows: Sequence[Record], threshold: int = 90) -> bool:
    return not alike(rows, threshold) and len(by_question(rows)) == len(rows)


def asks(rows: Sequence[str], threshold: int = 90) -> bool:
    return apart([row(prompt) for prompt in rows], threshold)


@pytest.mark.parametrize("threshold", [50, 80, 90, 97, 100])
def test_the_same_text_for_another_task_or_system_message_is_another_question(threshold: int) -> None:
    for text in ("Where is it?", PASSAGE):
        assert apart([row(text, task=task) for task in (None, "tone", "price")], threshold)
        systems = ("", "Say yes or no: is the tone of the text positive?", "Say yes or no: is the tone of it negative?")
        assert apart([row(text, system=system) for system in systems], threshold)
        assert len(by_question([row(text, system="Be  BRIEF"), row(f" {text} ", system="be brief")])) == 1


QUESTIONS = (
    ["Who wrote it?", "When was it written?", "Is the tone positive?", "Does it name a price?", "Why was it late?"],
    ["Is the tone positive? Answer yes or no.", "Is the tone negative? Answer yes or no."],
    ["Is the ferry late?", "Is the ferry not late?", "Is the goat late?", "Is the ferry early?"],
    ["Is option A right?", "Is option B right?", "Is option C right?"],
    ["Was it in 2018?", "Was it in 2019?", "Was it 12 or 13?", "Was it 12 or 14?"],
    ["Was he on board?", "Was she on board?", "Was it on board?", "Is a < b?", "Is a > b?"],
)
PLACES = (
    "{passage} {question}",
    "{question}\n\n{passage}",
    "{question} {passage} {question}",
    "Text: {passage}\nAsk: {question}",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("questions", QUESTIONS)
@pytest.mark.parametrize("threshold", [60, 90])
def test_questions_on_one_passage_are_told_apart(questions: list[str], place: str, threshold: int) -> None:
    for length in (CONTEXT + 10, 130, len(PASSAGE)):
        passage = PASSAGE[:length].rsplit(" ", 1)[0]
        assert asks([place.format(passage=passage, question=question) for question in questions], threshold)


def test_a_short_text_on_a_line_of_its_own_is_context_too() -> None:
    assert asks([f"Is the text about {topic}? Answer yes or no.\n\nThe match went on" for topic in ("sports", "music")])


def test_in_scripts_without_spaces_each_character_is_a_word() -> None:
    passage = "早上七点渡轮因为大雾晚了一个小时才离开港口船上有四十名小学生两位老师和一只山羊中午时分大海恢复了平静"
    assert asks([passage + question for question in ("谁在船上。", "几点到港。", "天气好吗。")], 80)
    assert len(alike([row(passage + "谁在船上。"), row(passage + "谁在船上")])) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("harbour", "habour"),
        ("harbour", "harbor"),
        ("schoolchildren", "schoolchidlren"),
        ("morning,", "morning"),
        ("belonged", "belongs"),
        ("sight.", "sight!"),
        ("By noon", "by  noon"),
    ],
)
def test_a_slip_in_a_long_prompt_makes_no_other_question(before: str, after: str) -> None:
    assert before in PASSAGE
    rows = [row(f"Who was on board?\n{text}") for text in (PASSAGE, PASSAGE.replace(before, after))]
    assert len(alike(rows)) == 1 or len(by_question(rows)) == 1


def test_short_prompts_are_ruled_by_the_ratio_alone() -> None:
    assert len(alike([row("please turn on the lights now"), row("please turn on the light now")])) == 1
    assert len(alike([row("Rate this book 4 stars out of 6"), row("Rate this book 5 stars out of 6")])) == 1


WORDS = st.sampled_from(["alpha", "alpah", "bravo", "charlie", "delta", "not", "7", "8", "echo,", "echo", "漢字"])
TEXTS = st.lists(st.lists(WORDS, min_size=1, max_size=9).map(" ".join), min_size=1, max_size=3).map("\n".join)
ROWS = st.lists(
    st.builds(row, TEXTS, st.just("yes"), st.sampled_from([None, "a", "b"]), st.sampled_from(["", "Be brief"])),
    max_size=8,
)


def slowly(left: Record, right: Record, threshold: int) -> bool:
    """The rule by every pair of rows, with the ratio of rapidfuzz."""
    one, other = (by_question([record]).popitem()[0] for record in (left, right))
    return (
        one != other
        and one[:2] == other[:2]
        and fuzz.ratio(one.text, other.text) >= threshold
        and ask_the_same(one.text, other.text, bool(lines([left]) & lines([right])))
    )


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, threshold=st.sampled_from([60, 75, 90]), shuffle=st.randoms(use_true_random=False))
def test_the_pairs_are_those_of_looking_at_every_pair(
    rows: list[Record], threshold: int, shuffle: random.Random
) -> None:
    rows = list({next(iter(by_question([record]))): record for record in rows}.values())
    expected = {
        frozenset(by_question([left, right]))
        for left, right in itertools.combinations(rows, 2)
        if slowly(left, right, threshold)
    }
    assert alike(rows, threshold) == expected == alike(shuffle.sample(rows, len(rows)), threshold)


@given(left=TEXTS, right=TEXTS, shared=st.booleans())
def test_the_rule_is_symmetric_and_equal_texts_ask_the_same(left: str, right: str, shared: bool) -> None:
    one, other = normalise(left), normalise(right)
    assert ask_the_same(one, other, shared) == ask_the_same(other, one, shared)
    assert ask_the_same(one, one, shared)
