"""Every version of dvc.lock, and where in them a hash stands."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from stages.core.dvc_lock import Entry, Lock, Stage, parse_lock
from stages.core.git import LOCK, Repository
from stages.ship.release.dvc_folders import Listings

_FOLDER = re.compile(rb"\b[0-9a-f]{32}\.dir\b")


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
    if not candidates:
        return None
    return max(reversed(candidates), key=lambda place: _shared_end(place.path, path))


def _shared_end(one: str, other: str) -> int:
    count = 0
    for a, b in zip(reversed(PurePosixPath(one).parts), reversed(PurePosixPath(other).parts), strict=False):
        if a != b:
            break
        count += 1
    return count


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
