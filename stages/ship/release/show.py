"""The trail as text, for a reader in a hurry: the answer first, then what made the file."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

_HASH = 12


def show(trail: Mapping[str, Any]) -> str:
    """The result of `trace` as lines of text."""
    return "\n".join(_lines(trail))


def _lines(trail: Mapping[str, Any]) -> Iterator[str]:
    file, stage = trail["file"], trail["stage"]
    state = file["trail"]
    yield file["path"]
    yield f"  trail    {'complete' if state['complete'] else 'BROKEN'}"
    yield from (f"           - {sentence}" for sentence in state["broken"])
    yield from (f"  note     {sentence}" for sentence in state["notes"])
    yield from (f"  {key:<8} {file[key]}" for key in ("sha256", "md5", "bytes") if file[key] is not None)
    yield from _commit(trail["commit"])
    if stage is None:
        return
    yield f"  stage    {stage['name']}: {stage['command']}"
    yield f"  output   {stage['output']['path']}  {stage['output']['md5']}"
    yield f"  after    {', '.join(stage['upstream'][:-1]) or 'no other stage'}"
    if base := trail["base"]:
        yield "base model"
        yield from (f"  {key:<8} {value}" for key, value in base.items() if value is not None)
    yield from _hashes("data", trail["data"])
    yield from _hashes("code", trail["code"])
    yield "parameters"
    yield from (
        f"  {name} = {json.dumps(value, ensure_ascii=False, default=str)}" for name, value in _leaves(trail["params"])
    )
    yield "metrics"
    for path, row in trail["metrics"].items():
        yield f"  {path}  {(row['md5'] or '?')[:_HASH]}  from stage {row['made_by']}"
        yield from (f"    {line}" for line in _figures(row["values"]))


def _commit(commit: Mapping[str, Any]) -> Iterator[str]:
    if not commit["sha"]:
        yield f"  commit   {commit['status']}"
        return
    yield f"  commit   {commit['sha']}"
    yield f"           {commit['date']} {commit['author']}: {commit['subject']}"
    yield f"  tags     {', '.join(commit['tags']) or 'none'}"
    yield f"  restore  git checkout {commit['tags'][0] if commit['tags'] else commit['sha'][:_HASH]} && dvc checkout"


def _hashes(title: str, rows: Mapping[str, Any]) -> Iterator[str]:
    yield title
    width = max((len(path) for path in rows), default=0)
    for path, row in rows.items():
        origin = f"  from stage {row['made_by']}" if row.get("made_by") else ""
        yield f"  {path.ljust(width)}  {row['md5']}{origin}"


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, node


def _figures(node: Any, name: str = "") -> Iterator[str]:
    """One line for each measured figure: a gate with its state, a proportion with its interval, a number."""
    if isinstance(node, Mapping):
        if "state" in node:
            yield f"{name}: {node['state']}, {node.get('reason') or 'no reason given'}"
        elif {"value", "low", "high"} <= node.keys():
            yield f"{name} = {_brief(node['value'])} ({_brief(node['low'])} to {_brief(node['high'])})"
        else:
            for key, value in node.items():
                yield from _figures(value, f"{name}.{key}" if name else str(key))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield f"{name} = {_brief(node)}"
    elif isinstance(node, str):
        yield f"{name}: {node}"


def _brief(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
