"""Rows with exchanged values: still true, new, and drawn by content alone."""

import json
import random

from hypothesis import given
from hypothesis import strategies as st

from stages.prepare.augment.added_rows import SWAPPED_SOURCE, swapped_rows
from stages.records.record import Record, make_record
from stages.text.normal_form import normalise

CITIES = ["Oslo", "Lima", "Rome", "New York", "Bern"]
DAYS = ["monday", "friday", "today"]


def weather(city: str, day: str, line: int = 1) -> Record:
    completion = json.dumps({"intent": "weather", "slots": {"city": city, "day": day}})
    return make_record(f"Weather in {city} on {day}?", completion, "weather", "test", f"a.jsonl:{line}")


ROWS = [weather(city, day) for city, day in zip(CITIES, DAYS + DAYS, strict=False)]


def test_the_new_value_stands_in_prompt_and_answer_alike() -> None:
    made = swapped_rows(ROWS, 5, set(), 17)
    assert len(made) == 5
    for row in made:
        slots = json.loads(row.completion)["slots"]
        assert row.prompt == f"Weather in {slots['city']} on {slots['day']}?"
        assert slots["city"] in CITIES
        assert slots["day"] in DAYS
        assert (row.source, row.label) == (SWAPPED_SOURCE, "weather")
    assert len({row.prompt for row in made}) == 5


def test_no_new_prompt_stands_elsewhere() -> None:
    known = {normalise(weather(city, day).prompt) for city in CITIES for day in DAYS[:2]}
    made = swapped_rows(ROWS, 50, known, 17)
    prompts = [normalise(row.prompt) for row in made]
    assert made
    assert not known & set(prompts)
    assert len(set(prompts)) == len(prompts)


def test_values_go_to_their_own_key_and_label_only() -> None:
    other = make_record("Fly to Mars", '{"intent": "fly", "slots": {"city": "Mars"}}', "fly", "test", "a.jsonl:9")
    made = swapped_rows([*ROWS, other], 40, set(), 3)
    assert made
    assert all("Mars" not in row.prompt for row in made)


def test_order_changes_nothing() -> None:
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    assert swapped_rows(shuffled, 8, set(), 17) == swapped_rows(ROWS, 8, set(), 17)


def test_a_value_inside_another_word_or_twice_is_left_alone() -> None:
    rows = [
        make_record("Roman roads in Rome", '{"city": "Rom"}', "x", "test", "a.jsonl:1"),
        make_record("from Bern to Bern", '{"city": "Bern"}', "x", "test", "a.jsonl:2"),
        make_record("no JSON", "Rome", "x", "test", "a.jsonl:3"),
        make_record("a list of Oslo", '{"city": ["Oslo"]}', "x", "test", "a.jsonl:4"),
    ]
    rows += [
        make_record(f"{city} is there", json.dumps({"city": city, "seen": [{"at": f"{city}!"}]}), "x", "test", f"b:{n}")
        for n, city in enumerate(CITIES)
    ]
    rows += [make_record(f"{city} is a text", json.dumps(city), "x", "test", f"c:{city}") for city in CITIES]
    assert swapped_rows(rows, 10, set(), 17) == []


def test_what_is_not_exchanged_stays_to_the_letter() -> None:
    """As floats 19.90 would be 19.9, and the other number another."""
    rows = [
        make_record(
            f"19.90 to {city}", f'{{"total":19.90, "n": [12345678901234567890.5], "to": "{city}"}}', "x", "f", "f:1"
        )
        for city in CITIES
    ]
    made = swapped_rows(rows, 5, set(), 17)
    assert made
    for row in made:
        assert row.completion == f'{{"total":19.90, "n": [12345678901234567890.5], "to": "{row.prompt[9:]}"}}'


words = st.text(st.sampled_from("ab .*\\g<1>é"), min_size=1, max_size=6)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=8), st.integers(0, 9))
def test_every_exchanged_value_is_a_copy_whatever_the_text(pairs: list[tuple[str, str]], seed: int) -> None:
    rows = [
        make_record(f"say {a} and {b}", json.dumps({"a": a, "b": {"c": b}}), None, "test", f"f:{n}")
        for n, (a, b) in enumerate(pairs)
    ]
    for row in swapped_rows(rows, 10, set(), seed):
        answer = json.loads(row.completion)
        assert row.prompt == f"say {answer['a']} and {answer['b']['c']}"
