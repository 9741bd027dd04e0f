"""trace: from a file's hash back to the data, parameters, code, metrics and base model that made it, and as text."""

import json
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.dvc_lock import Entry, Lock, Stage, entry_hash, parse_lock, part_hash, read_lock
from stages.core.git import LOCK, CommitTree, Repository, Tree, WorkingTree
from stages.ship.release.dvc_files import Listings, manifest_md5s, read_manifest
from stages.ship.release.finding import (
    Place,
    Subject,
    best,
    find_subject,
    lock_versions,
    places,
    read_record,
    record_fault,
    recorded,
    tagged_locks,
)
from stages.ship.release.lock_check import Checker, Findings, flatten, short
from stages.ship.release.objects import examine
from stages.ship.release.verify import differences, odd_entries

NOT_COMMITTED = "not committed yet"
_STATES_CHECKED = 20
_MODELS = paths.BASE.parent.as_posix()
_METRICS = paths.METRICS.as_posix()
_CODE_ENDS = (".py", ".sh", ".toml", ".cfg")
_HASH = 12


def trace(root: Path, name: str, start: Path) -> dict[str, Any]:
    """The trail of the file, folder or release tag `name`, as seen from the folder `start`.

    A release folder has the trail of its manifest, when it is what the manifest says.

    Returns:
        {"file", "stage", "data", "params", "metrics", "base", "tracked_run", "code", "commit"}; `file.trail` says
        whether the trail is complete, and where it is broken.

    Raises UserError when there is nothing of that name, or no git repository.
    """
    repository, listings = Repository(root), Listings(root)
    repository.git("rev-parse", "--git-dir")  # the trail is read from its history
    manifest = start / name / paths.MANIFEST.name
    is_release = read_manifest(manifest) is not None
    subject = find_subject(repository, str(manifest) if is_release else name, start, listings)
    result = Tracer(repository, listings, subject).result()
    trail = result["file"]["trail"]
    if is_release:
        trail["broken"] += differences(manifest.parent, listings)
        trail["notes"].append(f"traced by its {manifest.name}")
        result["file"] |= {"path": str(Path(subject.path).parent), "sha256": None, "md5": None, "bytes": None}
    elif subject.commit:
        trail["broken"][:0] = filter(None, [record_fault(repository, name, subject.commit)])
    else:
        trail["broken"] += odd_entries(start / name, listings)
    trail["notes"][:0] = filter(None, [repository.lacks()])
    trail["complete"] = not trail["broken"]
    return result


class Tracer:
    """Says of one subject what it came from, and whether git holds all of that.

    `lock` is that of the working tree, or of a tag's commit; `manifests` are those at hand, by their folders.
    """

    def __init__(self, repository: Repository, listings: Listings, subject: Subject) -> None:
        self.repository, self.listings, self.subject = repository, listings, subject
        self.working = WorkingTree(repository.root)
        self.lock = read_lock(self._tree(subject.commit))
        path = repository.root / subject.path
        folders = dict.fromkeys([path, *path.parents, repository.root / paths.RELEASE])
        found = {folder: read_manifest(folder / paths.MANIFEST.name) for folder in folders}
        self.manifests = {folder: manifest for folder, manifest in found.items() if manifest is not None}
        for manifest in self.manifests.values():
            listings.add_manifest(manifest)
        if (maker := self._maker()) and maker[1].is_folder and listings.get(maker[1].md5) is None:
            listings.add(self.working.md5s(maker[1].path))

    def _tree(self, commit: str | None) -> Tree:
        return CommitTree(self.repository, commit) if commit else self.working

    def _maker(self) -> tuple[Stage, Entry] | None:
        """The stage and the output in whose place the file lies."""
        place = "" if self.subject.commit else self.subject.place or ""
        return next(((stage, out) for stage, out in self.lock.outs() if out.holds(place)), None)

    def result(self) -> dict[str, Any]:
        md5, commit = self.subject.md5, self.subject.commit
        here = best(list(places(self.lock, md5, self.listings)), self.subject.path)
        if commit and here:
            here = replace(here, commit=commit)
            return self._recorded(here, self._check(here))
        # Where the file stands in the lock at hand, its output tells the run that made it: others can have the file.
        wanted, path = (here.out.md5 or md5, here.out.path) if here else (md5, self.subject.path)
        known = recorded(self.repository, wanted, path, self.listings)
        known = [replace(one, within=here.within) for one in known] if here else known
        result = self._oldest_complete(known) if known else self._not_committed(here) if here else self._unknown()
        if said := self._other_bytes():
            made = result["stage"]
            whose = "/".join(filter(None, (made["output"]["path"], made["within"]))) if made else ""
            owner = [f"the bytes here are those of {whose}, which stage {made['name']} wrote"] if made else []
            result["file"]["trail"]["broken"][:0] = [said, *owner]
        return result

    def _other_bytes(self) -> str | None:
        """The sentence for a file or folder where dvc.lock, or the manifest around it, names other bytes."""
        place, here = self.subject.place or "", short(self.subject.md5)
        if maker := self._maker():
            stage, out = maker
            files = {"": out.md5 or ""} if out.path == place else self.listings.get(out.md5)
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
                wrote = f"stage {stage.name} wrote {short(expected)}, here are {here}"
                return f"{LOCK} names other bytes for {place}: {wrote}; {advice}"
            return None
        path = self.repository.root / self.subject.path
        for folder, manifest in self.manifests.items():
            if folder in path.parents and path != folder / paths.MANIFEST.name:
                name = path.relative_to(folder).as_posix()
                expected = part_hash(manifest_md5s(manifest["files"]), name)
                if expected != self.subject.md5 and (expected or place):
                    return f"{paths.MANIFEST.name} around it names {short(expected)} for {name}, here are {here}"
        return None

    def _check(self, place: Place) -> Findings:
        return Checker(self.repository, self.listings, place.lock, self._tree(place.commit)).check(place.stage.name)

    def _oldest_complete(self, known: list[Place]) -> dict[str, Any]:
        """The oldest commit that holds the hash and all that made it; the oldest at all when none does.

        Released ones come first: who asks for a deployed file means the release, whatever run had the same bytes
        before. A file that was left out of the first commit can come with a later one, where dvc.lock stays as it is.
        """
        released = {name: lock for lock, name in self._released(known)}
        known = sorted(known, key=lambda place: place.lock not in released.values())
        now, *tagged = (self._state_at(name, known[0]) for name in ("HEAD", *(f"refs/tags/{one}" for one in released)))
        chosen, findings = known[0], self._check(known[0])
        if findings.broken:
            for other in filter(None, [*tagged, *known[1:_STATES_CHECKED], now]):
                if not (later := self._check(other)).broken:
                    oldest = f"commit {(known[0].commit or '')[:10]} recorded the hash first, without all that made it"
                    later.notes.append(f"{oldest}: {findings.broken[0]}")
                    chosen, findings = other, later
                    break
        if not findings.broken:
            self._compare_with_now(chosen, findings, now)
        return self._recorded(chosen, findings)

    def _state_at(self, revision: str, like: Place) -> Place | None:
        """The commit of a revision, when its dvc.lock holds the output."""
        commit = self.repository.resolve(revision)
        lock = read_lock(CommitTree(self.repository, commit)) if commit else Lock({})
        same = [Place(lock, stage, out, like.within, commit) for stage, out in lock.outs() if out.md5 == like.out.md5]
        return best(same, like.path)

    def _recorded(self, place: Place, findings: Findings) -> dict[str, Any]:
        commit = self.repository.describe(place.commit or "")
        return self._assemble(place, findings, {**commit, "status": "recorded", "tags": self._tags(place, findings)})

    def _compare_with_now(self, chosen: Place, findings: Findings, now: Place | None) -> None:
        """Say where the repository has moved on without the file.

        For a file in its place that breaks the trail: what stands around it is not what made it. A copy
        elsewhere has its commit and needs no more.
        """
        in_place = self.subject.place == chosen.path
        if now and now.commit != chosen.commit:
            later = self._check(now).broken
            target = findings.broken if in_place else findings.notes
            held = f"commit {(chosen.commit or '')[:10]} still holds all that made it"
            target += [f"{sentence} ({held})" for sentence in later]
            if not later and now.upstream() != chosen.upstream():
                findings.notes.append(f"commit {(now.commit or '')[:10]} made the same bytes again, from other inputs")
        if in_place:
            findings.broken += self._uncommitted(chosen)

    def _uncommitted(self, chosen: Place) -> list[str]:
        """Where dvc.lock in the working tree has been changed since the last commit."""
        for stage, out in self.lock.outs():
            if out.path == chosen.out.path:
                edited = out.md5 == chosen.out.md5 and self.repository.git("status", "--porcelain", "--", LOCK)
                return self._check(Place(self.lock, stage, out, chosen.within)).broken if edited else []
        return [f"{LOCK} in the working tree has no {chosen.out.path}; restore it: git checkout {LOCK}"]

    def _not_committed(self, place: Place) -> dict[str, Any]:
        findings = self._check(place)
        said = f"{NOT_COMMITTED}: only {LOCK} in the working tree names it; git add and commit {LOCK}"
        findings.broken.insert(0, said)
        return self._assemble(place, findings, {"sha": None, "status": NOT_COMMITTED, "tags": []})

    def _unknown(self) -> dict[str, Any]:
        count = len(lock_versions(self.repository, everything=True))
        sentence = (
            f"no stage wrote it: its hash is in none of the {count} versions of {LOCK} in git, nor in the working tree"
        )
        nothing: dict[str, Any] = {part: {} for part in ("data", "params", "metrics", "code")}
        nothing |= dict.fromkeys(("stage", "base", "tracked_run"))
        return {**self._file(Findings([sentence])), **nothing, "commit": {"sha": None, "status": "unknown", "tags": []}}

    def _tags(self, place: Place, findings: Findings) -> list[str]:
        """The tags whose dvc.lock holds the output, without those that were moved since."""
        found = []
        for name, commit, text in tagged_locks(self.repository):
            if (place.out.md5 or "").encode() in text:
                fault = record_fault(self.repository, name, commit)
                findings.notes += [fault] if fault else []
                found += [] if fault else [name]
        return found

    def _released(self, holders: list[Place]) -> Iterator[tuple[Lock, str]]:
        """The dvc.lock of each release that has an output of one of these places, with the release's tag."""
        wanted = {(place.out.md5 or "").encode() for place in holders}
        for name, commit, text in tagged_locks(self.repository):
            if any(md5 in text for md5 in wanted) and read_record(self.repository, name).get("commit") == commit:
                with suppress(ValueError):  # merge marks, for instance
                    yield parse_lock(text), name

    def _assemble(self, place: Place, findings: Findings, commit: dict[str, Any]) -> dict[str, Any]:
        tree = self._tree(place.commit)
        kept = examine(place.lock, tree, self.listings, place.upstream())
        release = next((f" (release {name})" for lock, name in self._released([place]) if lock == place.lock), "")
        findings.broken += [sentence + release for sentence in kept.broken()]
        findings.notes += kept.notes()
        return {**self._file(findings), **describe(place, tree, self.listings), "commit": commit}

    def _file(self, findings: Findings) -> dict[str, Any]:
        facts = {name: getattr(self.subject, name) for name in ("path", "sha256", "md5", "bytes")}
        return {"file": {**facts, "trail": {"broken": findings.broken, "notes": findings.notes}}}


def describe(place: Place, tree: Tree, listings: Listings) -> dict[str, Any]:
    """What dvc.lock tells of an output, with the contents that the state of the repository or DVC's cache holds.

    Returns:
        "stage": the stage, the output, where the file lies in it and the entry of dvc.lock; "data" and "code": every
        file or folder that the upstream stages read, by path; "params": the values of all upstream stages, those of
        another file than params.yaml under its name; "base": the base model; "tracked_run": the tracker, and its run,
        that this machine told of the training, if any; "metrics": every JSON file in metrics/.
    """
    lock, stage, out, upstream = place.lock, place.stage, place.out, place.upstream()
    data, code, params = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    for one in upstream:
        for dep in one.deps:
            maker = next((maker.name for maker, _ in lock.makers(dep.path)), None)
            if maker is None and is_code(dep.path):
                code.setdefault(dep.path, {**_facts(dep, tree, listings), "used_by": []})["used_by"].append(one.name)
            elif _top(dep.path) not in (_MODELS, _METRICS):
                data[dep.path] = {**_facts(dep, tree, listings), "made_by": maker}
        for file, values in one.params.items():
            (params if file == paths.PARAMS.name else params.setdefault(file, {})).update(values)
    return {
        "stage": {
            "name": stage.name,
            "command": stage.command,
            "output": {"path": out.path, "md5": out.md5, "bytes": out.size},
            "within": place.within,
            "upstream": [one.name for one in upstream],
            "lock": stage.raw,
        },
        "data": data,
        "params": params,
        "metrics": {
            made.path: {"md5": made.md5, "made_by": maker.name, "values": _json(made, tree, listings)}
            for maker, made in lock.outs()
            if _top(made.path) == _METRICS and made.path.endswith(".json")
        },
        "base": _base(params.get("model", {}), upstream),
        "tracked_run": _tracked_run(upstream, listings),
        "code": dict(sorted(code.items())),
    }


def _facts(dep: Entry, tree: Tree, listings: Listings) -> dict[str, Any]:
    """Hash and size; for a folder also the hash of each file, where that adds up to the folder's."""
    facts: dict[str, Any] = {"md5": dep.md5, "bytes": dep.size}
    if dep.is_folder:
        files = tree.md5s(dep.path)
        facts["files"] = files if entry_hash(files) == dep.md5 else listings.get(dep.md5)
    return facts


def _json(out: Entry, tree: Tree, listings: Listings) -> Any:
    """The content of a JSON output in git or in DVC's cache, or None."""
    text, cached = tree.read(out.path), listings.cached_file(out.md5 or "none")
    if text is None and cached.is_file():
        text = cached.read_bytes()
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None


def _tracked_run(upstream: list[Stage], listings: Listings) -> dict[str, str] | None:
    try:
        known = json.loads((listings.root / paths.TRACKED_RUNS).read_bytes())
        return next((known[out.md5] for stage in upstream for out in stage.outs if out.md5 in known), None)
    except (OSError, ValueError, TypeError):
        return None


def _base(model: dict[str, Any], upstream: list[Stage]) -> dict[str, Any] | None:
    """The base model: where it came from, what it must be, and the hash of models/base. None when no stage had one."""
    out = next((out for stage in upstream for out in stage.outs if out.path == paths.BASE.as_posix()), None)
    named = {key: model.get(key) for key in ("source", "file", "sha256", "licence")}
    return {**named, "path": out.path, "md5": out.md5} if out else None


def is_code(path: str) -> bool:
    """Whether a path that no stage makes is part of the program: stages/, a source file, the pinned environment."""
    return _top(path) in ("stages", "constraints") or path.endswith(_CODE_ENDS) or path == "constraints.txt"


def show(trail: Mapping[str, Any]) -> str:
    """The result of `trace` as text: the answer first, then what made the file."""
    return "\n".join(_lines(trail))


def _lines(trail: Mapping[str, Any]) -> Iterator[str]:
    file, stage = trail["file"], trail["stage"]
    state = file["trail"]
    yield file["path"]
    yield f"  trail    {'complete' if state['complete'] else 'BROKEN'}"
    yield from (f"           - {sentence}" for sentence in state["broken"])
    yield from (f"  note     {sentence}" for sentence in state["notes"])
    yield from (f"  {key:<8} {file[key]}" for key in ("sha256", "md5", "bytes") if file[key] is not None)
    yield from _commit(trail["commit"])
    if stage is None:
        return
    yield f"  stage    {stage['name']}: {stage['command']}"
    yield f"  output   {stage['output']['path']}  {stage['output']['md5']}"
    yield f"  after    {', '.join(stage['upstream'][:-1]) or 'no other stage'}"
    if run := trail["tracked_run"]:
        yield f"  tracked  {run['tracker']} run {run['run']}"
    if base := trail["base"]:
        yield "base model"
        yield from (f"  {key:<8} {value}" for key, value in base.items() if value is not None)
    for title in ("data", "code", "metrics"):
        yield title
        width = max((len(path) for path in trail[title]), default=0)
        for path, row in trail[title].items():
            origin = f"  from stage {row['made_by']}" if row.get("made_by") else ""
            yield f"  {path.ljust(width)}  {row['md5']}{origin}"
    yield "figures"
    yield from _figures(trail["metrics"].get(paths.SUMMARY.as_posix(), {}).get("values"))
    yield "parameters"
    yield from _figures(trail["params"])


def _commit(commit: Mapping[str, Any]) -> Iterator[str]:
    if not commit["sha"]:
        yield f"  commit   {commit['status']}"
        return
    yield f"  commit   {commit['sha']}"
    yield f"           {commit['date']} {commit['author']}: {commit['subject']}"
    yield f"  tags     {', '.join(commit['tags']) or 'none'}"
    # A tag can be on another commit with the same outputs, and have the name of a branch, or what a shell obeys.
    yield f"  restore  git checkout {commit['sha'][:_HASH]} && dvc checkout"


def _figures(values: Any) -> Iterator[str]:
    """A line for each value of nested mappings."""
    for key, node in (values if isinstance(values, Mapping) else {}).items():
        for name, value in flatten(node, str(key)).items():
            yield f"  {name} = {json.dumps(value, ensure_ascii=False, default=str)}"


def _top(path: str) -> str:
    return posixpath.normpath(path).split("/", 1)[0]
