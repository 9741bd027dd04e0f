"""merge-lock: one dvc.lock out of those of two branches that both ran stages.

An entry of dvc.lock is true as a whole: these inputs gave these outputs. Merged by lines, as git merges, it says what
nobody ran; so .gitattributes has git leave dvc.lock and the metrics alone and call a conflict. Here entries are taken
whole, and only where their inputs are those of the merged tree. Git's own merge drivers cannot do that: they run
before the other files are merged.
"""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.dependencies import filled_in
from stages.core.dvc_lock import (
    Stage,
    cache_folder,
    cached_listing,
    entry_hash,
    holds,
    part_hash,
    read_lock,
    tracked_outputs,
    value_at,
)
from stages.core.errors import Refusal, UserError, names
from stages.core.files import remove, write_text
from stages.core.git import LOCK, CommitTree, Repository, WorkingTree
from stages.core.yaml_reader import load_yaml

_HEADS = ("MERGE_HEAD", "REBASE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD")  # of what git is in the middle of merging
_ABSENT = object()


@dataclass(frozen=True)
class Run:
    """A stage as a revision's dvc.lock has it."""

    revision: str
    tree: CommitTree
    stage: Stage


@dataclass
class Definition:
    """A stage of dvc.yaml, its paths filled in; `in_git` are the outputs that git keeps and DVC's cache does not."""

    command: str
    deps: list[str]
    params: list[tuple[str, str]]  # file and key
    outs: list[str] = field(default_factory=list)
    in_git: list[str] = field(default_factory=list)


def merge_lock(root: Path, revisions: Sequence[str] = ()) -> str:
    """Write dvc.lock, and the metrics that git keeps, from the revisions that are being merged, or from those given.

    `root` is the current folder. A stage that no revision ran with the inputs of the working tree has no entry: it must
    run. Returns what was taken from where, and what must run and why. Raises Refusal when other files are still in
    conflict; UserError when nothing is being merged and no revision is given, or one cannot be read.
    """
    repository = Repository(root)
    conflicts = repository.git("diff", "--name-only", "--diff-filter=U", "--relative").splitlines()
    if defining := [name for name in conflicts if name in (paths.PIPELINE.as_posix(), paths.PARAMS.as_posix())]:
        raise Refusal(f"{names(defining)} is in conflict, and says what the stages are; resolve it and run again")
    merge = Merge(WorkingTree(root), _definitions(), _sources(repository, revisions))
    in_git = [path for one in merge.definitions.values() for path in one.in_git]
    kept = [path for path in conflicts if any(holds(out, path) for out in in_git)]
    if left := [path for path in conflicts if path != LOCK and path not in kept]:
        raise Refusal(f"{names(left)}: in conflict; what a stage reads decides whose run counts: resolve and run again")
    merge.choose()
    _write(repository, merge, kept)
    return _said(merge)


class Merge:
    """For each stage the run of a revision whose inputs are those of the tree, in the order of the pipeline."""

    def __init__(self, tree: WorkingTree, definitions: dict[str, Definition], sources: dict[str, CommitTree]) -> None:
        self.tree, self.definitions = tree, definitions
        locks = [(revision, one, read_lock(one)) for revision, one in sources.items()]
        self.runs = {
            name: [Run(revision, one, lock.stages[name]) for revision, one, lock in locks if name in lock.stages]
            for name in definitions
        }
        self.trees, self.cache = list(sources.values()), cache_folder(tree.root)
        self.taken: dict[str, Run] = {}
        self.to_run: dict[str, list[str]] = {}  # stage to reasons
        self.restored: dict[str, CommitTree] = {}  # output that git keeps to the revision that has it as it was written

    def choose(self) -> None:
        """Fill `taken`, `to_run` and `restored`."""
        stages = self.definitions.items()
        before = {name: {maker for dep in one.deps for maker, _ in self._makers(dep)} for name, one in stages}
        try:
            order = list(TopologicalSorter(before).static_order())
        except CycleError as error:
            raise UserError(f"{paths.PIPELINE}: its stages read from each other in a circle: {error.args[1]}") from None
        for name in order:
            if waits := sorted(before[name] & self.to_run.keys()):
                self.to_run[name] = [f"reads what {names(waits)} will write"]
                continue
            differences = [(run, self._difference(run)) for run in self.runs[name]]
            if fitting := next((run for run, difference in differences if difference is None), None):
                self.taken[name] = fitting
                held = ((path, self._holder(fitting, path)) for path in self.definitions[name].in_git)
                self.restored |= {path: tree for path, tree in held if tree}
            else:
                said = dict.fromkeys(f"{run.revision} ran it {difference}" for run, difference in differences)
                self.to_run[name] = list(said) or ["no revision ran it"]

    def _difference(self, run: Run) -> str | None:
        """Where the inputs of a run are not those of the tree; None where they are."""
        stage, here = run.stage, self.definitions[run.stage.name]
        if stage.command != here.command:
            return f"as `{stage.command}`"
        recorded = {(file, key): value for file, values in stage.params.items() for key, value in values.items()}
        for file, key in {**recorded, **dict.fromkeys(here.params)}:
            if recorded.get((file, key), _ABSENT) != value_at(self._parameters(file), key, _ABSENT):
                return f"with another {key}"
            if (file, key) not in here.params:
                return f"with a parameter that it no longer has, {key}"
        if {dep.path for dep in stage.deps} != set(here.deps):
            return "with other dependencies"
        if {out.path for out in stage.outs} != {*here.outs, *here.in_git}:
            return "with other outputs"
        for dep in stage.deps:
            if (wanted := self._hash(dep.path)) is None or dep.md5 != wanted:
                return f"with another {dep.path}" if wanted else f"with {dep.path}, of which DVC's cache has no listing"
        missing = [path for path in here.in_git if self._holder(run, path) is None]
        return f"and {missing[0]} of that run is in no revision" if missing else None

    @lru_cache  # noqa: B019 lives as long as the command
    def _parameters(self, file: str) -> Any:
        try:
            return load_yaml(self.tree.read(file) or b"")
        except ValueError as error:
            raise UserError(f"{file}: {error}") from None

    def _makers(self, dep: str) -> list[tuple[str, str]]:
        """The stages that write `dep`, what is around it or below it, and that output."""
        outs = [(name, out) for name, one in self.definitions.items() for out in (*one.outs, *one.in_git)]
        return [(name, out) for name, out in outs if holds(dep, out) or holds(out, dep)]

    def _hash(self, dep: str) -> str | None:
        """The hash of a dependency in the merged tree; None where nothing at hand tells it."""
        if not (makers := self._makers(dep)):
            return self._source(dep)
        (maker, path), *more = makers
        written = next((out.md5 for out in self.taken[maker].stage.outs if out.path == path), None)
        if path == dep or more or not written:
            return None if more else written
        return part_hash(cached_listing([self.cache], written) or {}, posixpath.relpath(dep, path))

    @lru_cache  # noqa: B019
    def _source(self, dep: str) -> str | None:
        for place in (dep, *(parent.as_posix() for parent in Path(dep).parents)):
            if (text := self.tree.read(f"{place}.dvc")) is None:
                continue
            try:
                entry = next(one for one in tracked_outputs(text, f"{place}.dvc") if one.path == place)
            except (ValueError, StopIteration):
                return None
            below = posixpath.relpath(dep, place)
            return entry.md5 if place == dep else part_hash(cached_listing([self.cache], str(entry.md5)) or {}, below)
        return entry_hash(self.tree.md5s(dep))

    def _holder(self, run: Run, path: str) -> CommitTree | None:
        """The revision whose `path` is what the run wrote, first its own."""
        wanted = next((out.md5 for out in run.stage.outs if out.path == path), None)
        holders = (tree for tree in (run.tree, *self.trees) if entry_hash(tree.md5s(path)) == wanted)
        return next(holders, None) if wanted else None


def _definitions() -> dict[str, Definition]:
    try:
        stages = (load_yaml(paths.PIPELINE.read_bytes()) or {}).get("stages") or {}
        return {name: _definition(entry) for name, entry in stages.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{paths.PIPELINE}: {error}") from None


def _definition(entry: dict[str, Any]) -> Definition:
    if not isinstance(entry.get("cmd"), str) or "wdir" in entry:
        return Definition("", [], [])  # made by a loop, or with paths of its own: runs again
    keys = [row if isinstance(row, dict) else {paths.PARAMS.as_posix(): [row]} for row in entry.get("params") or []]
    params = [(file, key) for row in keys for file, below in row.items() for key in below]
    one = Definition(entry["cmd"], [filled_in(dep) for dep in entry.get("deps") or []], params)
    for row in (row for kind in ("outs", "metrics", "plots") for row in entry.get(kind) or []):
        path, how = next(iter(row.items())) if isinstance(row, dict) else (row, {})
        (one.in_git if (how or {}).get("cache") is False else one.outs).append(filled_in(path))
    return one


def _sources(repository: Repository, revisions: Sequence[str]) -> dict[str, CommitTree]:
    """The states whose runs may be taken, in the order in which they are asked."""
    named = list(revisions)
    if not named:
        if (other := next((head for head in _HEADS if repository.resolve(head)), None)) is None:
            raise UserError(f"nothing is being merged; name the revisions whose runs {LOCK} may take, such as main")
        base = repository.git("merge-base", "HEAD", other, check=False)[:12].split()
        named = ["HEAD", other, *base]  # a merge can undo what both sides changed
    commits = {name: repository.resolve(name) for name in named}
    if unknown := [name for name, commit in commits.items() if commit is None]:
        raise UserError(f"git knows no revision {names(unknown)}")
    return {name: CommitTree(repository, commit) for name, commit in commits.items() if commit}


def _write(repository: Repository, merge: Merge, conflicts: Sequence[str]) -> None:
    """dvc.lock and the metrics to disk and to git's index.

    The metrics of a stage that must run are those of HEAD on disk and stay in conflict in the index, so that git
    takes no merge commit before they are made anew.
    """
    from dvc.utils.serialize import dumps_yaml

    for path, tree in merge.restored.items():
        repository.git("rm", "-r", "-q", "-f", "--ignore-unmatch", "--", path)
        remove(repository.root / path)
        repository.git("checkout", tree.commit, "--", path)
    for path in conflicts:
        if not any(holds(out, path) for out in merge.restored):
            repository.git("checkout", "--ours", "--", path, check=False)
    stages = {name: merge.taken[name].stage.raw for name in merge.definitions if name in merge.taken}
    write_text(repository.root / LOCK, dumps_yaml({"schema": "2.0", "stages": stages}))
    repository.git("add", "--", LOCK)


def _said(merge: Merge) -> str:
    lines = [f"{LOCK}: {len(merge.taken)} of {len(merge.definitions)} stages ran with the inputs of this tree"]
    for revision in dict.fromkeys(run.revision for run in merge.taken.values()):
        stages = [name for name in merge.definitions if name in merge.taken and merge.taken[name].revision == revision]
        lines.append(f"  as in {revision}: {', '.join(stages)}")
    lines += [f"  must run: {name} ({'; '.join(why)})" for name, why in merge.to_run.items()]
    lines.append("next: dvc checkout --force --allow-missing (dvc pull for what another machine made); then")
    lines.append(f"tunetrail repro; git add {LOCK} {paths.METRICS}; git commit" if merge.to_run else "git commit")
    return "\n".join(lines)
