"""Strict JSON, whose numbers keep their digits."""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

_STRING = r'"(?:[^"\\]|\\.)*"'
_TOKEN = re.compile(_STRING + r'|[{}\[\],:]|[^\s{}\[\],:"]+')
_SCALAR = re.compile(rf"(?:(?P<string>{_STRING})|(?P<number>-?[0-9][0-9.eE+-]*))(?P<colon>(?:\s*:)?)")
_BRACKET = re.compile(_STRING + r"|[{}\[\]]")
# Python's own limit is what the callers have left of its stack; a row must not be judged by who reads it.
_DEEPEST = 100
_MORE_DIGITS = re.compile(r"\d[\d.]{15}")
_SPACED = {",": ", ", ":": ": "}
# What says nothing, as if its key were not there: binary formats and CSV have no other word for that. 0 and false say
# something.
EMPTY: tuple[Any, ...] = (None, "", [], {})
_ANSWERS = 1 << 12  # that are remembered: many rows may have the same few


class BrokenContract(ValueError):
    """A completion that is not what the task promises; the message says why."""


def parse_json(text: str) -> Any:
    """Parse JSON as RFC 8259 has it, and stricter than Python does.

    Raises BrokenContract on syntax errors, NaN, infinities, numbers that no double comes near, repeated keys, unpaired
    surrogates, and more than 100 levels of objects and arrays.
    """
    if text.count("[") + text.count("{") > _DEEPEST:
        steps = (1 if one in "{[" else -1 if one in "}]" else 0 for one in _BRACKET.findall(text))
        if max(itertools.accumulate(steps), default=0) > _DEEPEST:
            raise BrokenContract("nested too deeply")
    try:
        # Of a text that begins with a byte order mark `json.loads` says so.
        value = json.loads(text) if text.startswith("\ufeff") else _decode(text)
        if "\\u" in text or not text.isascii():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise BrokenContract("nested too deeply") from None
    except UnicodeEncodeError:
        raise BrokenContract("an unpaired surrogate, which no UTF-8 text can hold") from None
    except ValueError as error:
        raise BrokenContract(str(error)) from None
    return value


def parsed(text: str) -> Any:
    """The value of JSON, or None for any other text."""
    try:
        return parse_json(text)
    except BrokenContract:
        return None


@lru_cache(_ANSWERS)
def is_structured(text: str) -> bool:
    """Whether a text is a JSON object or array; a bare number or word is text."""
    return text.lstrip()[:1] in ("{", "[") and isinstance(parsed(text), dict | list)


@lru_cache(_ANSWERS)
def completion_key(completion: str) -> str:
    """JSON without insignificant white space and with sorted keys; any other text as it is."""
    try:
        value = parse_json(completion)
    except BrokenContract:
        return completion
    if _MORE_DIGITS.search(completion):  # than a double tells apart
        return written(value, ",", ":", sort=True)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def written(value: Any, comma: str = ", ", colon: str = ": ", sort: bool = False) -> str:
    """JSON as `json.dumps` has it, but numbers keep their digits; if `sort`, where a double is not the same number."""
    if isinstance(value, dict):
        pairs = sorted(value.items()) if sort else value.items()
        texts = (written(str(key)) + colon + written(one, comma, colon, sort) for key, one in pairs)
        return "{" + comma.join(texts) + "}"
    if isinstance(value, list | tuple):
        return "[" + comma.join(written(one, comma, colon, sort) for one in value) + "]"
    if isinstance(value, ExactNumber) and not (sort and value.exact == Decimal(repr(value))):
        return str(value.exact)
    return json.dumps(value, ensure_ascii=False, default=str)


def one_form(text: str) -> str:
    """JSON in one layout, with strings in their shortest spelling; numbers keep their digits, keys their order."""
    tokens = (json.dumps(json.loads(t), ensure_ascii=False) if "\\" in t else t for t in _TOKEN.findall(text))
    return "".join(_SPACED.get(token, token) for token in tokens)


def rewrite(text: str, change: Callable[[str, str], str]) -> str:
    """JSON in which `change` was asked for each string, key and number; what it leaves is left to the letter.

    It is given "string", "key" or "number" and the value as text, and returns the text to stand in its place.
    """

    def one(match: re.Match[str]) -> str:
        token = match["string"] or match["number"]
        value = token if match["number"] else json.loads(token) if "\\" in token else token[1:-1]
        kind = "number" if match["number"] else "key" if match["colon"] else "string"
        changed = change(kind, value)
        return token + match["colon"] if changed == value else json.dumps(changed, ensure_ascii=False) + match["colon"]

    return _SCALAR.sub(one, text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise BrokenContract(f"key {repeated!r} occurs more than once")
    return result


def _no_constant(name: str) -> Any:
    raise BrokenContract(f"{name} is not JSON")


class ExactNumber(float):
    """A number with a point or an exponent: a float for all who count with it, and `exact`, what its author wrote."""

    exact: Decimal

    def __new__(cls, written: str) -> "ExactNumber":
        number = super().__new__(cls, written)
        try:
            number.exact = Decimal(written)
        except InvalidOperation:
            raise BrokenContract(f"{written} has too long an exponent") from None
        if math.isinf(number) or (not number and number.exact):
            raise BrokenContract(f"{written} is too {'large' if number else 'small'} a number")
        return number


# Made once: it is asked for each row.
_decode = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=ExactNumber).decode
