"""lock-check: does dvc.lock belong to this code, these data and parameters? Needs neither cache nor remote.

`dvc status` compares what is in git, but cannot tell a stale stage from outputs that were not pulled, and
`dvc repro --dry --allow-missing` tells them apart but exits with 0 either way. So its findings are sorted here.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.dvc_lock import Lock, entry_hash
from stages.core.errors import Refusal, UserError
from stages.core.git import LOCK, Repository, WorkingTree
from stages.ship.release.checks import AUTOCRLF, Checker, Findings, line_ends_alone
from stages.ship.release.dvc_files import Definition, Listings
from stages.ship.release.finding import read_lock
from stages.ship.release.objects import Kept, examine, trail_entries

_NOT_PULLED = ("deleted", "not in cache")


def lock_check(root: Path, deep: bool = False) -> str:
    """Return the sentence that says all is fresh; with `deep` after hashing all that it names.

    Raises:
        Refusal: naming each stale stage and what changed.
        UserError: when dvc cannot read the repository.
    """
    lock = read_lock(WorkingTree(root)) or Lock({})
    stale = stale_stages(dvc_status(root), lock)
    for name, sentence in [*_unseen_by_dvc(root, lock), *_read_unhashed(root, lock)]:
        stale.setdefault(name, []).append(sentence)
    stale |= {name: ["never ran"] for name in Definition.read(WorkingTree(root)).never_ran(lock)}
    repository, tree, advice = Repository(root), WorkingTree(root), ""
    for name, reasons in stale.items():
        for dep in lock.stages[name].deps if name in lock.stages else ():
            if (modified := f"{dep.path} modified") in reasons and line_ends_alone(repository, tree, dep):
                reasons[reasons.index(modified)] = f"{dep.path} differs by line ends alone"
                advice = f"\n  line ends: {AUTOCRLF}"
    if stale:
        lines = [f"{name}: {'; '.join(reasons)}" for name, reasons in stale.items()]
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
    kept = examine(trail_entries(lock, lock.stages.values(), tree), listings, root, deep=True)
    findings.broken += kept.broken(listings)
    findings.notes += kept.notes(listings)
    return findings, kept


def dvc_status(root: Path) -> dict[str, list[Any]]:
    """What `dvc status` says. Raises UserError with DVC's words when it fails."""
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            status: dict[str, list[Any]] = repo.status()
    except Exception as error:  # DVC's own, and those of the YAML and the file systems that it reads
        raise UserError(f"dvc status failed in {root}: {error}") from error
    return status


def stale_stages(status: dict[str, list[Any]], lock: Lock) -> dict[str, list[str]]:
    """What changed for each stage, without the outputs (its own, or those it reads) that are merely absent."""
    tracked = [name.removesuffix(".dvc") for name in status if name.endswith(".dvc")]
    found = {name: sorted(_reasons(rows, lock, tracked)) for name, rows in status.items()}
    return {name: reasons for name, reasons in found.items() if reasons}


def _reasons(rows: list[Any], lock: Lock, tracked: list[str]) -> Iterator[str]:
    for row in rows:
        if row == "changed command":
            yield "its command in dvc.yaml changed"
        for kind, changes in row.items() if isinstance(row, dict) else []:
            for path, change in changes.items():
                absent = change in _NOT_PULLED and (kind == "changed outs" or _is_output(path, lock, tracked))
                if not absent:
                    yield from _sentences(path, change)


def _sentences(path: str, change: Any) -> Iterator[str]:
    if isinstance(change, dict):
        yield from (f"parameter {key} {value}" for key, value in change.items())
    else:
        yield f"{path} {change}"


def _is_output(path: str, lock: Lock, tracked: list[str]) -> bool:
    return bool(lock.makers(path)) or any(path == one or path.startswith(f"{one}/") for one in tracked)


def _unseen_by_dvc(root: Path, lock: Lock) -> Iterator[tuple[str, str]]:
    """Stages that did not read what git says they read. DVC looks at the files, which are absent here."""
    tree = WorkingTree(root)
    definition = Definition.read(tree)
    checker = Checker(Repository(root), Listings(root), lock, tree)
    for stage in lock.stages.values():
        absent = (name for name in definition.ran_without(stage) if lock.makers(name))
        yield from ((stage.name, f"ran without {name}") for name in absent)
        findings = Findings()
        checker.check_links(stage, findings)
        yield from ((stage.name, sentence) for sentence in findings.broken)


def _read_unhashed(root: Path, lock: Lock) -> Iterator[tuple[str, str]]:
    """Whether clean read other files than DVC hashed for it, by the count that git has of both."""
    stage, details = lock.stages.get("clean"), WorkingTree(root).read(paths.DETAILS.as_posix())
    try:
        read = json.loads(details or b"{}").get("clean", {}).get("files")
    except ValueError:
        read = None  # a changed output, which DVC has named
    if not stage or not read:
        return
    raw = stage.params.get("params.yaml", {}).get("clean", {}).get("raw")
    files = read["read"] + read["passed_over"]
    for dep in stage.deps:
        if dep.path == raw and (dep.files or 1, dep.size) != (files, read["bytes"]):
            found = f"read {files} files of {read['bytes']} bytes in {raw}"
            yield stage.name, f"{found}, but {LOCK} has hashes of {dep.files or 1} files of {dep.size} bytes"
