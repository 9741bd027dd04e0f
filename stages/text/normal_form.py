"""Normal forms: the one by which prompts are the same, its hash, and how an operator comes to one."""

import hashlib
import unicodedata
from collections.abc import Callable

# Raise this with every change of `normalise`: a hold-out lock keeps hashes of normalised prompts, and one that
# another version wrote would recognise nothing.
NORMALISER_VERSION = 1
_ROUNDS = 100  # ordinary text needs two; the bound is against texts made to keep it busy


def normalise(prompt: str) -> str:
    """The text by which prompts are compared: case folded (Unicode 3.13, then NFC), runs of white space one space.

    Punctuation, accents and compatibility forms stay: they can change what is asked.
    """
    if prompt.isascii():  # the same, at a third of the time
        return " ".join(prompt.casefold().split())
    folded = unicodedata.normalize("NFD", prompt).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def prompt_hash(prompt: str) -> str:
    """SHA-256 of the normalised prompt, in hex."""
    return hashlib.sha256(normalise(prompt).encode()).hexdigest()


class Unsettled(ValueError):
    """A text that still changes after many rounds."""


def settle(operate: Callable[[str], str], text: str) -> str:
    """Apply `operate` until its result stays the same, which makes the whole idempotent; else raises Unsettled."""
    for _ in range(_ROUNDS):
        before, text = text, operate(text)
        if text == before:
            return text
    raise Unsettled(f"the text still changes after {_ROUNDS} rounds of cleaning")
