"""What dvc.lock tells of an output: data, parameters, metrics, base model and code, as values and as text."""

import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.core import paths
from stages.core.dvc_lock import Entry, Lock, Stage
from stages.core.git import Tree
from stages.ship.release.dvc_files import Listings, entry_hash
from stages.ship.release.finding import Place

_MODELS = paths.BASE.parent.as_posix()
_METRICS = paths.METRICS.as_posix()
_CODE_ENDS = (".py", ".sh", ".toml", ".cfg")
_HASH = 12


@dataclass(frozen=True)
class Sources:
    """Where contents can be looked up: the state of the repository, DVC's listings and cache."""

    tree: Tree
    listings: Listings

    def facts(self, dep: Entry) -> dict[str, Any]:
        """Hash and size; for a folder also the hash of each file, where that adds up to the folder's."""
        facts: dict[str, Any] = {"md5": dep.md5, "bytes": dep.size}
        if dep.is_folder:
            files = self.tree.md5s(dep.path)
            if entry_hash(files) != dep.md5:
                files = self.listings.get(dep.md5 or "") or {}
            facts["files"] = files or None
        return facts

    def json(self, out: Entry) -> Any:
        """The content of a JSON output in git or in DVC's cache, or None."""
        text, cached = self.tree.read(out.path), self.listings.cached_file(out.md5 or "none")
        if text is None and cached.is_file():
            text = cached.read_bytes()
        try:
            return None if text is None else json.loads(text)
        except ValueError:
            return None


def stage_facts(place: Place) -> dict[str, Any]:
    """The stage that wrote the file, the output that the file is or lies in, and the entry of dvc.lock."""
    stage, out = place.stage, place.out
    return {
        "name": stage.name,
        "command": stage.command,
        "output": {"path": out.path, "md5": out.md5, "bytes": out.size},
        "within": place.within,
        "upstream": [one.name for one in place.lock.upstream(stage.name)],
        "lock": stage.raw,
    }


def data_facts(lock: Lock, upstream: Iterable[Stage], sources: Sources) -> dict[str, Any]:
    """Every data file or folder that the upstream stages read, with its hash and the stage that wrote it."""
    found = {}
    for stage in upstream:
        for dep in stage.deps:
            maker = next((maker.name for maker, _ in lock.makers(dep.path)), None)
            if not (is_code(dep.path) and maker is None) and _top(dep.path) not in (_MODELS, _METRICS):
                found[dep.path] = {**sources.facts(dep), "made_by": maker}
    return found


def code_facts(lock: Lock, upstream: Iterable[Stage], sources: Sources) -> dict[str, Any]:
    """Every file or folder of code that the upstream stages ran, with its hash and the stages that used it."""
    found: dict[str, Any] = {}
    for stage in upstream:
        for dep in stage.deps:
            if is_code(dep.path) and not lock.makers(dep.path):
                row = found.setdefault(dep.path, {**sources.facts(dep), "used_by": []})
                row["used_by"].append(stage.name)
    return dict(sorted(found.items()))


def params_facts(upstream: Iterable[Stage]) -> dict[str, Any]:
    """The parameter values of all upstream stages; those of another file than params.yaml under its name."""
    found: dict[str, Any] = {}
    for stage in upstream:
        for file, values in stage.params.items():
            target = found if file == paths.PARAMS.name else found.setdefault(file, {})
            target.update(values)
    return found


def base_facts(upstream: Iterable[Stage]) -> dict[str, Any] | None:
    """The base model: where it came from, what it must be, and the hash of models/base. None when no stage had one."""
    stages = list(upstream)
    model = params_facts(stages).get("model")
    model = model if isinstance(model, dict) else {}
    out = next((out for stage in stages for out in stage.outs if out.path == paths.BASE.as_posix()), None)
    if not model and out is None:
        return None
    named = {key: model.get(key) for key in ("source", "file", "sha256", "licence")}
    return {**named, "path": out.path if out else None, "md5": out.md5 if out else None}


def metrics_facts(lock: Lock, sources: Sources) -> dict[str, Any]:
    """Every JSON file in metrics/: its hash in dvc.lock, the stage that wrote it, and its content where it is known."""
    return {
        out.path: {"md5": out.md5, "made_by": stage.name, "values": sources.json(out)}
        for stage, out in lock.outs()
        if _top(out.path) == _METRICS and out.path.endswith(".json")
    }


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
    yield from (f"  {line}" for line in _figures(trail["metrics"].get(paths.SUMMARY.as_posix(), {}).get("values")))
    yield "parameters"
    yield from (f"  {line}" for line in _figures(trail["params"]))


def _commit(commit: Mapping[str, Any]) -> Iterator[str]:
    if not commit["sha"]:
        yield f"  commit   {commit['status']}"
        return
    yield f"  commit   {commit['sha']}"
    yield f"           {commit['date']} {commit['author']}: {commit['subject']}"
    yield f"  tags     {', '.join(commit['tags']) or 'none'}"
    yield f"  restore  git checkout {commit['tags'][0] if commit['tags'] else commit['sha'][:_HASH]} && dvc checkout"


def _figures(node: Any, name: str = "") -> Iterator[str]:
    """A line for each value of nested mappings."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _figures(value, f"{name}.{key}" if name else str(key))
    elif name:
        yield f"{name} = {json.dumps(node, ensure_ascii=False, default=str)}"


def _top(path: str) -> str:
    return posixpath.normpath(path).split("/", 1)[0]
