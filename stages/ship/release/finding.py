"""Where a hash stands: what is asked for, every version of dvc.lock in git, and the output that holds it."""

import json
import posixpath
import re
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from stages.core import paths
from stages.core.dvc_lock import Entry, Lock, Stage, folder_hash, parse_lock
from stages.core.errors import UserError
from stages.core.files import file_digest
from stages.core.git import LOCK, CommitTree, Repository, Tree, WorkingTree
from stages.ship.release.checks import part_hash, short
from stages.ship.release.dvc_files import Definition, Listings, manifest_files, read_manifest

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
    md5: str | None
    bytes: int | None
    commit: str | None = None


def find_subject(repository: Repository, name: str, start: Path, listings: Listings) -> Subject:
    """The file or folder at `name` (from the folder `start`) or else the release tag of that name.

    Raises:
        UserError: when there is neither.
    """
    try:
        path = start / name
        try:
            mode = path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            mode = 0
        if stat.S_ISLNK(mode) and not path.exists():
            raise UserError(
                f"{name} is a link to {path.readlink()}, which is not there; `dvc fetch` and `dvc checkout` bring it"
            )
        if path.is_dir():
            return _folder(repository, path)
        if mode and not path.is_file():
            raise UserError(f"{name} is neither a file nor a folder, so no stage wrote it")
        if mode:
            shown, place = _position(repository.root, path)
            with ThreadPoolExecutor() as threads:  # which hash without Python's lock
                sha256, md5 = threads.map(file_digest, (path, path), ("sha256", "md5"))
            return Subject(shown, place, sha256, md5, path.stat().st_size)
    except (OSError, ValueError) as error:  # a name that is too long, NUL in it, no right to read
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{name[:_NAME_SHOWN]!r} cannot be read: {reason}") from None
    if commit := repository.tag_commit(name):
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

    Without assignments of a stage (`NAME#STAGE#1`): the tag of the version that they assign is on the same commit.
    """
    lines = repository.git("for-each-ref", "--format=%(refname:strip=2)", "refs/tags", check=False).splitlines()
    names = [name for name in lines if "#" not in name]
    commits = repository.object_ids(f"refs/tags/{name}^{{commit}}" for name in names)
    blobs = repository.object_ids(f"refs/tags/{name}^{{commit}}:./{LOCK}" for name in names)
    texts = repository.blobs(i for i in blobs if i)
    return [(n, c, texts[b]) for n, c, b in zip(names, commits, blobs, strict=True) if c and b and b in texts]


def _position(root: Path, path: Path) -> tuple[str, str | None]:
    """The path as shown and, when it lies inside the root, its place there."""
    for one in (Path(posixpath.normpath(path.absolute().as_posix())), path.resolve()):
        if one.is_relative_to(root):
            place = one.relative_to(root).as_posix()
            return place, place
    return str(path), None


@dataclass(frozen=True)
class Place:
    """Where a hash stands in a lock: an output of a stage, or a file inside an output that is a folder."""

    lock: Lock
    stage: Stage
    out: Entry
    within: str | None

    @property
    def path(self) -> str:
        return self.out.path if self.within is None else f"{self.out.path}/{self.within}"


@dataclass(frozen=True)
class Recorded:
    """A commit whose dvc.lock holds the hash."""

    commit: str
    place: Place


def places(lock: Lock, md5: str, listings: Listings) -> list[Place]:
    """Every place of `md5` in one lock, in the order of the lock."""
    found = []
    for stage, out in lock.outs():
        if out.md5 == md5:
            found.append(Place(lock, stage, out, None))
        elif out.is_folder and out.md5 and listings.holds(out.md5, md5):
            files = listings.get(out.md5) or {}
            found += [Place(lock, stage, out, name) for name, value in files.items() if value == md5]
    return found


def best(candidates: list[Place], path: str) -> Place | None:
    """The place whose path agrees with `path` in the most parts from the end; of equals the last in the lock.

    The same bytes can stand in several places: a tokenizer is copied from the base model to every artefact.
    """

    def shared_end(place: Place) -> int:
        pairs = zip(reversed(PurePosixPath(place.path).parts), reversed(PurePosixPath(path).parts), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    return max(reversed(candidates), key=shared_end, default=None)


class History:
    """The versions of dvc.lock in git, oldest first."""

    def __init__(self, repository: Repository, everything: bool = False) -> None:
        commits = repository.lock_commits(everything)
        ids = repository.object_ids(f"{commit}:./{LOCK}" for commit in commits)
        self.versions = [(commit, blob) for commit, blob in zip(commits, ids, strict=True) if blob is not None]
        self._texts = repository.blobs(blob for _, blob in self.versions)
        self._locks: dict[str, Lock | None] = {}

    def search(self, md5: str, listings: Listings, path: str) -> list[Recorded]:
        """The commits whose lock holds the hash, as an output or inside one, oldest first."""
        folders = {name for text in self._texts.values() for name in _FOLDER.findall(text)}
        holding = {name for name in folders if listings.holds(name.decode(), md5)}
        return self._parse_those_with({md5.encode(), *holding}, lambda lock: best(places(lock, md5, listings), path))

    def outputs(self, like: Place) -> list[Recorded]:
        """The commits whose lock holds the same output, oldest first."""
        md5 = like.out.md5 or ""

        def find(lock: Lock) -> Place | None:
            same = [Place(lock, stage, out, like.within) for stage, out in lock.outs() if out.md5 == md5]
            return best(same, like.path)

        return self._parse_those_with({md5.encode()}, find)

    def _parse_those_with(self, needles: set[bytes], find: Callable[[Lock], Place | None]) -> list[Recorded]:
        """Parsing is the slow part, so a lock that has none of the hashes in its text is not parsed."""
        found = []
        for commit, blob in self.versions:
            lock = self._lock(blob) if any(needle in self._texts[blob] for needle in needles) else None
            if lock and (place := find(lock)):
                found.append(Recorded(commit, place))
        return found

    def _lock(self, blob: str) -> Lock | None:
        """A version's content; one that is broken (merge marks, for instance) proves nothing and is passed over."""
        if blob not in self._locks:
            try:
                self._locks[blob] = parse_lock(self._texts[blob])
            except ValueError:
                self._locks[blob] = None
        return self._locks[blob]


class Finder:
    """The search for one subject. `here` is the lock of the working tree, or of a tag's commit."""

    def __init__(self, repository: Repository, listings: Listings, subject: Subject) -> None:
        self.repository = repository
        self.listings = listings
        self.subject = subject
        self.working = WorkingTree(repository.root)
        self.here = read_lock(CommitTree(repository, subject.commit) if subject.commit else self.working)
        self._manifests = self._read_manifests()
        self._learn_folders()

    def here_by_listing(self) -> Place | None:
        if self.here is None or self.subject.md5 is None:
            return None
        return best(places(self.here, self.subject.md5, self.listings), self.subject.path)

    def here_by_manifest(self) -> Place | None:
        return self._by_manifest(self.here) if self.here else None

    def other_bytes(self) -> str | None:
        """The sentence for a file or folder where dvc.lock, or the manifest around it, names other bytes."""
        place, here = self.subject.place, short(self.subject.md5)
        if self.subject.commit:
            return None
        for stage, out in self.here.outs() if self.here and place else []:
            if not place or not out.holds(place):
                continue
            files = {"": out.md5 or ""} if out.path == place else self.listings.get(out.md5 or "")
            advice = f"run `dvc checkout` for the files of {LOCK}, or `git checkout {LOCK}` when {LOCK} was changed"
            if files is None:
                return (
                    f"{out.path} is not what {LOCK} in the working tree says, and nothing at hand says which of its "
                    f"files differ: {advice}"
                )
            expected = part_hash(files, place[len(out.path) + 1 :])
            if expected is None:
                return f"{LOCK} has no {place}: stage {stage.name} wrote {out.path} without it"
            if expected != self.subject.md5:
                wrote = f"stage {stage.name} wrote {short(expected)}, here are {short(self.subject.md5)}"
                return f"{LOCK} names other bytes for {place}: {wrote}; {advice}"
            return None
        path = self.repository.root / self.subject.path
        for manifest_path, _, manifest in self._manifests:
            if manifest_path.parent in path.parents and path.name not in (paths.MANIFEST.name, paths.MODEL_CARD.name):
                name = path.relative_to(manifest_path.parent).as_posix()
                expected = part_hash(manifest_files(manifest)["files"], name)
                if expected != self.subject.md5 and (expected or place):
                    return f"{manifest_path.name} around it names {short(expected)} for {name}, here are {here}"
        return None

    def recorded(self, here: Place | None) -> list[Recorded]:
        """The commits that record the hash, oldest first: of branches and tags, else of experiments and stashes."""
        for everything in (False, True):
            history = History(self.repository, everything)
            if here:
                found = history.outputs(here)
            else:
                found = history.search(self.subject.md5 or "", self.listings, self.subject.path)
            if found := found or self._search_manifests(history):
                return found
        return []

    def _search_manifests(self, history: History) -> list[Recorded]:
        """Commits whose lock holds a manifest that names the file: git alone proves what the cache forgot."""
        found = []
        for path, md5, _ in self._manifests:
            for one in history.search(md5, self.listings, path.name):
                if place := self._by_manifest(one.place.lock):
                    found.append(Recorded(one.commit, place))
        return found

    def _by_manifest(self, lock: Lock) -> Place | None:
        """The output that must hold the file, because a manifest that this lock proves names it there."""
        found = []
        for _, md5, manifest in self._manifests:
            for path in self._named_paths(lock, md5, manifest):
                for stage, out in lock.outs():
                    if out.holds(path):
                        found.append(Place(lock, stage, out, path[len(out.path) + 1 :] or None))
        return best(found, self.subject.path)

    def _named_paths(self, lock: Lock, md5: str, manifest: dict[str, Any]) -> list[str]:
        """The paths that a manifest gives to the subject's hash, when the lock holds the manifest's own hash."""
        release = next((out.path.rpartition("/")[0] for _, out in lock.outs() if out.md5 == md5), None)
        if release is None:
            return []
        return [
            f"{release}/{name}" if part == "files" else name
            for part, files in manifest_files(manifest).items()
            for name, value in files.items()
            if value == self.subject.md5
        ]

    def _read_manifests(self) -> list[tuple[Path, str, dict[str, Any]]]:
        """The manifests at hand: beside the file, above it, in the release folder. Path, MD5 and content."""
        path = self.repository.root / self.subject.path
        candidates = [folder / paths.MANIFEST.name for folder in (path, *path.parents)]
        candidates.append(self.repository.root / paths.MANIFEST)
        found = []
        for candidate in dict.fromkeys(candidates):
            if (manifest := read_manifest(candidate)) is not None:
                found.append((candidate, WorkingTree(candidate.parent).md5s(candidate.name)[""], manifest))
                self.listings.add_manifest(manifest)
        return found

    def _learn_folders(self) -> None:
        """List the output folder that the file lies in, when neither the cache nor a manifest lists it."""
        place = self.subject.place
        if self.here is None or place is None or self.subject.commit:
            return
        for _, out in self.here.outs():
            if out.is_folder and out.holds(place) and self.listings.get(out.md5 or "") is None:
                self.listings.add(self.working.md5s(out.path))


def read_lock(tree: Tree) -> Lock | None:
    """dvc.lock of a state of the repository, or None. Raises UserError when it is unreadable."""
    text = tree.read(LOCK)
    try:
        return None if text is None else parse_lock(text)
    except ValueError as error:
        raise UserError(f"{LOCK} in {tree.label} is unreadable ({error}); restore it: git checkout {LOCK}") from None
