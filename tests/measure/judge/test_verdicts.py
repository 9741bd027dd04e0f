"""The judge's words, and what two orders say together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.measure.judge.__main__ import score, settle
from stages.scoring.paired_answers import LOSS, TIE, WIN, read_choice

CHOICES = st.sampled_from(["A", "B", "TIE", None])


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("A", "A"),
        (" b.\n", "B"),
        ("**TIE**", "TIE"),
        ("(A)", "A"),
        ("Winner: B", "B"),
        ("Answer A", "A"),
        ("Answer B is better.", "B"),
        ("The answer A is better than the answer B.", "A"),
        ("B is the better answer", "B"),
        ("The better answer is: A", "A"),
        ("The best answer is answer B.", "B"),
        ("Answer A names the order. Answer B does not.\n\nVerdict: A", "A"),
        ("<think>\nB looks right\n</think>\n\nTie", "TIE"),
        ("", None),
        ("\n \n", None),
        ("C", None),
        ("A or B", None),
        ("A B", None),
        ("AB", None),
        ("both", None),
        ("I like A because it is short", None),
        ("A\nI hope this helps", None),
        ("Untie", None),
        ("A is worse than B", None),
        ("A is better than nothing", None),
    ],
)
def test_the_last_line_is_the_choice_or_nothing_is(reply: str, choice: str | None) -> None:
    assert read_choice(reply) == choice


@given(st.text())
def test_any_text_is_read_without_failing(reply: str) -> None:
    assert read_choice(reply) in ("A", "B", "TIE", None)


def test_a_win_needs_both_orders() -> None:
    assert settle({True: WIN, False: WIN}).value == WIN
    assert settle({True: LOSS, False: LOSS}).value == LOSS
    for one, other in ((WIN, LOSS), (WIN, TIE), (TIE, LOSS), (WIN, None), (None, None)):
        verdict = settle({True: one, False: other})
        assert (verdict.value, verdict.agreed) == (TIE, False)
        assert verdict.readable == (one is not None and other is not None)


@given(CHOICES)
def test_a_judge_that_sees_places_alone_never_prefers_a_model(choice: str | None) -> None:
    both = {first: score(choice, tuned_first=first) for first in (True, False)}
    assert settle(both).value == TIE


@given(CHOICES, CHOICES)
def test_changing_the_sides_changes_the_sign(one: str | None, other: str | None) -> None:
    as_tuned = settle({True: score(one, tuned_first=True), False: score(other, tuned_first=False)})
    as_rival = settle({True: score(other, tuned_first=True), False: score(one, tuned_first=False)})
    assert as_rival.value == -as_tuned.value
    assert (as_rival.readable, as_rival.agreed) == (as_tuned.readable, as_tuned.agreed)
