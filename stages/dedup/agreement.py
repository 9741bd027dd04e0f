"""When the completions of two near-duplicate prompts agree, so that one row can stand for the other."""

import json
from collections.abc import Callable
from typing import Literal

from stages.completions import BrokenContract, parse_json
from stages.near_duplicates import is_near

Agreement = Callable[[str, str], bool]


def completion_key(completion: str) -> str:
    """JSON without insignificant white space and with sorted keys; any other text as it is."""
    try:
        value = parse_json(completion)
    except BrokenContract:
        return completion
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def agreement(rule: Literal["equal", "fuzzy", "ignore"], threshold: int) -> Agreement:
    """The test on two completion keys: the same key, near at `threshold`, or anything."""
    if rule == "equal":
        return lambda left, right: left == right
    if rule == "fuzzy":
        return lambda left, right: is_near(left, right, threshold)
    return lambda left, right: True
