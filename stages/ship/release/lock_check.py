"""lock-check: does dvc.lock belong to this code, these data and parameters? Does a state of the repository hold what it
says made an output? Every gap is a sentence; neither cache nor remote is needed.

`dvc status` compares what is in git, but cannot tell a stale stage from outputs that were not pulled, and
`dvc repro --dry --allow-missing` tells them apart but exits with 0 either way. So its findings are sorted here.
"""

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.dvc_lock import Entry, Lock, Stage, entry_hash, md5, part_hash, read_lock, value_at
from stages.core.errors import Refusal, names
from stages.core.git import LOCK, CommitTree, Repository, Tree, WorkingTree
from stages.ship.release.dvc_files import Definition, Listings, added, dvc_repo, is_outside
from stages.ship.release.objects import Kept, examine

_NOT_PULLED = ("deleted", "not in cache")
_VERSIONS_SEARCHED = 50
ABSENT = object()
AUTOCRLF = (
    "git changed them on checkout (core.autocrlf); put `* -text` into .gitattributes, commit your changes, then "
    "`git rm -rq --cached . && git reset --hard` checks the right bytes out, and a stage that read others runs again"
)


@dataclass
class Findings:
    """What breaks the trail, and what could not be checked."""

    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def lock_check(root: Path, deep: bool = False) -> str:
    """Return the sentence that says all is fresh; with `deep` after hashing all that it names.

    Raises Refusal naming each stale stage and what changed; UserError when dvc cannot read the repository.
    """
    repository, tree, advice = Repository(root), WorkingTree(root), ""
    lock = read_lock(tree)
    stale: dict[str, list[str]] = {}
    with dvc_repo(root, f"dvc status failed in {root}") as repo:
        status, pipeline = repo.status(), str((root / paths.PIPELINE).resolve())
        defined = [stage.name for stage in repo.index.stages if str(Path(stage.path).resolve()) == pipeline]
    for name, sentence in [*_changes(status, lock), *_unseen_by_dvc(repository, lock)]:
        stale.setdefault(name, []).append(sentence)
    if gone := sorted(lock.stages.keys() - set(defined)):
        raise Refusal(
            f"{LOCK} has {', '.join(gone)}, which {paths.PIPELINE} no longer has; delete that there: DVC keeps it"
        )
    stale |= {name: ["never ran"] for name in defined if name not in lock.stages}
    for name, reasons in stale.items():
        for dep in lock.stages[name].deps if name in lock.stages else ():
            if (modified := f"{dep.path} modified") in reasons and line_ends_alone(repository, tree, dep):
                reasons[reasons.index(modified)] = f"{dep.path} differs by line ends alone"
                advice = f"\n  line ends: {AUTOCRLF}"
    if stale:
        lines = [f"{name}: {'; '.join(sorted(reasons))}" for name, reasons in stale.items()]
        raise Refusal(f"{LOCK} is stale; run `dvc repro` and commit it:\n  " + "\n  ".join(lines) + advice)
    fresh = f"{LOCK} is fresh: {len(lock.stages)} stages ran with this code, these data and parameters"
    if not deep:
        return fresh
    findings, kept = hash_all(root, lock, Listings(root))
    if findings.broken:
        raise Refusal(f"the files are not those of {LOCK}:\n  " + "\n  ".join(findings.broken))
    hashed = f"{len(kept.objects)} objects hashed, {len(kept.not_cached)} of them are not in DVC's cache"
    return "\n".join([fresh, hashed, *findings.notes])


def hash_all(root: Path, lock: Lock, listings: Listings) -> tuple[Findings, Kept]:
    """Hash all that a lock names, in the working tree and in DVC's cache: DVC itself trusts names and times."""
    tree, findings = WorkingTree(root), Findings()
    checker = Checker(Repository(root), listings, lock, tree)
    for stage, out in lock.outs():
        if entry_hash(tree.md5s(out.path)) not in (None, out.md5):
            findings.broken.append(
                f"{out.path} in the working tree is not what stage {stage.name} wrote: `tunetrail doctor` looks for "
                "the cause, `dvc checkout --force` brings what the cache holds"
            )
    for stage in lock.stages.values():
        checker.check_sources(stage, findings)
    kept = examine(lock, tree, listings, deep=True)
    findings.broken += kept.broken()
    findings.notes += kept.notes()
    return findings, kept


def _changes(status: dict[str, list[Any]], lock: Lock) -> Iterator[tuple[str, str]]:
    """What changed for each stage, without the outputs (its own, or those it reads) that are merely absent."""
    tracked = [Entry(name.removesuffix(".dvc"), None, None, None) for name in status if name.endswith(".dvc")]
    for name, rows in status.items():
        if "changed command" in rows:
            yield name, "its command in dvc.yaml changed"
        kinds = [kind for row in rows if isinstance(row, dict) for kind in row.items()]
        for kind, path, change in [(kind, *one) for kind, changes in kinds for one in changes.items()]:
            made = kind == "changed outs" or lock.makers(path) or any(one.holds(path) for one in tracked)
            if isinstance(change, dict):
                yield from ((name, f"parameter {key} {value}") for key, value in change.items())
            elif not (made and change in _NOT_PULLED):
                yield name, f"{path} {change}"


def _unseen_by_dvc(repository: Repository, lock: Lock) -> Iterator[tuple[str, str]]:
    """Stages that did not read what git says they read. DVC looks at the files, which are absent here."""
    tree = WorkingTree(repository.root)
    definition = Definition.read(tree)
    checker = Checker(repository, Listings(repository.root), lock, tree)
    for stage in lock.stages.values():
        frozen = (definition.stages.get(stage.name) or {}).get("frozen")  # DVC looks at nothing that it reads
        without = [name for name in definition.ran_without(stage) if frozen or lock.makers(name)]
        findings = Findings([f"ran without {name}" for name in without])
        checker.check_links(stage, findings)
        if frozen:
            checker.check_sources(stage, findings)
            findings.broken += checker.parameters(stage)
        yield from ((stage.name, sentence) for sentence in findings.broken)
    yield from _read_unhashed(tree, lock)


def _read_unhashed(tree: WorkingTree, lock: Lock) -> Iterator[tuple[str, str]]:
    """Whether clean read other files than DVC hashed for it, by the count that git has of both."""
    stage, read = lock.stages.get("clean"), tree.read_mapping(paths.DETAILS).get("clean", {}).get("files")
    if not stage or not read:  # or details.json is a changed output, which DVC has named
        return
    raw = stage.params.get("params.yaml", {}).get("clean", {}).get("raw")
    files = read["read"] + read["passed_over"]
    for dep in stage.deps:
        if dep.path == raw and (dep.files or 1, dep.size) != (files, read["bytes"]):
            found = f"read {files} files of {read['bytes']} bytes in {raw}"
            yield stage.name, f"{found}, but {LOCK} has hashes of {dep.files or 1} files of {dep.size} bytes"


@dataclass(frozen=True)
class Checker:
    """The checks of one lock against one state of the files."""

    repository: Repository
    listings: Listings
    lock: Lock
    tree: Tree

    def check(self, stage: str) -> Findings:
        """Check everything that the output of `stage` came from."""
        findings = Findings()
        definition, stages = Definition.read(self.tree), self.lock.upstream(stage)
        for upstream in stages:
            findings.broken += definition.differences(upstream, self.tree.label)
            findings.broken += self.parameters(upstream)
            self.check_links(upstream, findings)
            self.check_sources(upstream, findings)
        self._in_git(definition.in_git, findings)
        return Findings(list(dict.fromkeys(findings.broken)), list(dict.fromkeys(findings.notes)))

    def check_links(self, stage: Stage, findings: Findings) -> None:
        """Check what the stage read from other stages and from `dvc add`, which git holds by hash alone."""
        for dep in stage.deps:
            makers = self.lock.makers(dep.path)
            for maker, out in makers:
                self._link(stage, dep, f"stage {maker.name} wrote", out, findings)
            if not makers and (source := added(self.tree, dep)):
                self._link(stage, dep, f"{source.path}.dvc says", source, findings)

    def check_sources(self, stage: Stage, findings: Findings) -> None:
        """Check what no stage makes: code, and data that git holds."""
        for dep in stage.deps:
            if self.lock.makers(dep.path) or dep.md5 is None:
                continue
            if is_outside(dep.path):
                findings.notes.append(
                    f"{dep.path} lies outside the repository: its hash is recorded, its bytes are not"
                )
            elif added(self.tree, dep) is None:
                findings.broken += self._source(stage, dep)

    def _link(self, stage: Stage, dep: Entry, origin: str, out: Entry, findings: Findings) -> None:
        """What a stage read must be the output, or the part of it, that git names."""
        if not out.holds(dep.path):
            findings.notes.append(
                f"{dep.path} gathers outputs of several stages; what {stage.name} read is not checked"
            )
            return
        expected = out.md5
        if out.path != dep.path:
            files = self.listings.get(out.md5)
            if files is None:
                findings.notes.append(f"no listing of {out.path} is at hand: its part {dep.path} is not checked")
                return
            expected = part_hash(files, posixpath.relpath(dep.path, out.path))
        if expected != dep.md5:
            findings.broken.append(
                f"stage {stage.name} read {dep.path} as {short(dep.md5)}, but {origin} {short(expected)}; "
                "run `dvc repro` and commit dvc.lock"
            )

    def _source(self, stage: Stage, dep: Entry) -> list[str]:
        files = self.tree.md5s(dep.path)
        found = entry_hash(files)
        if found == dep.md5:
            return []
        if found and line_ends_alone(self.repository, self.tree, dep):
            return [
                f"{dep.path} in {self.tree.label} differs by line ends alone from what {stage.name} read: {AUTOCRLF}"
            ]
        changed = self._changed(dep, files) if found else []
        if all(posixpath.relpath(path, dep.path) not in files for path in changed) and (changed or not found):
            lost = names(changed) or dep.path
            return [f"{lost}, which stage {stage.name} read, is not in {self.tree.label}: it cannot be restored"]
        named = names(changed) or dep.path
        return [
            f"{named} in {self.tree.label} is not what stage {stage.name} ran with ({dep.path} was {short(dep.md5)})"
        ]

    def _changed(self, dep: Entry, files: Mapping[str, str]) -> list[str]:
        """The files that differ from what ran, known when the working tree or some other commit holds what ran."""
        recent = ["--all", "--full-history", f"-{_VERSIONS_SEARCHED}"]
        commits = self.repository.git("rev-list", *recent, "--", dep.path, check=False).split()
        for tree in (WorkingTree(self.repository.root), *(CommitTree(self.repository, one) for one in commits)):
            ran = tree.md5s(dep.path)
            if entry_hash(ran) == dep.md5:
                changed = sorted(name for name in {*files, *ran} if files.get(name) != ran.get(name))
                return [posixpath.join(dep.path, name) if name else dep.path for name in changed]
        return []

    def parameters(self, stage: Stage) -> Iterator[str]:
        """Where a parameter is not what the stage ran with."""
        for file, used in stage.params.items():
            values = self.tree.read_mapping(Path(file))
            if used and not values:
                yield f"{file}, whose parameters stage {stage.name} read, is missing or unreadable in {self.tree.label}"
                continue
            for key, value in used.items():
                now, then = flatten(value_at(values, key, ABSENT), key), flatten(value, key)
                for name in dict.fromkeys([*then, *now]):
                    if now.get(name, ABSENT) != then.get(name, ABSENT):
                        said, ran = (repr(one[name]) if name in one else "nothing" for one in (now, then))
                        yield f"{file} in {self.tree.label} says {name} = {said}, stage {stage.name} ran with {ran}"

    def _in_git(self, names: list[str], findings: Findings) -> None:
        """Check the outputs that git itself keeps: the metrics that people decide by."""
        for stage, out in self.lock.outs():
            if out.path not in names:
                continue
            found = entry_hash(self.tree.md5s(out.path))
            if found is None:
                findings.notes.append(f"{out.path} is not in {self.tree.label}; only its hash is recorded")
            elif found != out.md5:
                findings.broken.append(
                    f"{out.path} in {self.tree.label} is not what stage {stage.name} wrote: it was changed since"
                )
            self.check_links(stage, findings)


def flatten(value: Any, key: str) -> dict[str, Any]:
    """Dotted names of the values below a section, so that a difference names its own key."""
    if not isinstance(value, Mapping) or not value:
        return {} if value is ABSENT else {key: value}
    return {name: leaf for inner, node in value.items() for name, leaf in flatten(node, f"{key}.{inner}").items()}


def line_ends_alone(repository: Repository, tree: Tree, dep: Entry) -> bool:
    """Whether a dependency is what a stage read but for line ends, as git's core.autocrlf changes them on checkout."""
    head = CommitTree(repository, "HEAD") if repository.resolve("HEAD") else tree

    def lf(content: bytes) -> bytes:
        return content.replace(b"\r\n", b"\n")

    def committed(path: str, content: bytes) -> bytes:
        known = head.read(path)
        return known if known is not None and lf(known) == lf(content) else lf(content)

    def crlf(_: str, content: bytes) -> bytes:
        return content if b"\0" in content else lf(content).replace(b"\n", b"\r\n")

    files = {name: posixpath.join(dep.path, name) if name else dep.path for name in tree.md5s(dep.path)}
    contents = {name: tree.read(path) or b"" for name, path in files.items()}
    return any(
        dep.md5 == entry_hash({name: md5(convert(files[name], content)) for name, content in contents.items()})
        for convert in (committed, crlf)
    )


def short(md5: str | None) -> str:
    return "an unknown hash" if md5 is None else md5[:10]
