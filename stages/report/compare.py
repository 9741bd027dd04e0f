"""compare: what a change does to parameters, gates and metrics, as Markdown for a pull request.

One table of what matters; what moved within its interval, and every gate, is folded away below it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from stages.core import paths
from stages.core.errors import UserError
from stages.core.git import CommitTree, Repository, Tree, WorkingTree
from stages.core.yaml_reader import load_yaml
from stages.report.data_difference import data_difference
from stages.report.formats import between, number, p_value, percent, points, render
from stages.report.verdict import gate_table
from stages.scoring.catalogue import Key, Number, catalogue_of, centre

MOST = 12  # metrics that the first table shows; the others are folded
_MAIN = ("exact_match", "label_accuracy", "rougeL")  # metrics whose paired tests the first table shows


class _Row(NamedTuple):
    what: str
    then: str
    now: str
    reading: str = ""


def compare(root: Path, base: str, lock: str) -> str:
    """The working tree against the revision `base`; `lock` says whether dvc.lock belongs to it.

    Raises:
        UserError: when `base` is no revision.
    """
    repository = Repository(root)
    commit = repository.resolve(base)
    if commit is None:
        raise UserError(f"{base!r} is no commit, branch or tag here; fetch it first: git fetch origin")
    trees = CommitTree(repository, commit), WorkingTree(root)
    gates = [_json(tree, paths.GATES) for tree in trees]
    moved, tests, rest, unseen = _compared(*(catalogue_of(_json(tree, paths.DETAILS)) for tree in trees))
    first = [*_settings(*trees), *moved[:MOST], *tests]
    about_data, groups = data_difference(repository, *trees)
    return render(
        "compare.md.j2",
        {
            "base": base,
            "lock": lock,
            "data": about_data,
            "groups": groups.map("{:,}".format),
            "verdicts": [one.get("verdict") for one in gates],
            "changed": _frame(first, base),
            "hidden": max(0, len(moved) - MOST),
            "unseen": unseen,
            "rest": _frame([*moved[MOST:], *rest], base),
            "gates": gate_table(gates[1]) if gates[1] else None,
        },
    )


def changes(then: Tree, now: Tree) -> list[tuple[str, str, str, str]]:
    """What differs from one state to another in parameters, gates and metrics: what, then, now, and how to read it.

    Of the metrics, those that left their interval, and the main ones of the adapter with or without.
    """
    moved, _, rest, _ = _compared(*(catalogue_of(_json(tree, paths.DETAILS)) for tree in (then, now)))
    main = [row for row in rest if row.what in {f"adapter {name}" for name in _MAIN}]
    return [*_settings(then, now), *main, *moved]


def _settings(then: Tree, now: Tree) -> Iterator[_Row]:
    old, new = (dict(_leaves(_yaml(tree))) for tree in (then, now))
    for name in _differing(old, new):
        was, is_now = (json.dumps(one[name], ensure_ascii=False) if name in one else "" for one in (old, new))
        yield _Row(name, was, is_now, "parameter")
    gates = _json(now, paths.GATES).get("gates", {})
    old, new = ({n: g["state"] for n, g in _json(tree, paths.GATES).get("gates", {}).items()} for tree in (then, now))
    for name in _differing(old, new):
        reason = gates[name]["reason"] if name in gates else "no longer set"
        yield _Row(name, old.get(name, ""), new.get(name, ""), f"gate: {reason}")


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names whose values differ, or that one of the two lacks."""
    return [n for n in dict.fromkeys([*now, *then]) if (n in then, then.get(n)) != (n in now, now.get(n))]


def _compared(then: Mapping[Key, Number], now: Mapping[Key, Number]) -> tuple[list[_Row], list[_Row], list[_Row], int]:
    """Metrics that moved beyond their interval, those of all rows first; paired tests of main metrics; the rest; and
    how many differ in digits alone that are not shown, as another processor rounds them.
    """
    unseen = 0
    groups: list[_Row] = []
    moved: list[_Row] = []
    tests: list[_Row] = []
    rest: list[_Row] = []
    for key in dict.fromkeys([*now, *then]):
        old, new = then.get(key), now.get(key)
        row = _Row(str(key), _text(old), _text(new))
        if key.against and key.metric in _MAIN and not key.of and new is not None:
            tests.append(row._replace(reading="paired test on the same rows"))
        elif row.then == row.now:
            unseen += old != new
        elif (
            isinstance(old, Mapping)
            and isinstance(new, Mapping)
            and not key.against
            and not old["low"] <= new["value"] <= old["high"]
        ):
            reading = f"{'▲' if new['value'] > old['value'] else '▼'} beyond the interval"
            (groups if key.of else moved).append(row._replace(reading=reading))
        else:
            rest.append(row)
    return moved + groups, tests, rest, unseen


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Parameters by their dotted names."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif name:
        yield name, node


def _text(found: Any) -> str:
    """A metric for a reader: a share in per cent, a change of one in points with the rows and the test."""
    if not isinstance(found, Mapping):
        return "" if found is None else number(round(found, 9) + 0.0) if isinstance(found, float) else str(found)
    value, low, high = centre(found), found["low"], found["high"]
    if "won" in found:
        return f"{points(value)} ({found['won']} won, {found['lost']} lost, {p_value(found['p_value'])})"
    if "count" in found:
        return f"{percent(value)} ({between(percent, low, high)})"
    return f"{'× ' if 'ratio' in found else ''}{number(value)} ({number(low)} to {number(high)})"


def _json(tree: Tree, path: Path) -> dict[str, Any]:
    """A JSON object in git or the working tree; empty where there is none."""
    try:
        content = json.loads(tree.read(path.as_posix()) or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _yaml(tree: Tree) -> Any:
    try:
        return load_yaml(tree.read(paths.PARAMS.as_posix()) or b"{}")
    except ValueError:
        return {}


def _frame(rows: Sequence[_Row], base: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["What", base, "now", "Reading"], dtype=object).set_index("What")
