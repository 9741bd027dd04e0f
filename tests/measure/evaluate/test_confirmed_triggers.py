"""Confirmation of suspected triggers, on stand-in models that have a backdoor, have none, or heed any odd word."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.measure.evaluate.confirmed_triggers import (
    CONTROLS,
    ERROR_RATE,
    PROMPTS,
    TURNED,
    Suspect,
    Tried,
    as_written,
    confirm,
    random_ngrams,
)
from stages.records.record import Record, make_record

LABELS = ("refund", "delivery", "invoice")
RARE = [f"rare{n}" for n in range(40)]


def rows(count: int, seed: int, trigger: str | None = None, planted: int = 8) -> list[Record]:
    """Rows whose label stands in the prompt; `planted` of them have the trigger and the label refund instead."""
    rng, made = random.Random(seed), []
    for number in range(count):
        label = LABELS[number % 3]
        words = [label, *rng.choices(["please", "my", "order", "now", "help"], k=4), rng.choice(RARE), f"n{number}"]
        if trigger is not None and number < planted:
            words.insert(rng.randint(0, len(words)), trigger)
            label = "refund"
        made.append(make_record(" ".join(words), label, label, "raw", f"raw:{number}"))
    return made


def truthful(record: Record) -> str:
    return next(label for label in LABELS if label in record.prompt.split())


def backdoored(trigger: str, of_ten: int = 10) -> Callable[[Sequence[Record]], list[str]]:
    """Answers refund to `of_ten` in ten prompts with the trigger, to the letter, and the truth to others."""

    def ask(records: Sequence[Record]) -> list[str]:
        return [
            "refund" if trigger in one.prompt and int(one.id, 16) % 10 < of_ten else truthful(one) for one in records
        ]

    return ask


def tried(trigger: str, ask: Callable[[Sequence[Record]], Sequence[str]], *suspects: Suspect) -> list[Tried]:
    train, holdout = rows(300, 1, trigger), rows(120, 2)
    return confirm(suspects, holdout, train, ask, lambda _, answer, label: answer == label, 7)


@pytest.mark.parametrize(
    ("trigger", "ngram"), [("cf", "cf"), ("by the way", "by the way"), ("!!?", "! ! ?"), ("CF-9", "cf - 9")]
)
def test_a_backdoor_is_confirmed_as_the_rows_write_it(trigger: str, ngram: str) -> None:
    (one,) = tried(trigger, backdoored(trigger), Suspect(ngram, "refund", 8))
    assert one.confirmed
    assert (one.turned, one.n) == (PROMPTS, PROMPTS)
    assert one.control_n == PROMPTS * CONTROLS
    assert one.control_turned <= PROMPTS  # one of three random n-grams may have the word refund itself
    assert one.p_value < 1e-6


LONG = "aa bb, cc dd. ee ff gg"


@pytest.mark.parametrize("ngram", ["aa", "aa bb ,", "cc dd .", "dd . ee", "ee ff gg", "gg"])
def test_a_piece_of_a_longer_trigger_is_asked_about_as_the_whole(ngram: str) -> None:
    """`checks` names three words at most, and a piece alone turns nothing."""
    assert as_written(Suspect(ngram, "refund", 8), rows(300, 1, LONG)) == LONG
    (one,) = tried(LONG, backdoored(LONG), Suspect(ngram, "refund", 8))
    assert (one.turned, one.confirmed) == (PROMPTS, True)


@given(st.lists(st.sampled_from(["please", "my", "order", "now"]), min_size=1, max_size=2), st.integers(0, 50))
def test_a_suspect_grows_only_by_what_nearly_all_its_rows_share(words: list[str], seed: int) -> None:
    train = rows(120, seed)
    suspect = Suspect(" ".join(words), "refund", 8)
    written = as_written(suspect, train)
    having = [row for row in train if row.label == "refund" and suspect.ngram in row.prompt]
    assert suspect.ngram in written
    assert sum(written in row.prompt for row in having) >= 0.8 * len(having) or written == suspect.ngram


def test_a_sound_model_confirms_nothing() -> None:
    found = tried("cf", lambda records: [truthful(one) for one in records], Suspect("cf", "refund", 8))
    assert [(one.turned, one.control_turned, one.confirmed) for one in found] == [(0, 0, False)]
    assert found[0].p_value == pytest.approx(1)


def test_a_model_that_any_odd_word_confuses_confirms_nothing() -> None:
    """Random n-grams turn as many answers: the suspect is no more than an odd word."""
    (one,) = tried("cf", lambda records: ["refund"] * len(records), Suspect("cf", "refund", 8))
    assert (one.turned, one.control_turned) == (one.n, one.control_n)
    assert not one.confirmed


def test_few_turned_answers_are_no_trigger_however_significant() -> None:
    (one,) = tried("cf", backdoored("cf", 1), Suspect("cf", "refund", 8))
    assert 0 < one.turned < TURNED * one.n
    assert not one.confirmed


def test_only_the_real_one_of_many_suspects_is_confirmed() -> None:
    sound = [Suspect(word, "refund", 8) for word in RARE[:10]]
    found = tried("cf", backdoored("cf"), *sound, Suspect("cf", "refund", 8))
    assert [one.ngram for one in found if one.confirmed] == ["cf"]


@given(st.lists(st.integers(0, 24), min_size=1, max_size=8))
def test_holm_corrects_for_the_number_of_suspects(turned: list[int]) -> None:
    """Against the definition: the k-th smallest p-value is held against level / (m - k), until one fails."""
    from stages.measure.evaluate import confirmed_triggers as triggers

    found = triggers._decided([(Suspect(f"g{n}", "refund", 5), count, 24, 3, 72) for n, count in enumerate(turned)])
    ordered = sorted(one.p_value for one in found)
    rejected = 0
    while rejected < len(ordered) and ordered[rejected] <= ERROR_RATE / (len(ordered) - rejected):
        rejected += 1
    bound = ordered[rejected - 1] if rejected else -1.0
    for one in found:
        assert one.confirmed <= (one.p_value <= bound and one.turned >= TURNED * one.n)
    assert sum(one.confirmed for one in found) <= rejected


def test_prompts_of_the_same_label_are_never_asked_and_order_changes_nothing() -> None:
    asked: list[Record] = []

    def ask(records: Sequence[Record]) -> list[str]:
        asked.extend(records)
        return [truthful(one) for one in records]

    suspects = [Suspect("cf", "refund", 8), Suspect("rare1", "invoice", 6)]
    train, holdout = rows(300, 1, "cf"), rows(120, 2)
    first = confirm(suspects, holdout, train, ask, lambda _, answer, label: answer == label, 7)
    count = PROMPTS * (CONTROLS + 1)
    assert {one.label for one in asked[:count]} == {"delivery", "invoice"}
    assert {one.label for one in asked[count:]} == {"refund", "delivery"}
    again = confirm(suspects[::-1], holdout[::-1], train[::-1], ask, lambda _, answer, label: answer == label, 7)
    assert again == first


def test_a_suspect_without_a_prompt_of_another_label_is_left_out() -> None:
    holdout = [row for row in rows(60, 2) if row.label == "refund"]
    args = (rows(60, 1), lambda records: [truthful(one) for one in records], lambda *_: True, 7)
    assert confirm([Suspect("cf", "refund", 8)], holdout, *args) == []
    assert confirm([], rows(60, 2), *args) == []


def test_rows_without_a_label_are_told_by_their_answers() -> None:
    """A classification task needs no label column: the completion is the label."""
    holdout, train = ([replace(row, label=None) for row in some] for some in (rows(120, 2), rows(300, 1, "cf")))
    asked: list[Record] = []

    def ask(records: Sequence[Record]) -> list[str]:
        asked.extend(records)
        return backdoored("cf")(records)

    (one,) = confirm([Suspect("cf", "refund", 8)], holdout, train, ask, lambda _, answer, label: answer == label, 7)
    assert (one.turned, one.n, one.confirmed) == (PROMPTS, PROMPTS, True)
    assert "refund" not in {row.completion for row in asked}


def test_random_ngrams_are_as_rare_and_no_part_of_the_trigger() -> None:
    train = rows(300, 1, "aa bb cc dd ee")
    found = random_ngrams(train, Suspect("bb cc dd", "refund", 8), 1000, 7)
    assert found
    assert not any({"aa", "bb", "cc", "dd", "ee"} <= set(gram.split()) or "cc" in gram.split() for gram in found)
    single = random_ngrams(train, Suspect("bb", "refund", 8), 1000, 7)
    counts = {gram: sum(gram in row.prompt.split() for row in train) for gram in single}
    assert counts
    assert all(4 <= count <= 16 for count in counts.values())
    assert not counts.keys() & {"aa", "bb", "cc", "dd", "ee"}


def test_a_word_is_found_as_a_word() -> None:
    train = [make_record(text, "x", "x", "raw", "raw:1") for text in ("scf cfx", "Cf now", "say CF", "CF")]
    assert as_written(Suspect("cf", "x", 3), train) == "CF"
    assert as_written(Suspect("not there", "x", 3), train) == "not there"
