"""What answers must keep to: JSON Schema by the draft that a schema names, from one file, and the contract of a row.

Where the `jsonschema` package leaves a meaning to Python, it is given here as ECMA-262 and the drafts have it: the end
of a pattern, digits and word characters, and numbers by their decimal digits.
"""

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker, ValidationError, validators
from jsonschema.exceptions import SchemaError, best_match
from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import specification_with

from stages.core.errors import UserError
from stages.params.task import Task, TaskContract
from stages.text.strict_json import ExactNumber, parse_json

_DRAFTS = [f"http://json-schema.org/draft-0{number}/schema#" for number in (3, 4, 6, 7)]
_NEWER = ["https://json-schema.org/draft/2019-09/schema", "https://json-schema.org/draft/2020-12/schema"]
# Those that need no further package, so that one schema means the same on every machine.
_FORMATS = FormatChecker(["date", "email", "idn-email", "ipv4", "ipv6", "regex", "uuid"])
_CLOCK = r"([01]\d|2[0-3]):([0-5]\d:[0-5]\d|59:60)(\.\d+)?(z|[+-]([01]\d|2[0-3]):[0-5]\d)"  # RFC 3339
_TIME, _DATE_TIME = (re.compile(before + _CLOCK, re.ASCII | re.IGNORECASE) for before in ("", r"\d{4}-\d\d-\d\dt"))
_FORMATS.checks("time")(lambda text: not isinstance(text, str) or bool(_TIME.fullmatch(text)))
_IN_PLACE = ("allOf", "anyOf", "oneOf", "extends", "not", "if", "then", "else", "dependentSchemas", "dependencies")
# What Python reads in another way: escapes, empty classes, the start of a named group, bounds of a class, an end.
_TOKEN = re.compile(r"\\.|\[\^?\]|\(\?<(?=[A-Za-z_])|[\[\]$]", re.DOTALL)
_ASCII = {"d": "0-9", "w": "A-Za-z0-9_"}


@_FORMATS.checks("date-time", raises=ValueError)
def _is_date_time(text: object) -> bool:
    if not isinstance(text, str):
        return True
    return bool(_DATE_TIME.fullmatch(text) and datetime.date.fromisoformat(text[:10]))


class Schema:
    """A JSON Schema from a file, or the part of it that a JSON pointer such as #/$defs/order names.

    The draft is that of its `$schema`, 2020-12 where it has none. `format` is asserted in drafts 3 to 7; 2019-09 and
    2020-12 take it as a note. UserError when the file is no schema of a draft, or a reference leads nowhere.
    """

    def __init__(self, path: Path, pointer: str = "#", text: str | None = None) -> None:
        try:
            self.text = path.read_text(encoding="utf-8") if text is None else text
            schema = parse_json(self.text)
        except FileNotFoundError:
            raise UserError(f"{path} is missing; task.schema_file must name the completion's JSON Schema") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); task.schema_file must name a file") from None
        except ValueError as error:  # no UTF-8, no JSON, no name that a file can have
            raise UserError(f"{path}: not JSON: {error}") from None
        try:
            draft, formats = _draft(schema)
            _prepare(schema, draft, pointer)
        except RecursionError:
            raise UserError(f"{path}: not a JSON Schema: nested too deeply") from None
        except _NoSchema as error:
            raise UserError(f"{path}: {error}") from None
        # A part keeps the whole schema behind it, so that references lead where they led. The registry keeps
        # `jsonschema` from fetching what it does not know.
        whole = _exact(draft)(schema, registry=Registry(), format_checker=_FORMATS if formats else None)
        self._validator = whole if pointer == "#" else whole.evolve(schema={"$ref": pointer})

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


@dataclass(frozen=True)
class Contract:
    """One task's settings and, for structured answers, its schema."""

    settings: TaskContract
    schema: Schema


class Tasks:
    """The contract of every row: that of its tag where task.tags has it, else the one that all of `task` gives.

    `schema` is the text of task.schema_file, for machines that do not have the file.
    """

    def __init__(self, task: Task, schema: str | None = None) -> None:
        tagged: dict[str | None, TaskContract] = {tag: task.contract(tag) for tag in task.tags}
        self._contracts = {
            tag: Contract(settings, Schema(Path(task.schema_file), settings.schema_at, schema))
            for tag, settings in {None: task, **tagged}.items()
        }
        self.schema = self._contracts[None].schema.text

    def of(self, tag: str | None) -> Contract:
        return self._contracts.get(tag, self._contracts[None])


class _NoSchema(ValueError):
    """Why a file is no schema that can be used."""


def _draft(schema: Any) -> tuple[Any, bool]:
    """The validator of the draft that `$schema` names, and whether the draft asserts `format`."""
    named = schema.get("$schema", _NEWER[-1]) if isinstance(schema, dict) else _NEWER[-1]
    known = {uri.rstrip("#"): uri in _DRAFTS for uri in (*_DRAFTS, *_NEWER)}
    if not isinstance(named, str) or named.removesuffix("#") not in known:
        raise _NoSchema(f"$schema is {named!r}, which is none of {', '.join((*_DRAFTS, *_NEWER))}")
    draft = validators.validator_for({"$schema": named}, default=Draft202012Validator)
    return draft, known[named.removesuffix("#")]


def _prepare(schema: Any, draft: Any, pointer: str) -> None:
    """Check every schema within `schema` and every reference, and write patterns as Python reads them, in place."""
    _check(schema, draft, "the file")
    specification = specification_with(draft.META_SCHEMA["$schema"])
    root = specification.create_resource(schema)
    resolver = REGISTRY.resolver_with_root(root)
    own, beside = {id(node) for node in _objects(schema)}, dict[int, set[int]]()
    try:
        part = resolver.lookup(pointer)
    except Unresolvable:
        raise _NoSchema(f"has no schema at {pointer}; task.schema_at must name a part of it") from None
    _check(part.contents, draft, pointer)
    pending: list[tuple[Any, Any]] = [(root, resolver), (specification.create_resource(part.contents), part.resolver)]
    while pending:
        resource, within = pending.pop()
        contents = resource.contents
        if id(contents) not in own or id(contents) in beside:  # true, false, a draft's own schema, or seen before
            continue
        beside[id(contents)] = {id(one) for one in _in_place(contents)}
        if "$schema" in contents and _draft(contents)[0] is not draft:
            raise _NoSchema(f"$schema is {contents['$schema']} in one part of it; use one draft throughout")
        contents.pop("$schema", None)  # `jsonschema` would take its own class of that draft in place of `_exact`
        for key, target in _references(contents, within):
            _check(target.contents, draft, contents[key])
            pending.append((specification.create_resource(target.contents), target.resolver))
            if key == "$ref":
                beside[id(contents)].add(id(target.contents))
        if isinstance(contents.get("pattern"), str):
            contents["pattern"] = _as_python(contents["pattern"])
        if isinstance(contents.get("patternProperties"), dict):
            contents["patternProperties"] = {_as_python(k): v for k, v in contents["patternProperties"].items()}
        pending += [(inner, within.in_subresource(inner)) for inner in resource.subresources()]
    try:
        TopologicalSorter({one: reached & beside.keys() for one, reached in beside.items()}).prepare()
    except CycleError:
        raise _NoSchema("a $ref leads back to itself, so that no value could ever be held against it") from None


def _references(contents: dict[str, Any], resolver: Any) -> Iterator[tuple[str, Any]]:
    for key in ("$ref", "$dynamicRef", "$recursiveRef"):
        if isinstance(reference := contents.get(key), str):
            try:
                yield key, resolver.lookup(reference)
            except Unresolvable:
                raise _NoSchema(
                    f"the {key} {reference} leads nowhere; nothing is fetched: put what is meant into $defs"
                ) from None


def _in_place(contents: dict[str, Any]) -> Iterator[Any]:
    """The schemas within that are held against the same value."""
    for key in _IN_PLACE:
        there = contents.get(key)
        if key.startswith("depend") and isinstance(there, dict):
            there = list(there.values())
        yield from there if isinstance(there, list) else [there]


def _check(contents: Any, draft: Any, what: str) -> None:
    try:
        draft.check_schema(contents, format_checker=FormatChecker([]))
    except SchemaError as error:
        raise _NoSchema(f"not a JSON Schema: {what}: {error.message}") from None


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(inner)


def _as_python(pattern: str) -> str:
    """A pattern of ECMA-262 as Python's: `$` is the very end, digits and word characters are those of ASCII."""
    in_class = False

    def token(match: re.Match[str]) -> str:
        nonlocal in_class
        text = match.group()
        if text[0] == "\\":
            if text[1] in "AZ":  # plain letters there
                return text[1]
            kind = _ASCII.get(text[1].lower())
            if kind is None or (in_class and text[1].isupper()):
                return text
            return kind if in_class else f"[^{kind}]" if text[1].isupper() else f"[{kind}]"
        if in_class:
            in_class = not text.endswith("]")
            return text.replace("[", r"\[")
        in_class = text == "["
        return {"$": r"\Z", "(?<": "(?P<", "[]": "(?!)", "[^]": r"[\s\S]"}.get(text, text)

    written = _TOKEN.sub(token, pattern)
    try:
        re.compile(written)
    except re.error as error:
        raise _NoSchema(f"the pattern {pattern} is none that Python has ({error})") from None
    return written


def _exact(draft: Any) -> Any:
    """The draft's validator with numbers by their decimal digits: 19.99 is a multiple of 0.01."""

    def is_integer(_: Any, value: Any) -> bool:
        if isinstance(value, ExactNumber):
            return bool(value.exact == value.exact.to_integral_value())
        return bool(draft.TYPE_CHECKER.is_type(value, "integer"))

    def multiple_of(validator: Any, factor: Any, instance: Any, _: Any) -> Iterator[ValidationError]:
        if validator.is_type(instance, "number") and _fraction(instance) % _fraction(factor):
            yield ValidationError(f"{instance!r} is not a multiple of {factor!r}")

    integers_have_points = draft.TYPE_CHECKER.is_type(1.0, "integer")  # not in drafts 3 and 4
    return validators.extend(  # type: ignore[no-untyped-call]
        draft,
        {key: multiple_of for key in ("multipleOf", "divisibleBy") if key in draft.VALIDATORS},
        type_checker=draft.TYPE_CHECKER.redefine("integer", is_integer) if integers_have_points else None,
    )


def _fraction(number: Any) -> Fraction:
    return Fraction(number.exact if isinstance(number, ExactNumber) else str(number))
