"""Where a hash stands: what is asked for, every version of dvc.lock in git, and the output that holds it."""

import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from stages.core import paths
from stages.core.dvc_lock import Entry, Lock, Stage, folder_hash, parse_lock, read_lock
from stages.core.errors import UserError
from stages.core.files import content_hashes, file_digest
from stages.core.git import LOCK, CommitTree, Repository, WorkingTree
from stages.ship.release.dvc_files import Listings

_NAME_SHOWN = 80
_FILES_AT_MOST = 100_000
_FOLDER = re.compile(rb"\b[0-9a-f]{32}\.dir\b")


@dataclass(frozen=True)
class Subject:
    """The thing whose trail is asked for.

    `path` is as shown: relative to the root where it lies inside. `place` is that path when it lies
    inside, else None. `commit` is set for a tag alone.
    """

    path: str
    place: str | None
    sha256: str | None
    md5: str
    bytes: int | None
    commit: str | None = None


def find_subject(repository: Repository, name: str, start: Path, listings: Listings) -> Subject:
    """The file or folder at `name` (from the folder `start`) or else the release tag of that name.

    Raises UserError when there is neither.
    """
    try:
        path = start / name
        if path.is_dir():
            return _folder(repository, path)
        if path.is_file():
            shown, place = _position(repository.root, path)
            return Subject(shown, place, **content_hashes(path))
        if path.is_symlink():
            raise UserError(
                f"{name} is a link to {path.readlink()}, which is not there; `dvc fetch` and `dvc checkout` bring it"
            )
        if path.exists():
            raise UserError(f"{name} is neither a file nor a folder, so no stage wrote it")
        commit = repository.tag_commit(name)
    except (OSError, ValueError) as error:  # a name that is too long, NUL in it, no right to read
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{name[:_NAME_SHOWN]!r} cannot be read: {reason}") from None
    if commit:
        return _tag(repository, name, commit, listings)
    raise UserError(
        f"{name[:_NAME_SHOWN]}: no such file or folder, and no tag of that name; "
        "`dvc checkout` or `dvc pull` brings outputs"
    )


def _folder(repository: Repository, path: Path) -> Subject:
    if repository.root.is_relative_to(path.resolve()):
        raise UserError(f"{path} holds the whole repository; name a file, an output folder or a release tag")
    if any(number >= _FILES_AT_MOST for number, _ in enumerate(path.rglob("*"))):
        raise UserError(f"{path} holds over {_FILES_AT_MOST} files, more than any output; name one of them")
    shown, place = _position(repository.root, path)
    files = WorkingTree(repository.root).md5s(shown)
    size = sum((path / name).stat().st_size for name in files)
    return Subject(shown, place, None, folder_hash(files), size)


def _position(root: Path, path: Path) -> tuple[str, str | None]:
    """The path as shown and, when it lies inside the root, its place there."""
    for one in (Path(posixpath.normpath(path.absolute().as_posix())), path.resolve()):
        if one.is_relative_to(root):
            place = one.relative_to(root).as_posix()
            return place, place
    return str(path), None


def _tag(repository: Repository, name: str, commit: str, listings: Listings) -> Subject:
    """The manifest in the dvc.lock of the tag's commit."""
    path = paths.MANIFEST.as_posix()
    out = next((out for _, out in read_lock(CommitTree(repository, commit)).outs() if out.path == path), None)
    if out is None or out.md5 is None:
        raise UserError(f"tag {name}: no stage in its dvc.lock writes {path}, so it is no release")
    cached, sha256 = listings.cached_file(out.md5), read_record(repository, name).get("manifest_sha256")
    if cached.is_file() and file_digest(cached, "md5") == out.md5:
        sha256 = file_digest(cached)
    return Subject(path, path, sha256, out.md5, out.size, commit)


def read_record(repository: Repository, tag: str) -> dict[str, Any]:
    """The JSON record in a release tag's message, before a signature; empty for a tag that holds none."""
    return parse_record(repository.git("for-each-ref", "--format=%(contents)", f"refs/tags/{tag}", check=False))


def parse_record(message: str) -> dict[str, Any]:
    try:
        record, _ = json.JSONDecoder().raw_decode(message)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def record_fault(repository: Repository, tag: str, commit: str) -> str | None:
    """Why a tag in a release's form does not stand where `tunetrail release` put it; None when it does."""
    recorded = read_record(repository, tag).get("commit")
    if recorded is None and "@v" in tag:
        return f"tag {tag} has a release's name without the record of `tunetrail release`: it was set by other means"
    if recorded not in (None, commit):
        return f"tag {tag} was moved: `tunetrail release` recorded commit {str(recorded)[:10]}, it is at {commit[:10]}"
    return None


def tagged_locks(repository: Repository) -> list[tuple[str, str, bytes]]:
    """Every tag with a dvc.lock: name, commit and the lock's text.

    Without what GTO says of a version (`NAME#STAGE#1`, `NAME@v1.0.0!`), whose own tag is on the same commit.
    """
    form = "--format=%(refname:strip=2) %(objectname) %(*objectname)"  # an annotated tag is an object of its own
    lines = repository.git("for-each-ref", form, "refs/tags", check=False).splitlines()
    tags = [
        (name, ids.split()[-1]) for name, _, ids in (line.partition(" ") for line in lines) if not {"#", "!"} & {*name}
    ]
    texts = repository.contents(f"{commit}:./{LOCK}" for _, commit in tags)
    return [(name, commit, text) for (name, commit), text in zip(tags, texts, strict=True) if text is not None]


@dataclass(frozen=True)
class Place:
    """Where a hash stands in a lock: an output of a stage, or a file inside an output that is a folder.

    `commit` is the one that has the lock, None for the lock of the working tree.
    """

    lock: Lock
    stage: Stage
    out: Entry
    within: str | None
    commit: str | None = None

    def upstream(self) -> list[Stage]:
        """The stage and all that it came from, the first to run first."""
        return self.lock.upstream(self.stage.name)

    @property
    def path(self) -> str:
        return self.out.path if self.within is None else f"{self.out.path}/{self.within}"


def places(lock: Lock, md5: str, listings: Listings) -> Iterator[Place]:
    """Every place of `md5` in one lock, in the order of the lock."""
    for stage, out in lock.outs():
        if out.md5 == md5:
            yield Place(lock, stage, out, None)
        elif out.is_folder:
            files = listings.get(out.md5) or {}
            yield from (Place(lock, stage, out, name) for name, value in files.items() if value == md5)


def best(candidates: list[Place], path: str) -> Place | None:
    """The place whose path agrees with `path` in the most parts from the end; of equals the last in the lock.

    The same bytes can stand in several places: a tokenizer is copied from the base model to every artefact.
    """
    ends = {one: PurePosixPath(one).parts[::-1] for one in (path, *(place.path for place in candidates))}
    shared = {one: len(posixpath.commonprefix([end, ends[path]])) for one, end in ends.items()}
    return max(reversed(candidates), key=lambda place: shared[place.path], default=None)


def lock_versions(repository: Repository, everything: bool) -> list[tuple[str, bytes]]:
    """Each commit that changed dvc.lock with the lock's text, oldest first; with `everything` also of experiments."""
    commits = repository.lock_commits(everything)
    texts = repository.contents(f"{commit}:./{LOCK}" for commit in commits)
    return [(commit, text) for commit, text in zip(commits, texts, strict=True) if text is not None]


def recorded(repository: Repository, md5: str, path: str, listings: Listings) -> list[Place]:
    """The commits whose lock holds the hash, as an output or inside one, oldest first; `path` tells equals apart.

    Experiments and stashes count where no branch and no tag has one.
    """
    found: list[Place] = []
    for everything in (False, True):
        versions = [] if found else lock_versions(repository, everything)
        folders = {name for _, text in versions for name in _FOLDER.findall(text)}
        needles = {md5.encode(), *(name for name in folders if md5 in (listings.get(name.decode()) or {}).values())}
        for commit, text in versions:
            try:  # parsing is the slow part, so a lock that has none of the hashes in its text is not parsed
                lock = parse_lock(text) if any(needle in text for needle in needles) else Lock({})
            except ValueError:  # merge marks, for instance: it proves nothing
                continue
            if place := best(list(places(lock, md5, listings)), path):
                found.append(replace(place, commit=commit))
    return found
