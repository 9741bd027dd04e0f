"""DVC's own files: dvc.yaml, the hash of a folder, and the listings of folders that can be proved by it."""

import json
import posixpath
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.dvc_lock import Lock, Stage, cached_listing, dvc_settings, folder_hash, object_path
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
            self._known[md5] = cached_listing([self.cache, *([self.remote_folder] if self.remote_folder else [])], md5)
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


def run_dvc(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """DVC as a program, with the environment in which git is called."""
    command = [sys.executable, "-P", "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=root, env=git_environment(), capture_output=True, encoding="utf-8", check=False)
