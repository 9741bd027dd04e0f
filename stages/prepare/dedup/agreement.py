"""When the completions of two near-duplicate prompts agree, so that one row can stand for the other."""

from collections.abc import Callable
from typing import Literal

from stages.near_duplicates import is_near

Agreement = Callable[[str, str], bool]


def agreement(rule: Literal["equal", "fuzzy", "ignore"], threshold: int) -> Agreement:
    """The test on two completion keys: the same key, near at `threshold`, or anything."""
    if rule == "equal":
        return lambda left, right: left == right
    if rule == "fuzzy":
        return lambda left, right: is_near(left, right, threshold)
    return lambda left, right: True
