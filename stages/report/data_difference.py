"""What a change does to the data, row by row: the first thing that a reviewer asks, and the last that metrics tell."""

import hashlib
import json
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from stages.core import paths
from stages.core.dvc_lock import locked_bytes, value_at
from stages.core.git import Repository, Tree
from stages.report.formats import plural

_GROUPS = ("label", "source", "annotator")
_WHOLE = "all rows"
_CHANGES = ["added", "removed", "changed"]


class Row(NamedTuple):
    """A row of the data: `asked` is what the model reads, `said` the whole of it; both only to be compared."""

    asked: str
    said: str
    groups: tuple[tuple[str, str], ...]


def data_difference(repository: Repository, then: Tree, now: Tree) -> tuple[list[str], pd.DataFrame]:
    """Sentences about rows and hold-out, and a table of the groups of rows that differ.

    The rows are those of `clean.raw` where git has them, else those of data/clean.jsonl from DVC's cache: the same
    commit and the same access give the same text. A row of the same prompt and another answer is a changed one.
    """
    rows = [_raw_rows(tree) for tree in (then, now)]
    if None in rows:
        rows = [_clean_rows(repository, tree) for tree in (then, now)]
    old, new = rows
    table = _table([], [])
    if old is None or new is None:
        said = "Data: which rows differ is not known here; `dvc fetch clean` on both revisions brings them."
    elif (table := _table(old, new)).empty:
        said = f"Data: the same {len(new):,} rows."
    else:
        added, removed, changed = table.loc[_WHOLE, _CHANGES]
        said = f"Data: {plural(added, 'row')} added, {removed:,} removed, {changed:,} changed, of {len(new):,}."
    return [_holdout(then, now), said], table


def _table(old: Sequence[Row], new: Sequence[Row]) -> pd.DataFrame:
    """Rows of each group then and now, and how many came, went or got another answer; groups that differ alone."""
    sides = [("then", *row) for row in old] + [("now", *row) for row in new]
    rows = pd.DataFrame(sides, columns=["side", "asked", "said", "groups"], dtype=object)
    # Of a row that one side has more often, as many copies differ as there are more.
    copies = rows[["said"]].assign(copy=rows.groupby(["side", "said"]).cumcount())
    differ = rows[~copies.duplicated(keep=False)]
    went = differ["side"] == "then"
    changed = differ["asked"].isin(differ["asked"][went]) & differ["asked"].isin(differ["asked"][~went])
    what = differ["side"].map({"then": "removed", "now": "added"}).mask(changed, "changed")[~(changed & went)]
    groups = rows["groups"].map(lambda groups: [_WHOLE, *(f"{kind} {name}" for kind, name in groups)]).explode()
    counted = pd.concat([rows["side"], what]).rename("what").to_frame().join(groups)
    table = counted.groupby(["groups", "what"]).size().unstack(fill_value=0)
    table = (
        table.reindex(columns=["then", "now", *_CHANGES], fill_value=0).rename_axis("rows").rename_axis(None, axis=1)
    )
    table = table.sort_index(key=lambda names: names.map(lambda name: (name != _WHOLE, name)))
    return table[(table[_CHANGES] != 0).any(axis=1)]


def _raw_rows(tree: Tree) -> list[Row] | None:
    """The raw lines that git has of this tree; None where `clean.raw` is not in git."""
    place = _parameter(tree, "clean.raw", "data/raw")
    names = [posixpath.join(place, name).rstrip("/") for name in tree.md5s(place)]
    names = [name for name in names if not name.endswith((".gitignore", ".dvc"))]
    if not names:
        return None
    return [_raw_row(line, posixpath.basename(n)) for n in names for line in (tree.read(n) or b"").splitlines()]


def _raw_row(line: bytes, source: str) -> Row:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        return Row(_digest(line), _digest(line), (("source", source),))
    asked = {k: v for k, v in content.items() if k in ("prompt", "instruction", "input", "task", "system")}
    return _row(_digest(json.dumps(asked or content, sort_keys=True)), _digest(line), {"source": source} | content)


def _clean_rows(repository: Repository, tree: Tree) -> list[Row] | None:
    """The records of data/clean.jsonl that dvc.lock of this tree names; None where the cache has them not."""
    content = locked_bytes(repository.root, tree, paths.CLEAN.as_posix())
    if content is None:
        return None
    rows = list(map(json.loads, content.splitlines()))
    asked = [_digest(json.dumps([row["prompt"], row.get("context"), row.get("task")])) for row in rows]
    return [_row(key, row["id"], row.get("fields", {}) | row) for key, row in zip(asked, rows, strict=True)]


def _row(asked: str, said: str, columns: dict[str, Any]) -> Row:
    groups = {kind: str(columns[kind]) for kind in _GROUPS if columns.get(kind) is not None}
    # Half a surrogate pair, which JSON can write, is no text that a table or a page can hold.
    return Row(asked, said, tuple((kind, name.encode(errors="replace").decode()) for kind, name in groups.items()))


def _digest(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def _holdout(then: Tree, now: Tree) -> str:
    locks = [tree.read_mapping(Path(_parameter(tree, "holdout.lock", "data/holdout.lock"))) for tree in (then, now)]
    try:
        old, new = ({row["id"]: row.get("slice") for row in lock.get("rows", ())} for lock in locks)
    except (AttributeError, KeyError, TypeError):
        return "Hold-out: which rows differ is not known, for a lock is damaged; scores may not compare."
    if old.keys() == new.keys():
        return f"Hold-out: the same {len(new):,} rows."
    if not old.keys() <= new.keys():
        gone = f"{len(old.keys() - new.keys()):,} of {len(old):,} rows are others"
        return f"Hold-out: REDRAWN, {gone}; scores before and after do not compare."
    slices = sorted({str(new[row]) for row in new.keys() - old.keys() if new[row]})
    of = f", a slice of {', '.join(slices)}" if slices else ""
    return f"Hold-out: {plural(len(new) - len(old), 'row')} added to {len(old):,}{of}."


def _parameter(tree: Tree, key: str, default: str) -> str:
    return str(value_at(tree.read_mapping(paths.PARAMS), key) or default)
