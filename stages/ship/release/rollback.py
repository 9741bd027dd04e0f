"""rollback: give a stage a released version back, and bring its files into the working tree.

All that can go wrong is looked for before anything changes. The stage is assigned before the files are checked out,
because with them comes the code of that release, which may know no rollback. The next run completes one that was
interrupted.
"""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from stages.core import paths
from stages.core.errors import Refusal, UserError, names
from stages.core.git import CommitTree, Repository, Tree, WorkingTree
from stages.ship.release.described import is_code
from stages.ship.release.dvc_files import Listings, dvc_repo, read_lock
from stages.ship.release.finding import record_fault
from stages.ship.release.lock_check import dvc_status
from stages.ship.release.objects import examine
from stages.ship.release.registry import Registry, Tag, artifact_name, parse_stage, parse_version
from stages.ship.release.tag import uncommitted
from stages.ship.release.verify import verify

_DVC_FAILED = "dvc failed, mend that and run the same again"
Changes = Callable[[Tree, Tree], list[tuple[str, str, str, str]]]


def rollback(
    root: Path, version: str, stage: str | None, reason: str | None, changes: Changes, key: Path | None = None
) -> str:
    """Go back to a released version; return what was done and what changed.

    Args:
        stage: the stage to assign, or None to check out alone.
        changes: tells what differs between two states: what, then, now, and how to read it.
        key: the public key of whom the release's signature must be.

    Raises UserError for a version that is not released; Refusal when the working tree holds what a checkout would lose,
    or the release's files cannot be had.
    """
    repository = Repository(root)
    registry = Registry(repository, artifact_name(WorkingTree(root)))
    target = _released(registry, parse_version(version))
    live = registry.live(parse_stage(stage)) if stage else None
    if reasons := [*_would_be_lost(repository, target.commit), *_cannot_be_had(repository, target)]:
        raise Refusal("nothing is rolled back:\n  " + "\n  ".join(reasons))
    now = live.commit if live else repository.resolve("HEAD") or target.commit
    was = registry.versions[now].version if now in registry.versions else f"commit {now[:10]}"
    trees = CommitTree(repository, now), CommitTree(repository, target.commit)
    rows = [*_sources(*trees), *changes(*trees)]  # before the checkout, which brings other code
    said = []
    if stage:
        tag = registry.assign(stage, target, {"reason": reason} if reason else {})
        said.append(f"Stage {stage} has {target.version} (before: {tag.record.get('before') or 'none'}).")
        said.append(f"Publish:     git push --atomic origin {shlex.quote(tag.name)}")
    branch = repository.git("symbolic-ref", "--quiet", "--short", "HEAD", check=False)
    if repository.resolve("HEAD") != target.commit:
        repository.git("checkout", "--quiet", "--detach", target.commit)
        said += [f"Go forward:  git switch {branch} && dvc checkout"] if branch else []
    with dvc_repo(root, _DVC_FAILED) as repo:
        repo.checkout()
    said.append(f"Verified:    {verify(root, root / paths.RELEASE, key).splitlines()[0]}")
    if now != target.commit:
        said += [f"From {was} to {target.version}:", *_told(rows)]
    return "\n".join(said)


def _released(registry: Registry, version: str) -> Tag:
    found = next((tag for tag in registry.versions.values() if tag.version == version), None)
    if found is None:
        known = ", ".join(str(tag.version) for tag in registry.versions.values()) or "none"
        raise UserError(
            f"{registry.artifact} has no release {version} here ({known}); `git fetch --tags` brings others"
        )
    if fault := record_fault(registry.repository, found.name, found.commit):
        raise UserError(fault)
    return found


def _would_be_lost(repository: Repository, commit: str) -> Iterator[str]:
    """What a person has changed, in git's files or in DVC's, and what a checkout would write over."""
    if changed := list(uncommitted(repository)):
        yield from changed
        return
    repository.git("update-index", "-q", "--refresh", check=False)  # the times of the files, which read-tree goes by
    try:
        repository.git("read-tree", "--dry-run", "-u", "-m", "HEAD", commit)
    except UserError as error:
        yield " ".join(str(error).split())
    listings, tree = Listings(repository.root), WorkingTree(repository.root)
    rows = [row for rows in dvc_status(repository.root).values() for row in rows if isinstance(row, dict)]
    changed_outs = {path: how for row in rows for path, how in row.get("changed outs", {}).items()}
    for path in [path for path, how in changed_outs.items() if how != "deleted"]:
        if unsaved := [name for name, md5 in tree.md5s(path).items() if not listings.cached_file(md5).is_file()]:
            files = names([f"{path}/{name}".rstrip("/") for name in unsaved])
            yield f"DVC's cache does not hold {files} as it is here; `dvc commit` saves it, or move it away"


def _cannot_be_had(repository: Repository, target: Tag) -> Iterator[str]:
    """What neither cache nor remote has of the release, all bytes hashed; what the cache lacks is fetched."""
    listings, tree = Listings(repository.root), CommitTree(repository, target.commit)
    lock = read_lock(tree)
    if listings.remote and examine(lock, tree, listings).not_cached:
        with dvc_repo(repository.root, _DVC_FAILED) as repo:
            # The remote as it is now: DVC reads its configuration in the commit, where a relative path is lost.
            remote = {listings.remote: dict(repo.config["remote"][listings.remote])}
            config = {"core": {"remote": listings.remote}, "remote": remote}
            repo.fetch(revs=[target.commit], workspace=False, config=config)
        listings = Listings(repository.root)
    kept = examine(lock, tree, listings, deep=True)
    yield from (f"{target.name}: {sentence}" for sentence in kept.broken())
    if rest := kept.not_in_cache():
        yield (
            f"{target.name}: DVC's cache does not hold {names(rest)}; run `dvc fetch`, or `dvc push` where the release "
            "was made"
        )


def _sources(then: Tree, now: Tree) -> Iterator[tuple[str, str, str, str]]:
    """The data and the code that no stage makes, where they differ."""
    read = []
    for tree in (then, now):
        lock = read_lock(tree)
        deps = [dep for stage in lock.stages.values() for dep in stage.deps if not lock.makers(dep.path)]
        read.append({dep.path: dep for dep in deps})
    for path in dict.fromkeys([*read[0], *read[1]]):
        one, other = (some.get(path) for some in read)
        if one is None or other is None or one.md5 != other.md5:
            code = is_code(path)
            shown = ["" if code or dep is None else f"{dep.files or 1} files, {dep.size} bytes" for dep in (one, other)]
            yield path, shown[0], shown[1], "code differs" if code else "data"


def _told(rows: list[tuple[str, str, str, str]]) -> Iterator[str]:
    if not rows:
        yield "  no data, code, parameter, gate or main metric differs"
    wide = [max(len(row[column]) for row in rows) for column in range(3)] if rows else []
    for what, then, now, reading in rows:
        yield f"  {what.ljust(wide[0])}  {then.ljust(wide[1])}  {now.ljust(wide[2])}  {reading}".rstrip()
