"""trace: from a file's hash back to the data, parameters, code, metrics and base model that made it."""

from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import UserError
from stages.core.git import LOCK, CommitTree, Repository, Tree
from stages.ship.release.checks import Checker, Findings
from stages.ship.release.described import describe
from stages.ship.release.dvc_files import Listings
from stages.ship.release.finding import (
    Finder,
    History,
    Place,
    Recorded,
    Subject,
    best,
    find_subject,
    read_lock,
    record_fault,
    tagged_locks,
)
from stages.ship.release.objects import examine, trail_entries
from stages.ship.release.verify import differences, odd_entries

NOT_COMMITTED = "not committed yet"
_STATES_CHECKED = 20
_SHALLOW = "this clone has only part of the history; `git fetch --unshallow` brings the rest"


def trace(root: Path, name: str, start: Path) -> dict[str, Any]:
    """The trail of the file, folder or release tag `name`, as seen from the folder `start`.

    Returns:
        {"file", "stage", "data", "params", "metrics", "base", "code", "commit"}; `file.trail` says whether
        the trail is complete, and where it is broken.

    Raises:
        UserError: when there is nothing of that name, or no git repository.
    """
    repository, listings = Repository(root), Listings(root)
    if not repository.git("rev-parse", "--git-dir", check=False):
        raise UserError(f"{root} is no git repository; the trail is read from git's history")
    subject = find_subject(repository, name, start, listings)
    manifest = start / name / paths.MANIFEST.name
    finder = Finder(repository, listings, subject)
    result = Tracer(finder).result()
    if result["stage"] is None and subject.commit is None and manifest.is_file():
        return _by_its_manifest(repository, listings, subject, manifest)
    trail = result["file"]["trail"]
    if said := finder.other_bytes():
        made = result["stage"]
        whose = "/".join(filter(None, (made["output"]["path"], made["within"]))) if made else ""
        owner = f"the bytes here are those of {whose}, which stage {made['name']} wrote" if made else ""
        trail["broken"][:0] = [said, *filter(None, [owner])]
    if subject.commit is None:
        trail["broken"] += odd_entries(start / name, listings)
    if subject.commit and (fault := record_fault(repository, name, subject.commit)):
        trail["broken"].insert(0, fault)
    trail["complete"] = not trail["broken"]
    return result


def _by_its_manifest(repository: Repository, listings: Listings, folder: Subject, manifest: Path) -> dict[str, Any]:
    """The trail of a release folder: that of its manifest, when the folder is what the manifest says."""
    subject = find_subject(repository, str(manifest), manifest.parent, listings)
    result = Tracer(Finder(repository, listings, subject)).result()
    trail = result["file"]["trail"]
    trail["broken"] += differences(manifest.parent, listings)
    trail["complete"] = not trail["broken"]
    trail["notes"].append(f"traced by its {manifest.name}")
    return {**result, "file": {**_facts(folder), "trail": trail}}


def _facts(subject: Subject) -> dict[str, Any]:
    return {name: getattr(subject, name) for name in ("path", "sha256", "md5", "bytes")}


def _entries(place: Place) -> list[dict[str, Any]]:
    return [stage.raw for stage in place.lock.upstream(place.stage.name)]


class Tracer:
    """Says of one subject what it came from, and whether git holds all of that."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder
        self.repository = finder.repository
        self.subject = finder.subject

    def result(self) -> dict[str, Any]:
        here = self.finder.here_by_listing()
        if self.subject.commit and here:
            recorded = Recorded(self.subject.commit, here)
            return self._recorded(recorded, self._check(here, CommitTree(self.repository, recorded.commit)))
        if known := self.finder.recorded(here):
            return self._oldest_complete(known)
        here = here or self.finder.here_by_manifest()
        return self._not_committed(here) if here else self._unknown()

    def _check(self, place: Place, tree: Tree) -> Findings:
        """The findings for an output, and for the way from the file to that output."""
        listings, out = self.finder.listings, place.out
        findings = Checker(self.repository, listings, place.lock, tree).check(place.stage.name)
        if place.within is not None and (listings.get(out.md5 or "") or {}).get(place.within) != self.subject.md5:
            findings.broken.insert(
                0, f"the manifest names it as {place.path}, but {LOCK} has another hash for {out.path} than that makes"
            )
        return findings

    def _oldest_complete(self, known: list[Recorded]) -> dict[str, Any]:
        """The oldest commit that holds the hash and all that made it; the oldest at all when none does.

        A file that was left out of the first commit can come with a later one, where dvc.lock stays as it is.
        """
        now = self._state_now(known)
        states = known[:_STATES_CHECKED] + ([now] if now else [])
        first = findings = self._check(known[0].place, CommitTree(self.repository, known[0].commit))
        chosen = known[0]
        for state in states[1:]:
            if not findings.broken:
                break
            findings = self._check(state.place, CommitTree(self.repository, state.commit))
            chosen = state
        if findings.broken:
            chosen, findings = known[0], first
        elif chosen is not known[0]:
            findings.notes.append(
                f"commit {known[0].commit[:10]} recorded the hash first, without all that made it: {first.broken[0]}"
            )
        if not findings.broken:
            self._compare_with_now(chosen, findings, now)
        return self._recorded(chosen, findings)

    def _state_now(self, known: list[Recorded]) -> Recorded | None:
        """HEAD, when its dvc.lock still holds the output."""
        head = self.repository.resolve("HEAD")
        lock = read_lock(CommitTree(self.repository, head)) if head else None
        if not head or not lock:
            return None
        like = known[0].place
        same = [Place(lock, stage, out, like.within) for stage, out in lock.outs() if out.md5 == like.out.md5]
        place = best(same, like.path)
        return Recorded(head, place) if place else None

    def _recorded(self, recorded: Recorded, findings: Findings) -> dict[str, Any]:
        if self.repository.is_shallow():
            findings.notes.append(_SHALLOW)
        tags = self._tags(recorded.place, findings)
        commit = {**self.repository.describe(recorded.commit), "status": "recorded", "tags": tags}
        return self._assemble(recorded.place, CommitTree(self.repository, recorded.commit), findings, commit)

    def _compare_with_now(self, recorded: Recorded, findings: Findings, now: Recorded | None) -> None:
        """Say where the repository has moved on without the file.

        For a file in its place that breaks the trail: what stands around it is not what made it. A copy
        elsewhere has its commit and needs no more.
        """
        in_place = self.subject.place == recorded.place.path
        if now and now.commit != recorded.commit:
            later = self._check(now.place, CommitTree(self.repository, now.commit)).broken
            target = findings.broken if in_place else findings.notes
            target += [f"{sentence} (commit {recorded.commit[:10]} still holds all that made it)" for sentence in later]
            if not later and _entries(now.place) != _entries(recorded.place):
                findings.notes.append(f"commit {now.commit[:10]} made the same bytes again, from other inputs")
        if in_place:
            findings.broken += self._uncommitted(recorded)

    def _uncommitted(self, recorded: Recorded) -> list[str]:
        """Where dvc.lock in the working tree has been changed since the last commit."""
        place = recorded.place
        lock = self.finder.here
        here = {out.path: (stage, out) for stage, out in lock.outs()} if lock else {}
        if lock is None or place.out.path not in here:
            return [f"{LOCK} in the working tree has no {place.out.path}; restore it: git checkout {LOCK}"]
        stage, out = here[place.out.path]
        if out.md5 == place.out.md5 and self.repository.git("status", "--porcelain", "--", LOCK):
            return self._check(Place(lock, stage, out, place.within), self.finder.working).broken
        return []

    def _not_committed(self, place: Place) -> dict[str, Any]:
        findings = self._check(place, self.finder.working)
        findings.broken.insert(
            0, f"{NOT_COMMITTED}: only {LOCK} in the working tree names it; git add and commit {LOCK}"
        )
        commit: dict[str, Any] = {"sha": None, "status": NOT_COMMITTED, "tags": []}
        return self._assemble(place, self.finder.working, findings, commit)

    def _unknown(self) -> dict[str, Any]:
        count = len(History(self.repository, everything=True).versions)
        sentence = (
            f"no stage wrote it: its hash is in none of the {count} versions of {LOCK} in git, nor in the working tree"
        )
        place = self.subject.place
        notes: list[str] = []
        if place and self.repository.git("ls-files", "--", place):
            notes.append(f"git itself tracks it: git log -- {place}")
        if self.repository.is_shallow():
            notes.append(_SHALLOW)
        nothing: dict[str, Any] = {"data": {}, "params": {}, "metrics": {}, "base": None, "code": {}}
        commit: dict[str, Any] = {"sha": None, "status": "unknown", "tags": []}
        return {**self._file([sentence], notes), "stage": None, **nothing, "commit": commit}

    def _tags(self, place: Place, findings: Findings) -> list[str]:
        """The tags whose dvc.lock holds the output, without those that were moved since."""
        needle = (place.out.md5 or "").encode()
        found = []
        for name, commit, text in tagged_locks(self.repository):
            if needle in text:
                fault = record_fault(self.repository, name, commit)
                findings.notes += [fault] if fault else []
                found += [] if fault else [name]
        return found

    def _assemble(self, place: Place, tree: Tree, findings: Findings, commit: dict[str, Any]) -> dict[str, Any]:
        listings, lock = self.finder.listings, place.lock
        entries = trail_entries(lock, lock.upstream(place.stage.name), tree)
        kept = examine(entries, listings, self.repository.root)
        release = f" (release {commit['tags'][0]})" if commit["tags"] else ""
        findings.broken += [sentence + release for sentence in kept.broken(listings)]
        findings.notes += kept.notes(listings)
        return {
            **self._file(findings.broken, findings.notes),
            **describe(place, tree, listings),
            "commit": commit,
        }

    def _file(self, broken: list[str], notes: list[str]) -> dict[str, Any]:
        trail = {"complete": not broken, "broken": broken, "notes": notes}
        return {"file": {**_facts(self.subject), "trail": trail}}
