"""Every parameter with its value, default and meaning: `tunetrail params`, and docs/parameters.md."""

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from stages.core.machine import Machine
from stages.params.gates import STANDING
from stages.params.loader import Params
from stages.params.section import Section

_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}
_KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "object": "map"}
_MISSING = object()

_HEAD = """# Parameters

Made from the schema in `stages/params/` by `tunetrail params --markdown`; a test holds it true.

`params.yaml` holds what a project is likely to set; every other key has the default below. A key that is not here is
an error. `tunetrail params` prints all keys with the values that hold now.

- A key that `params.yaml` has: `dvc exp run -S train.learning_rate=5e-4`.
- A key that it lacks, with a plus: `dvc exp run -S +train.dropout=0.1`. It is written to `params.yaml` in its section.
- DVC needs a section, or a single key that a stage names in `dvc.yaml`, to be in the file: leave one key in each
  section.
- `TAG` and `NAME` stand for names that you choose.
"""
_GATES_HEAD = """
## Gates that hold for every task

A gate of `params.yaml` with one of these names changes the keys that it gives; `NAME: null` takes the gate away.

"""
_MACHINE_HEAD = """
## Settings of a machine

They change how fast a run is, or who is told of it, not what comes out beyond rounding, so they are no parameters and
make nothing stale.
Each is an environment variable, such as `TUNETRAIL_PACKING=false`, or a line of `machine.yaml`, which git ignores.
"""


class Parameter(NamedTuple):
    """One key of params.yaml. `default` is JSON, or empty where only the user can say."""

    key: str
    default: str
    may_be: str
    meaning: str


def parameters(model: type[Params] | type[Machine] = Params) -> list[Parameter]:
    """All keys in the order of the schema, with NAME or TAG for a free name."""
    schema = model.model_json_schema()
    return list(_below(schema, schema.get("$defs", {}), {}, ""))


def _below(section: Mapping[str, Any], shared: Mapping[str, Any], given: Any, above: str) -> Iterator[Parameter]:
    for name, field in section["properties"].items():
        key, default = f"{above}{name}", given.get(name, field.get("default", _MISSING))
        if inner := _section(field, shared):
            yield from _below(inner, shared, {} if default is _MISSING else default, f"{key}.")
            continue
        shown = "" if default is _MISSING else json.dumps(default, ensure_ascii=False)
        yield Parameter(key, shown, _may_be(field), field.get("description", "NAME: a section of its own"))
        if named := _section(field.get("additionalProperties"), shared):
            yield from _below(named, shared, {}, f"{key}.NAME.")


def _section(field: Any, shared: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section that a field refers to, if it does."""
    reference = field.get("$ref", "") if isinstance(field, dict) else ""
    return shared[reference.rpartition("/")[2]] if reference else None


def _may_be(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_may_be(one) for one in field["anyOf"])
    if "enum" in field or "const" in field:
        return ", ".join(str(value) for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of: {_may_be(field['items'])}"
    bounds = [f"{words} {field[name]}" for name, words in _BOUNDS.items() if name in field]
    return ", ".join([_KINDS.get(field.get("type", "object"), str(field.get("type"))), *bounds])


def describe(params: Params) -> str:
    """The values that hold now; where they are not the defaults, these too."""
    lines = []
    for one in parameters():
        if ".NAME" in one.key:
            continue
        value: Any = params
        for part in one.key.split("."):
            value = getattr(value, part)
        if isinstance(value, dict):
            value = {name: getattr(entry, "model_dump", lambda entry=entry: entry)() for name, entry in value.items()}
        shown = json.dumps(value, ensure_ascii=False)
        same = json.loads(one.default or "null") == value or not one.default
        lines.append(f"{one.key}: {shown}{'' if same else f'  (default: {one.default})'}\n    {one.meaning}")
    return "\n".join(lines)


def markdown() -> str:
    """docs/parameters.md."""
    sections: dict[str, list[Parameter]] = {}
    for one in parameters():
        sections.setdefault(one.key.partition(".")[0], []).append(one)
    parts = [_HEAD, *(f"\n## {name}\n\n{_intro(name)}{_table(rows)}" for name, rows in sections.items())]
    standing = [f"- `{name}: {json.dumps(gate)}`\n" for name, gate in STANDING.items()]
    parts += [_GATES_HEAD, *standing]
    return "".join([*parts, _MACHINE_HEAD, "\n", _table(parameters(Machine))])


def _intro(section: str) -> str:
    annotation = Params.model_fields[section].annotation
    is_section = isinstance(annotation, type) and issubclass(annotation, Section)
    return f"{inspect.getdoc(annotation)}\n\n" if is_section else ""


def _table(rows: list[Parameter]) -> str:
    cells = [(f"`{r.key}`", f"`{r.default}`" if r.default else "", r.may_be, r.meaning) for r in rows]
    lines = [("key", "default", "may be", "meaning"), ("---",) * 4, *cells]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
