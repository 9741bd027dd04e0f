"""What dvc.lock tells of an output, arranged for a reader: data, parameters, metrics, base model, code."""

import json
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stages.core import paths
from stages.core.dvc_lock import Entry, Lock, Stage
from stages.core.git import Tree
from stages.ship.release.dvc_folders import Listings, entry_hash
from stages.ship.release.dvc_yaml import Definition
from stages.ship.release.history import Place

_MODELS = paths.BASE.parent.as_posix()
_CODE_ENDS = (".py", ".sh", ".toml", ".cfg")


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


@dataclass(frozen=True)
class Sources:
    """Where the files inside a folder can be looked up: the state of the repository, DVC's listings."""

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


def data_facts(lock: Lock, upstream: Iterable[Stage], sources: Sources) -> dict[str, Any]:
    """Every data file or folder that the upstream stages read, with its hash and the stage that wrote it."""
    found = {}
    for stage in upstream:
        for dep in stage.deps:
            makers = [maker.name for maker, _ in lock.makers(dep.path)]
            if not is_code(dep, bool(makers)) and not _is_in(dep.path, _MODELS, paths.METRICS.as_posix()):
                found[dep.path] = {**sources.facts(dep), "made_by": makers[0] if makers else None}
    return found


def code_facts(lock: Lock, upstream: Iterable[Stage], sources: Sources) -> dict[str, Any]:
    """Every file or folder of code that the upstream stages ran, with its hash and the stages that used it."""
    found: dict[str, Any] = {}
    for stage in upstream:
        for dep in stage.deps:
            if is_code(dep, bool(lock.makers(dep.path))):
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
    """Every metrics file: its hash in dvc.lock, the stage that wrote it, and its content in git or DVC's cache."""
    names = Definition.read(sources.tree).metrics
    found = {}
    for stage, out in lock.outs():
        if out.path in names:
            text = sources.tree.read(out.path) or _cached(out, sources.listings)
            found[out.path] = {"md5": out.md5, "made_by": stage.name, "values": _parse(text)}
    return found


def is_code(dep: Entry, made: bool) -> bool:
    """Whether a dependency is part of the program: stages/, a source file, or the pinned environment."""
    if made:
        return False
    return _is_in(dep.path, "stages") or dep.path.endswith(_CODE_ENDS) or dep.path == paths.CONSTRAINTS.name


def _is_in(path: str, *folders: str) -> bool:
    return posixpath.normpath(path).split("/", 1)[0] in folders


def _cached(out: Entry, listings: Listings) -> bytes | None:
    path = listings.cached_file(out.md5 or "none")
    return path.read_bytes() if path.is_file() else None


def _parse(text: bytes | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None
