"""What dvc.lock tells of an output: data, parameters, metrics, base model and code, as values and as text."""

import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from stages.core import paths
from stages.core.dvc_lock import Entry, Stage, entry_hash
from stages.core.git import Tree
from stages.ship.release.dvc_files import Listings
from stages.ship.release.finding import Place
from stages.ship.release.lock_check import flatten

_MODELS = paths.BASE.parent.as_posix()
_METRICS = paths.METRICS.as_posix()
_CODE_ENDS = (".py", ".sh", ".toml", ".cfg")
_HASH = 12


def describe(place: Place, tree: Tree, listings: Listings) -> dict[str, Any]:
    """What dvc.lock tells of an output, with the contents that the state of the repository or DVC's cache holds.

    Returns:
        "stage": the stage, the output, where the file lies in it and the entry of dvc.lock; "data" and "code": every
        file or folder that the upstream stages read, by path; "params": the values of all upstream stages, those of
        another file than params.yaml under its name; "base": the base model; "tracked_run": the tracker, and its run,
        that this machine told of the training, if any; "metrics": every JSON file in metrics/.
    """
    lock, stage, out, upstream = place.lock, place.stage, place.out, place.upstream()
    data, code, params = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    for one in upstream:
        for dep in one.deps:
            maker = next((maker.name for maker, _ in lock.makers(dep.path)), None)
            if maker is None and is_code(dep.path):
                code.setdefault(dep.path, {**_facts(dep, tree, listings), "used_by": []})["used_by"].append(one.name)
            elif _top(dep.path) not in (_MODELS, _METRICS):
                data[dep.path] = {**_facts(dep, tree, listings), "made_by": maker}
        for file, values in one.params.items():
            (params if file == paths.PARAMS.name else params.setdefault(file, {})).update(values)
    return {
        "stage": {
            "name": stage.name,
            "command": stage.command,
            "output": {"path": out.path, "md5": out.md5, "bytes": out.size},
            "within": place.within,
            "upstream": [one.name for one in upstream],
            "lock": stage.raw,
        },
        "data": data,
        "params": params,
        "metrics": {
            made.path: {"md5": made.md5, "made_by": maker.name, "values": _json(made, tree, listings)}
            for maker, made in lock.outs()
            if _top(made.path) == _METRICS and made.path.endswith(".json")
        },
        "base": _base(params.get("model", {}), upstream),
        "tracked_run": _tracked_run(upstream, listings),
        "code": dict(sorted(code.items())),
    }


def _facts(dep: Entry, tree: Tree, listings: Listings) -> dict[str, Any]:
    """Hash and size; for a folder also the hash of each file, where that adds up to the folder's."""
    facts: dict[str, Any] = {"md5": dep.md5, "bytes": dep.size}
    if dep.is_folder:
        files = tree.md5s(dep.path)
        facts["files"] = files if entry_hash(files) == dep.md5 else listings.get(dep.md5)
    return facts


def _json(out: Entry, tree: Tree, listings: Listings) -> Any:
    """The content of a JSON output in git or in DVC's cache, or None."""
    text, cached = tree.read(out.path), listings.cached_file(out.md5 or "none")
    if text is None and cached.is_file():
        text = cached.read_bytes()
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None


def _tracked_run(upstream: list[Stage], listings: Listings) -> dict[str, str] | None:
    try:
        known = json.loads((listings.root / paths.TRACKED_RUNS).read_bytes())
        return next((known[out.md5] for stage in upstream for out in stage.outs if out.md5 in known), None)
    except (OSError, ValueError, TypeError):
        return None


def _base(model: dict[str, Any], upstream: list[Stage]) -> dict[str, Any] | None:
    """The base model: where it came from, what it must be, and the hash of models/base. None when no stage had one."""
    out = next((out for stage in upstream for out in stage.outs if out.path == paths.BASE.as_posix()), None)
    named = {key: model.get(key) for key in ("source", "file", "sha256", "licence")}
    return {**named, "path": out.path, "md5": out.md5} if out else None


def is_code(path: str) -> bool:
    """Whether a path that no stage makes is part of the program: stages/, a source file, the pinned environment."""
    return _top(path) in ("stages", "constraints") or path.endswith(_CODE_ENDS) or path == "constraints.txt"


def show(trail: Mapping[str, Any]) -> str:
    """The result of `trace` as text: the answer first, then what made the file."""
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
    if run := trail["tracked_run"]:
        yield f"  tracked  {run['tracker']} run {run['run']}"
    if base := trail["base"]:
        yield "base model"
        yield from (f"  {key:<8} {value}" for key, value in base.items() if value is not None)
    for title in ("data", "code", "metrics"):
        yield title
        width = max((len(path) for path in trail[title]), default=0)
        for path, row in trail[title].items():
            origin = f"  from stage {row['made_by']}" if row.get("made_by") else ""
            yield f"  {path.ljust(width)}  {row['md5']}{origin}"
    yield "figures"
    yield from _figures(trail["metrics"].get(paths.SUMMARY.as_posix(), {}).get("values"))
    yield "parameters"
    yield from _figures(trail["params"])


def _commit(commit: Mapping[str, Any]) -> Iterator[str]:
    if not commit["sha"]:
        yield f"  commit   {commit['status']}"
        return
    yield f"  commit   {commit['sha']}"
    yield f"           {commit['date']} {commit['author']}: {commit['subject']}"
    yield f"  tags     {', '.join(commit['tags']) or 'none'}"
    yield f"  restore  git checkout {commit['tags'][0] if commit['tags'] else commit['sha'][:_HASH]} && dvc checkout"


def _figures(values: Any) -> Iterator[str]:
    """A line for each value of nested mappings."""
    for key, node in (values if isinstance(values, Mapping) else {}).items():
        for name, value in flatten(node, str(key)).items():
            yield f"  {name} = {json.dumps(value, ensure_ascii=False, default=str)}"


def _top(path: str) -> str:
    return posixpath.normpath(path).split("/", 1)[0]
