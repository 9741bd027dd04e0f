"""Where a hash stands: in dvc.lock here, in its earlier versions, in DVC's listings, in a proved manifest."""

from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.dvc_lock import Lock, parse_lock
from stages.core.errors import UserError
from stages.core.git import LOCK, CommitTree, Repository, Tree, WorkingTree
from stages.ship.release.dvc_folders import Listings, manifest_files, read_manifest
from stages.ship.release.history import History, Place, Recorded, best, places
from stages.ship.release.subject import Subject


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
