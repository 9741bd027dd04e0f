"""Every parameter with its value, default and meaning, as `tunetrail params` prints them; docs/parameters.md, too."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from stages.core.machine import Machine
from stages.params.loader import Params

_MISSING = object()


class Parameter(NamedTuple):
    """One key of params.yaml. `default` is JSON, or empty where only the user can say; `field` is its JSON schema."""

    key: str
    default: str
    meaning: str
    field: Mapping[str, Any]


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
        yield Parameter(key, shown, field.get("description", "NAME: a section of its own"), field)
        if named := _section(field.get("additionalProperties"), shared):
            yield from _below(named, shared, {}, f"{key}.NAME.")


def _section(field: Any, shared: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section that a field refers to, if it does."""
    reference = field.get("$ref", "") if isinstance(field, dict) else ""
    return shared[reference.rpartition("/")[2]] if reference else None


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
