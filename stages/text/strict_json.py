"""The contract of a completion: strict JSON that fits the task's schema."""

import json
import math
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing.exceptions import Unresolvable

from stages.core.errors import UserError


class BrokenContract(ValueError):
    """A completion that is not what the task promises; the message says why."""


def parse_json(text: str) -> Any:
    """Parse JSON as RFC 8259 has it, and stricter than Python does.

    Raises:
        BrokenContract: on syntax errors, NaN, infinities and numbers as large as one, repeated keys and unpaired
            surrogates.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite)
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


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise BrokenContract(f"{number} is too large a number")
    return value


class Schema:
    """A JSON Schema (draft 2020-12) from a file, or the part of it that a JSON pointer such as #/$defs/order names.

    Raises:
        UserError: when the file is missing, no JSON, or no schema, or has no such part.
    """

    def __init__(self, path: Path, pointer: str = "#") -> None:
        try:
            schema = parse_json(path.read_text(encoding="utf-8"))
            Draft202012Validator.check_schema(schema)
        except FileNotFoundError:
            raise UserError(
                f"{path} is missing; task.schema_file must name the JSON Schema of the completion"
            ) from None
        except (BrokenContract, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not JSON: {error}") from None
        except SchemaError as error:
            raise UserError(f"{path}: not a JSON Schema: {error.message}") from None
        # A part keeps the whole schema behind it, so that references lead where they led.
        whole = Draft202012Validator(schema)
        self._validator = whole if pointer == "#" else whole.evolve(schema={"$ref": pointer})
        try:
            self._validator.is_valid(None)
        except Unresolvable:
            raise UserError(f"{path} has no schema at {pointer}; task.schema_at must name a part of it") from None

    def problem(self, value: Any) -> str | None:
        """What is wrong with a parsed completion, or None."""
        try:
            error = best_match(self._validator.iter_errors(value))
        except RecursionError:
            return "nested too deeply"
        if error is None:
            return None
        where = error.json_path.removeprefix("$").lstrip(".")
        return f"{where}: {error.message}" if where else error.message
