"""What differs between two texts, word by word."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(r"\w+|\s+|[^\w\s]")
_LIKE = 0.5  # texts less alike than this have nothing in common worth marking


@dataclass(frozen=True)
class Piece:
    text: str
    marked: bool


def differences(expected: str, found: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces; those are marked that the other does not have. Nothing is marked where all differs."""
    left, right = _TOKEN.findall(expected), _TOKEN.findall(found)
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    if matcher.ratio() < _LIKE:
        return whole(expected), whole(found)
    edits = matcher.get_opcodes()
    before = ((left[i:j], kind != "equal") for kind, i, j, _, _ in edits)
    after = ((right[i:j], kind != "equal") for kind, _, _, i, j in edits)
    return list(_pieces(before)), list(_pieces(after))


def whole(text: str) -> list[Piece]:
    return [Piece(text, False)]


def _pieces(runs: Iterator[tuple[list[str], bool]]) -> Iterator[Piece]:
    for tokens, marked in runs:
        if tokens:
            yield Piece("".join(tokens), marked)
