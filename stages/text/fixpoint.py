"""Repeating a function of text until it changes nothing more."""

from collections.abc import Callable

_ROUNDS = 100  # ordinary text needs two; the bound is against texts made to keep it busy


class Unsettled(ValueError):
    """A text that still changes after many rounds."""


def settle(operate: Callable[[str], str], text: str) -> str:
    """Apply `operate` until its result stays the same, which makes the whole idempotent.

    Raises:
        Unsettled: after a hundred rounds.
    """
    for _ in range(_ROUNDS):
        before, text = text, operate(text)
        if text == before:
            return text
    raise Unsettled(f"the text still changes after {_ROUNDS} rounds of cleaning")
