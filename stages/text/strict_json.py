"""Strict JSON, whose numbers keep their digits."""

import json
import math
from decimal import Decimal
from typing import Any


class BrokenContract(ValueError):
    """A completion that is not what the task promises; the message says why."""


def parse_json(text: str) -> Any:
    """Parse JSON as RFC 8259 has it, and stricter than Python does.

    Raises:
        BrokenContract: on syntax errors, NaN, infinities, numbers that no double comes near, repeated keys and unpaired
            surrogates.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=ExactNumber)
    except RecursionError:
        raise BrokenContract("nested too deeply") from None
    except ValueError as error:
        raise BrokenContract(str(error)) from None
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise BrokenContract("nested too deeply") from None
    except UnicodeEncodeError:
        raise BrokenContract("an unpaired surrogate, which no UTF-8 text can hold") from None
    return value


def completion_key(completion: str) -> str:
    """JSON without insignificant white space and with sorted keys; any other text as it is."""
    try:
        value = parse_json(completion)
    except BrokenContract:
        return completion
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise BrokenContract(f"key {repeated!r} occurs more than once")
    return result


def _no_constant(name: str) -> Any:
    raise BrokenContract(f"{name} is not JSON")


class ExactNumber(float):
    """A number with a point or an exponent: a float for all who count with it, and `exact`, what its author wrote."""

    exact: Decimal

    def __new__(cls, written: str) -> "ExactNumber":
        number = super().__new__(cls, written)
        number.exact = Decimal(written)
        if math.isinf(number) or (not number and number.exact):
            raise BrokenContract(f"{written} is too {'large' if number else 'small'} a number")
        return number
