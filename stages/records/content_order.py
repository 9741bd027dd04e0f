"""Draws that follow from the seed and the content, not from positions."""

import hashlib


def rank(seed: int, purpose: str, key: str) -> str:
    """The place of `key` in a shuffled order: sort by it.

    A row's place depends on no other row, so a draw of the first n is the same for any order of the rows,
    and a new row moves at most one other out. `purpose` keeps the draws of one seed apart.
    """
    return hashlib.sha256(f"{seed}:{purpose}:{key}".encode()).hexdigest()
