"""What is traced: a file, a folder, or the manifest that a release tag stands for."""

import hashlib
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.dvc_lock import parse_lock
from stages.core.errors import UserError
from stages.core.git import LOCK, CommitTree, Repository, WorkingTree
from stages.ship.release.dvc_folders import Listings, folder_hash
from stages.ship.release.dvc_yaml import Definition
from stages.ship.release.tag_message import read_record

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Subject:
    """The thing whose trail is asked for.

    `path` is as shown: relative to the root where it lies inside. `place` is that path when it lies
    inside, else None. `commit` is set for a tag alone.
    """

    path: str
    place: str | None
    sha256: str | None
    md5: str | None
    bytes: int | None
    commit: str | None = None

    def facts(self) -> dict[str, Any]:
        return {"path": self.path, "sha256": self.sha256, "md5": self.md5, "bytes": self.bytes}


def find_subject(repository: Repository, name: str, start: Path, listings: Listings) -> Subject:
    """The file or folder at `name` (from the folder `start`) or else the release tag of that name.

    Raises:
        UserError: when there is neither.
    """
    path = start / name
    if path.is_dir():
        return _folder(repository, path)
    if path.exists():
        return _file(repository, path)
    if commit := repository.tag_commit(name):
        return _tag(repository, name, commit, listings)
    raise UserError(
        f"{name}: no such file or folder, and no tag of that name; `dvc checkout` or `dvc pull` brings outputs"
    )


def _file(repository: Repository, path: Path) -> Subject:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    shown, place = _position(repository.root, path)
    return Subject(shown, place, sha256.hexdigest(), md5.hexdigest(), path.stat().st_size)


def _folder(repository: Repository, path: Path) -> Subject:
    shown, place = _position(repository.root, path)
    files = WorkingTree(path).md5s(".") if place is None else WorkingTree(repository.root).md5s(place)
    size = sum((path / name).stat().st_size for name in files)
    return Subject(shown, place, None, folder_hash(files), size)


def _tag(repository: Repository, name: str, commit: str, listings: Listings) -> Subject:
    """The manifest in the dvc.lock of the tag's commit."""
    tree = CommitTree(repository, commit)
    path = Definition.read(tree).artifact_path(name.rpartition("@")[0]) or paths.MANIFEST.as_posix()
    try:
        lock = parse_lock(tree.read(LOCK) or b"")
    except ValueError as error:
        raise UserError(f"tag {name}: its dvc.lock is unreadable ({error})") from None
    out = next((out for _, out in lock.outs() if out.path == path), None)
    if out is None or out.md5 is None:
        raise UserError(f"tag {name}: no stage in its dvc.lock writes {path}, so it is no release")
    cached, sha256 = listings.cached_file(out.md5), read_record(repository, name).get("manifest_sha256")
    if cached.is_file():
        sha256 = hashlib.sha256(cached.read_bytes()).hexdigest()
    return Subject(path, path, sha256, out.md5, out.size, commit)


def _position(root: Path, path: Path) -> tuple[str, str | None]:
    """The path as shown and, when it lies inside the root, its place there."""
    for one in (Path(posixpath.normpath(path.absolute().as_posix())), path.resolve()):
        if one.is_relative_to(root):
            place = one.relative_to(root).as_posix()
            return place, place
    return str(path), None
