"""DVC's own files: dvc.yaml, and the listings of folders that can be proved by the folder's hash."""

import json
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.dvc_lock import (
    Entry,
    Stage,
    cached_listing,
    dvc_settings,
    folder_hash,
    object_path,
    tracked_outputs,
)
from stages.core.errors import UserError
from stages.core.git import Tree

_KINDS = ("outs", "metrics", "plots")


@contextmanager
def dvc_repo(root: Path, fault: str) -> Iterator[Any]:
    """DVC at work in `root`; every other error of the block is a UserError of `fault` and DVC's words."""
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            yield repo
    except UserError:
        raise
    except Exception as error:  # DVC's own, and those of the YAML, the file systems and the remotes that it reads
        raise UserError(f"{fault}: {in_words(error)}") from error


def in_words(error: Exception | str) -> str:
    """What an error says, or a program about one, in one line and without the secret of a URL that it may quote."""
    from stages.text.personal_data import masker

    return masker(("secret",), "", "")(" ".join(str(error).split()) or type(error).__name__)


@dataclass(frozen=True)
class Definition:
    """The content of dvc.yaml in one state of the repository."""

    content: dict[str, Any]

    @classmethod
    def read(cls, tree: Tree) -> "Definition":
        """dvc.yaml of `tree`; empty when it is missing or unreadable."""
        return cls(tree.read_mapping(paths.PIPELINE))

    @property
    def stages(self) -> dict[str, Any]:
        return {name: stage for name, stage in _a(dict, self.content.get("stages")).items() if isinstance(stage, dict)}

    @property
    def in_git(self) -> list[str]:
        """The outputs that git keeps and DVC's cache does not."""
        outs = [row for stage in self.stages.values() for kind in _KINDS for row in _a(list, stage.get(kind))]
        options = ((path, how) for row in outs if isinstance(row, dict) for path, how in row.items())
        return [path for path, how in options if _a(dict, how).get("cache") is False]

    def artifact(self, path: str) -> str | None:
        """The name under which `path` is declared as an artifact, or None."""
        artifacts = _a(dict, self.content.get("artifacts"))
        return next((name for name, row in artifacts.items() if _a(dict, row).get("path") == path), None)

    def differences(self, ran: Stage, label: str) -> Iterator[str]:
        """Where the stage as it ran is not the stage of dvc.yaml. What DVC fills in from `${...}` is not compared."""
        if "@" in ran.name:
            return
        if (stage := self.stages.get(ran.name)) is None:
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
        for dep in _a(list, stage.get("deps")):
            path = str(next(iter(dep), "") if isinstance(dep, dict) else dep)
            if "${" not in path and posixpath.normpath(path) not in known:
                yield path
        used = ran.params.get("params.yaml", {})
        for name in _a(list, stage.get("params")):
            if isinstance(name, str) and name not in used:
                yield f"parameter {name}"


def _a(kind: type[Any], value: Any) -> Any:
    return value if isinstance(value, kind) else kind()


def added(tree: Tree, dep: Entry) -> Entry | None:
    """The path, or the folder around it, that a .dvc file (`dvc add`) tracks."""
    path = posixpath.normpath(dep.path)
    while path and not is_outside(path):
        if (text := tree.read(f"{path}.dvc")) is not None:
            try:
                return next((out for out in tracked_outputs(text, f"{path}.dvc") if out.md5), None)
            except ValueError:
                return None
        path = posixpath.dirname(path)
    return None


def is_outside(path: str) -> bool:
    """Whether a dependency is no path below the root: absolute, above it or a URL."""
    return posixpath.isabs(path) or path.startswith("../") or "://" in path or path[1:3] == ":\\"


class Listings:
    """What is in a folder whose hash is known: from DVC's cache or remote, or from names that add up to that hash.

    `remote` is the name of DVC's default remote, None without one; `remote_folder` where it lies, None for one that
    is no folder of this machine. Nothing here asks a network.
    """

    def __init__(self, root: Path) -> None:
        self.root, settings = root, dvc_settings(root)
        self.cache = Path(settings["cache"]["dir"])
        self.remote = settings.get("core", {}).get("remote")
        remote = settings.get(f'remote "{self.remote}"'.lower(), {})
        url = remote.get("url", "").removeprefix("file://")
        versioned = {remote.get("version_aware"), remote.get("worktree")} & {"true", "True"}
        self.remote_folder = Path(url) if url and "://" not in url and not versioned else None
        self._known: dict[str | None, dict[str, str] | None] = {}

    def cached_file(self, md5: str) -> Path:
        """Where DVC's cache keeps the bytes with this MD5, whether they are there or not."""
        return object_path(self.cache, md5)

    def get(self, md5: str | None) -> dict[str, str] | None:
        """Path below the folder to MD5, or None when nothing at hand says what was in it."""
        if md5 not in self._known:
            stores = [self.cache, *([self.remote_folder] if self.remote_folder else [])]
            self._known[md5] = cached_listing(stores, md5) if md5 else None
        return self._known[md5]

    def add(self, files: Mapping[str, str]) -> None:
        """Learn a folder's listing. It needs no trust: it is only found under the hash that it adds up to."""
        if files and "" not in files:
            self._known[folder_hash(files)] = dict(files)

    def add_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Learn the listing of every folder that a manifest's file lists cover."""
        base = manifest.get("base")
        for rows in (manifest["files"], manifest.get("adapter"), base.get("files") if isinstance(base, dict) else None):
            folders: dict[str, dict[str, str]] = {}
            for name, md5 in manifest_md5s(rows).items():
                for end in (i for i, character in enumerate(name) if character == "/"):
                    folders.setdefault(name[:end], {})[name[end + 1 :]] = md5
            for listing in folders.values():
                self.add(listing)


def manifest_md5s(rows: Any) -> dict[str, str]:
    """Path to MD5 of one of a manifest's file lists."""
    rows = rows if isinstance(rows, dict) else {}
    return {name: str(row["md5"]) for name, row in rows.items() if isinstance(row, dict) and "md5" in row}


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A release's manifest, or None where the file is missing or something else of that name."""
    try:
        content = json.loads(path.read_bytes() if path.is_file() else b"")
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("files"), dict) else None
