"""Write docs/parameters.md from the schema in stages/params/: `python docs/parameters.py`."""

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from stages.core.machine import Machine  # noqa: E402
from stages.describe_params import Parameter, parameters  # noqa: E402
from stages.params.loader import Params  # noqa: E402
from stages.params.measure import STANDING  # noqa: E402
from stages.params.section import Section  # noqa: E402

_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}
_KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "object": "map"}
_HEAD = """# Parameters

Made from the schema in `stages/params/` by `python docs/parameters.py`; a test holds it true.

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


def page() -> str:
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
    cells = [(f"`{r.key}`", f"`{r.default}`" if r.default else "", may_be(r.field), r.meaning) for r in rows]
    lines = [("key", "default", "may be", "meaning"), ("---",) * 4, *cells]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def may_be(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(may_be(one) for one in field["anyOf"])
    if "enum" in field or "const" in field:
        return ", ".join(str(value) for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of: {may_be(field['items'])}"
    bounds = [f"{words} {field[name]}" for name, words in _BOUNDS.items() if name in field]
    return ", ".join([_KINDS.get(field.get("type", "object"), str(field.get("type"))), *bounds])


if __name__ == "__main__":
    (ROOT / "docs/parameters.md").write_text(page(), encoding="utf-8")
