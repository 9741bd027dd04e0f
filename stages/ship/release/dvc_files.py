"""DVC's own files: dvc.yaml, the hash of a folder, and the listings of folders that can be proved by it."""

import hashlib
import json
import os
import posixpath
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from configobj import ConfigObj, ConfigObjError

from stages.core.dvc_lock import Lock, Stage
from stages.core.errors import UserError
from stages.core.git import Tree, git_environment
from stages.core.yaml_reader import load_yaml

_KINDS = ("outs", "metrics", "plots")


@dataclass(frozen=True)
class Definition:
    """The content of dvc.yaml in one state of the repository."""

    content: dict[str, Any]

    @classmethod
    def read(cls, tree: Tree) -> "Definition":
        """dvc.yaml of `tree`; empty when it is missing or unreadable."""
        try:
            content = load_yaml(tree.read("dvc.yaml") or b"")
        except ValueError:
            content = None
        return cls(content if isinstance(content, dict) else {})

    @property
    def stages(self) -> dict[str, Any]:
        return self.content.get("stages") or {}

    @property
    def in_git(self) -> list[str]:
        """The outputs that git keeps and DVC's cache does not."""
        outs = [row for stage in self.stages.values() for kind in _KINDS for row in stage.get(kind) or []]
        options = ((path, how) for row in outs if isinstance(row, dict) for path, how in row.items())
        return [path for path, how in options if (how or {}).get("cache") is False]

    def artifact(self, path: str) -> str | None:
        """The name under which `path` is declared as an artifact, or None."""
        artifacts = self.content.get("artifacts") or {}
        return next((name for name, row in artifacts.items() if row.get("path") == path), None)

    def artifact_path(self, name: str) -> str | None:
        row = (self.content.get("artifacts") or {}).get(name) or {}
        return row.get("path")

    def differences(self, ran: Stage, label: str) -> Iterator[str]:
        """Where the stage as it ran is not the stage of dvc.yaml. What DVC fills in from `${...}` is not compared."""
        if "@" in ran.name:
            return
        stage = self.stages.get(ran.name)
        if not isinstance(stage, dict):
            yield f"dvc.yaml in {label} has no stage {ran.name}"
            return
        command = stage.get("cmd")
        if isinstance(command, str) and "${" not in command and command != ran.command:
            yield f"dvc.yaml in {label} runs stage {ran.name} as `{command}`; it ran as `{ran.command}`"
        for name in self.ran_without(ran):
            yield f"dvc.yaml in {label} lets stage {ran.name} read {name}; it ran without"

    def ran_without(self, ran: Stage) -> Iterator[str]:
        """The dependencies and parameters of dvc.yaml that the stage as it ran did not have."""
        stage = self.stages.get(ran.name) or {}
        if "wdir" in stage or "@" in ran.name:
            return
        known = {dep.path for dep in ran.deps}
        for path in _paths(stage.get("deps")):
            if "${" not in path and posixpath.normpath(path) not in known:
                yield path
        used = ran.params.get("params.yaml", {})
        for name in stage.get("params") or []:
            if isinstance(name, str) and name not in used:
                yield f"parameter {name}"

    def never_ran(self, lock: Lock) -> Iterator[str]:
        """The stages that dvc.lock does not know, one by one or as `NAME@...` of a matrix."""
        known = {name.partition("@")[0] for name in lock.stages}
        yield from (name for name in self.stages if name not in known)


def _paths(rows: Any) -> list[str]:
    """The paths of a list whose items are PATH or {PATH: options}."""
    return [str(row if isinstance(row, str) else next(iter(row), "")) for row in rows or []]


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


class Listings:
    """What is in a folder whose hash is known: from DVC's cache or remote, or from names that add up to that hash.

    `remote` is the name of DVC's default remote, None without one; `remote_folder` where it lies, None for one that
    is no folder of this machine. Nothing here asks a network.
    """

    def __init__(self, root: Path) -> None:
        settings = dvc_settings(root)
        self.cache = Path(settings.get("cache", {}).get("dir") or root / ".dvc" / "cache")
        self.remote = settings.get("core", {}).get("remote")
        remote = settings.get(f'remote "{self.remote}"'.lower(), {})
        url = remote.get("url", "").removeprefix("file://")
        versioned = {remote.get("version_aware"), remote.get("worktree")} & {"true", "True"}
        self.remote_folder = Path(url) if url and "://" not in url and not versioned else None
        self._known: dict[str, dict[str, str] | None] = {}

    def cached_file(self, md5: str) -> Path:
        """Where DVC's cache keeps the bytes with this MD5, whether they are there or not."""
        return object_path(self.cache, md5)

    def get(self, md5: str) -> dict[str, str] | None:
        """Path below the folder to MD5, or None when nothing at hand says what was in it."""
        if md5 not in self._known:
            self._known[md5] = self._read(md5)
        return self._known[md5]

    def holds(self, folder: str, md5: str) -> bool:
        """Whether a file with this MD5 is in the folder."""
        return md5 in (self.get(folder) or {}).values()

    def add(self, files: Mapping[str, str]) -> None:
        """Learn a folder's listing. It needs no trust: it is only found under the hash that it adds up to."""
        if files and "" not in files:
            self._known[folder_hash(files)] = dict(files)

    def add_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Learn the listing of every folder that a manifest's file lists cover."""
        for files in manifest_files(manifest).values():
            folders: dict[str, dict[str, str]] = {}
            for name, md5 in files.items():
                for end in (i for i, character in enumerate(name) if character == "/"):
                    folders.setdefault(name[:end], {})[name[end + 1 :]] = md5
            for listing in folders.values():
                self.add(listing)

    def add_lock(self, lock: Lock) -> None:
        """Learn the listing of every output folder whose files later stages read one by one, none left out."""
        for _, out in lock.outs():
            inside = {d.path: d.md5 for s in lock.stages.values() for d in s.deps if d.md5 and out.holds(d.path)}
            self.add({path[len(out.path) + 1 :]: md5 for path, md5 in inside.items() if not md5.endswith(".dir")})

    def _read(self, md5: str) -> dict[str, str] | None:
        for store in (self.cache, self.remote_folder):
            try:
                rows = json.loads(object_path(store, md5).read_bytes() if store else b"")
                files = {row["relpath"]: row["md5"] for row in rows}
            except (OSError, ValueError, TypeError, KeyError):
                continue
            if folder_hash(files) == md5:
                return files
        return None


def object_path(store: Path, md5: str) -> Path:
    """Where a cache or a remote in a folder keeps the bytes with this MD5."""
    return store / "files" / "md5" / md5[:2] / md5[2:]


def manifest_files(manifest: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The file lists of a manifest, path to MD5: "files" (paths below models/release), "adapter" and "base"."""
    base = manifest.get("base")
    parts = {
        "files": manifest.get("files"),
        "adapter": manifest.get("adapter"),
        "base": base.get("files") if isinstance(base, dict) else None,
    }
    return {
        part: {name: row["md5"] for name, row in rows.items() if isinstance(row, dict) and "md5" in row}
        for part, rows in parts.items()
        if isinstance(rows, dict)
    }


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A release's manifest, or None where the file is missing or something else of that name."""
    try:
        content = json.loads(path.read_bytes() if path.is_file() else b"")
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("files"), dict) else None


def dvc_settings(root: Path) -> dict[str, dict[str, str]]:
    """DVC's configuration, section to key to value: the user's own and the repository's, paths resolved as DVC does."""
    system = os.environ.get("DVC_SYSTEM_CONFIG_DIR") or platformdirs.site_config_dir("dvc", "iterative")
    user = os.environ.get("DVC_GLOBAL_CONFIG_DIR") or platformdirs.user_config_dir("dvc", "iterative")
    settings: dict[str, dict[str, str]] = {}
    for file in (Path(system, "config"), Path(user, "config"), root / ".dvc/config", root / ".dvc/config.local"):
        try:
            sections = ConfigObj(str(file), encoding="utf-8", file_error=False).dict()
        except (ConfigObjError, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is no configuration that DVC reads: {error}") from None
        for section, values in sections.items():
            for key, value in values.items() if isinstance(values, dict) else []:
                if key.lower() in ("dir", "url") and isinstance(value, str) and "://" not in value:
                    value = os.path.normpath(file.parent / Path(value).expanduser())
                settings.setdefault(section.lower(), {})[key.lower()] = value
    return settings


def run_dvc(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """DVC as a program, with the environment in which git is called."""
    command = [sys.executable, "-P", "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=root, env=git_environment(), capture_output=True, encoding="utf-8", check=False)
