"""dvc.lock: what each stage read, what it was told and what it wrote, by hash; and where the cache keeps the bytes."""

import hashlib
import json
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs
from configobj import ConfigObj, ConfigObjError

from stages.core.errors import UserError
from stages.core.git import LOCK, Tree, dvc_folder
from stages.core.yaml_reader import load_written_yaml, load_yaml


@dataclass(frozen=True)
class Entry:
    """A dependency or an output. `md5` ends in ".dir" for a folder and is None where DVC used another hash."""

    path: str
    md5: str | None
    size: int | None
    files: int | None

    @property
    def is_folder(self) -> bool:
        return self.md5 is not None and self.md5.endswith(".dir")

    def holds(self, other: str) -> bool:
        """Whether a path is this one or lies below it."""
        return holds(self.path, other)


@dataclass(frozen=True)
class Stage:
    """One stage as it ran."""

    name: str
    command: str
    deps: tuple[Entry, ...]
    outs: tuple[Entry, ...]
    params: dict[str, dict[str, Any]]
    raw: dict[str, Any]


@dataclass(frozen=True)
class Lock:
    """All stages of one version of dvc.lock."""

    stages: dict[str, Stage]

    def outs(self) -> Iterator[tuple[Stage, Entry]]:
        for stage in self.stages.values():
            for out in stage.outs:
                yield stage, out

    def makers(self, path: str) -> list[tuple[Stage, Entry]]:
        """The stages that write `path`, a folder around it or a file below it."""
        asked = Entry(path, None, None, None)
        return [(stage, out) for stage, out in self.outs() if out.holds(path) or asked.holds(out.path)]

    def upstream(self, name: str) -> list[Stage]:
        """The stage and all stages whose outputs it came from, the first to run first."""
        order: dict[str, Stage] = {}
        started: set[str] = set()

        def visit(stage: Stage) -> None:
            if stage.name in started:
                return
            started.add(stage.name)
            for dep in stage.deps:
                for maker, _ in self.makers(dep.path):
                    visit(maker)
            order[stage.name] = stage

        visit(self.stages[name])
        return list(order.values())


def parse_lock(text: bytes) -> Lock:
    """Parse dvc.lock. Raises ValueError when it is not in the form that DVC 3 writes."""
    try:
        content = load_written_yaml(text)
        stages = (content or {}).get("stages") or {}
        return Lock({name: _stage(name, raw) for name, raw in stages.items()})
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def tracked_outputs(text: bytes, file: str) -> list[Entry]:
    """What the .dvc file `file` (of `dvc add` or `dvc import`) says of its data, with paths as seen from the root.

    Raises ValueError when it is none.
    """
    try:
        rows = [_entry(row) for row in (load_yaml(text) or {}).get("outs") or []]
    except (AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"no {error}") from None
    return [replace(row, path=posixpath.join(posixpath.dirname(file), row.path)) for row in rows]


def _stage(name: str, raw: dict[str, Any]) -> Stage:
    deps, outs = (tuple(_entry(row) for row in raw.get(kind) or []) for kind in ("deps", "outs"))
    params = {file: dict(values or {}) for file, values in (raw.get("params") or {}).items()}
    return Stage(name, str(raw.get("cmd", "")), deps, outs, params, raw)


def _entry(row: dict[str, Any]) -> Entry:
    for key, kind in (("md5", str), ("size", int), ("nfiles", int)):
        if not isinstance(row.get(key), kind | None):
            raise TypeError(f"{key} of {row['path']} is {row[key]!r}")
    return Entry(str(row["path"]), row.get("md5"), row.get("size"), row.get("nfiles"))


def folder_hash(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder: MD5 over the JSON of its files' names and MD5s in the order of the names, then ".dir".

    The same as `dvc_data.hashfile.tree.Tree`; `files` maps the path below the folder to the file's MD5.
    """
    rows = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return md5(json.dumps(rows).encode()) + ".dir"


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def entry_hash(files: Mapping[str, str]) -> str | None:
    """The hash that dvc.lock would give to what `Tree.md5s` found: a file (key ""), a folder, or nothing (None)."""
    if not files:
        return None
    return files[""] if "" in files else folder_hash(files)


def holds(folder: str, path: str) -> bool:
    """Whether a path is this one or lies below it."""
    return path == folder or path.startswith(f"{folder}/")


def part_hash(files: Mapping[str, str], path: str) -> str | None:
    """The hash of a file or folder inside a folder, or None."""
    return entry_hash({name[len(path) + 1 :]: md5 for name, md5 in files.items() if holds(path, name)})


def read_lock(tree: Tree) -> Lock:
    """dvc.lock of a state of the repository, without a stage where there is none.

    Raises UserError when it is unreadable.
    """
    try:
        return parse_lock(tree.read(LOCK) or b"")
    except ValueError as error:
        said = (
            f"{LOCK} in {tree.label} is unreadable ({error}); `tunetrail merge-lock` makes one of two that were merged"
        )
        raise UserError(f"{said}, `git checkout COMMIT {LOCK}` brings that of a commit") from None


def locked_bytes(root: Path, tree: Tree, path: str) -> bytes | None:
    """The output that dvc.lock of this tree names, from DVC's cache; None where that lacks it or has other bytes."""
    try:
        lock = parse_lock(tree.read(LOCK) or b"")
    except ValueError:  # merge marks, for instance
        return None
    hashes = [out.md5 for _, out in lock.outs() if out.path == path and out.md5]
    file = object_path(cache_folder(root), hashes[0]) if hashes else None
    content = file.read_bytes() if file and file.is_file() else b""
    return content if hashes == [md5(content)] else None


def value_at(values: Any, key: str, default: Any = None) -> Any:
    """The value at a dotted key, as dvc.yaml and dvc.lock name parameters."""
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return default
        values = values[part]
    return values


def dvc_settings(root: Path) -> dict[str, dict[str, str]]:
    """DVC's configuration, section to key to value: the user's own and the repository's, paths resolved as DVC does."""
    own = dvc_folder(root)
    system = os.environ.get("DVC_SYSTEM_CONFIG_DIR") or platformdirs.site_config_dir("dvc", "iterative")
    user = os.environ.get("DVC_GLOBAL_CONFIG_DIR") or platformdirs.user_config_dir("dvc", "iterative")
    settings: dict[str, dict[str, str]] = {}
    for file in (Path(system, "config"), Path(user, "config"), own / "config", own / "config.local"):
        try:
            sections = ConfigObj(str(file), encoding="utf-8", file_error=False).dict()
        except (ConfigObjError, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is no configuration that DVC reads: {error}") from None
        for section, values in sections.items():
            for key, value in values.items() if isinstance(values, dict) else []:
                if key.lower() in ("dir", "url") and isinstance(value, str) and "://" not in value:
                    value = os.path.normpath(file.parent / Path(value).expanduser())
                settings.setdefault(section.lower(), {})[key.lower()] = value
    settings.setdefault("cache", {}).setdefault("dir", str(own / "cache"))
    return settings


def cache_folder(root: Path) -> Path:
    """DVC's cache. Raises UserError as `dvc_settings` does."""
    return Path(dvc_settings(root)["cache"]["dir"])


def object_path(store: Path, md5: str) -> Path:
    """Where a cache or a remote in a folder keeps the bytes with this MD5."""
    return store / "files" / "md5" / md5[:2] / md5[2:]


def cached_listing(stores: Iterable[Path], md5: str) -> dict[str, str] | None:
    """Path below the folder to MD5; None when no store has a listing that adds up to this hash."""
    for store in stores:
        try:
            files = {row["relpath"]: row["md5"] for row in json.loads(object_path(store, md5).read_bytes())}
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if folder_hash(files) == md5:
            return files
    return None
