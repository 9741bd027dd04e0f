"""release: the annotated tag, in GTO's form, that says which commit ships; refused while anything is open.

rollback: a stage gets a released version back, and its files come into the working tree. All that can go wrong is
looked for before anything changes. The stage is assigned before the files are checked out, because with them comes the
code of that release, which may know no rollback. The next run completes one that was interrupted.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.dvc_lock import read_lock, tracked_outputs
from stages.core.errors import Refusal, UserError, names
from stages.core.files import file_digest, read_json
from stages.core.git import CommitTree, Repository, Tree, WorkingTree
from stages.scoring.metrics import FAIL, MARGINAL, PASS
from stages.ship.release.dvc_files import Definition, Listings, dvc_repo
from stages.ship.release.finding import record_fault
from stages.ship.release.lock_check import hash_all, lock_check
from stages.ship.release.objects import examine, missing_in_remote, writable_by_all
from stages.ship.release.registry import Registry, Tag, artifact_name, parse_stage, parse_version, write_tag
from stages.ship.release.trace import is_code, trace
from stages.ship.release.verify import verify

_NO_REMOTE = "No DVC remote is configured: this machine's cache alone can bring the files back."
_WRITERS = "Who else may write to the DVC remote, only its own settings tell: docs/access.md."
_PUSHED = {
    True: "DVC's cache and remote hold every object.",
    False: "Whether the DVC remote holds them was not checked.",
}
_DVC_FAILED = "dvc failed, mend that and run the same again"
Changes = Callable[[Tree, Tree], list[tuple[str, str, str, str]]]


def release(
    root: Path,
    version: str,
    stage: str | None = None,
    accepted: str | None = None,
    unpushed: str | None = None,
    sign: bool = False,
    key: Path | None = None,
) -> str:
    """Tag HEAD as a release and, with `stage`, assign it; return what to do next.

    A run that was interrupted is completed by the next: what stands already is checked and left as it is.

    Args:
        accepted: the reason why MARGINAL gates are accepted, which the tag records.
        unpushed: the reason why the remote is not asked, which the tag records.
        sign: whether git signs the tags, with the person's key.
        key: the public key of whom the signature of the files must be; needed where there is a signature.

    Raises UserError for a version, a stage or an artifact's name that GTO does not take, or an empty reason; Refusal
    with every reason at once, or when another run was quicker.
    """
    repository, tree = Repository(root), WorkingTree(root)
    for option, reason in (("--no-push-check", unpushed), ("--accept-marginal", accepted)):
        if reason is not None and not reason.strip():
            raise UserError(f"{option} needs a reason, which the tag records")
    registry, head = Registry(repository, artifact_name(tree)), repository.resolve("HEAD")
    tag = f"{registry.artifact}@{parse_version(version)}"
    stage = stage and parse_stage(stage)
    there = next((one for one in registry.tags if one.name == tag), None)
    kept, remote = _kept(root, unpushed)
    marginal = accepted or (there.record.get("accepted_marginal") if there else None)
    gates = _refused(lambda: require(read_gates(root)["verdict"], strict=not marginal))
    if reasons := [*_open_points(registry, tag, key), *kept, *_audit(root), *gates]:
        raise Refusal(f"{tag} is not released:\n  " + "\n  ".join(dict.fromkeys(reasons)))
    if (record := {**make_record(repository), "remote": remote})["commit"] != head:
        raise Refusal(f"{tag} is not released: somebody committed while all was checked; run again")
    if record["verdict"] == MARGINAL:
        record["accepted_marginal"] = marginal
    if key:
        record["signature_sha256"] = file_digest(root / paths.SIGNATURE)
    if there is None:
        write_tag(repository, tag, record["commit"], record, sign)
        registry = Registry(repository, registry.artifact)
    released = registry.versions[record["commit"]]
    assigned = registry.assign(stage, released, {}, sign) if stage else None
    before = f" (before: {assigned.record.get('before') or 'none'})" if assigned else ""
    stands = f"{tag} is released already, by {released.who!r}" if there else f"Released {tag}"
    branch = ["HEAD"] * bool(repository.git("symbolic-ref", "--quiet", "HEAD", check=False))  # else the tag brings all
    lines = [
        f"{stands} at commit {record['commit'][:10]}, verdict {record['verdict']}.",
        f"Stage {stage} has it{before}." if stage else "",
        f"The gates are MARGINAL, accepted because: {marginal}" if record["verdict"] == MARGINAL else "",
        _PUSHED[remote["checked"]] if remote else _NO_REMOTE,
        _WRITERS if remote and Listings(root).remote_folder is None else "",
        f"Publish:    {repository.push_command(*branch, tag, *([assigned.name] if assigned else []))}",
        f"Roll back:  git checkout {tag} && dvc checkout    (after `dvc pull` where the cache lacks it)",
        *registry.doubts(),
    ]
    return "\n".join(filter(None, lines))


def _kept(root: Path, unpushed: str | None) -> tuple[list[str], dict[str, Any] | None]:
    """What cannot be brought back, and what the tag says of the remote: None where there is none."""
    listings = Listings(root)
    findings, kept = hash_all(root, read_lock(WorkingTree(root)), listings)
    reasons = findings.broken
    if cold := kept.not_in_cache():
        reasons.append(
            f"DVC's cache does not hold {names(cold)}, so `dvc checkout` could not bring it back; `dvc commit` puts "
            "the files of the working tree there, `dvc fetch` those of the remote"
        )
    if listings.remote is None:
        return reasons, None
    reasons += writable_by_all(listings)
    if unpushed is not None:
        return reasons, {"name": listings.remote, "checked": False, "reason": unpushed}
    if missing := missing_in_remote(listings, kept):
        reasons.append(
            f"remote {listings.remote} does not hold {names(missing)}; run `dvc push` first, or give "
            "--no-push-check REASON, which the tag records; after a push that failed, `tunetrail doctor` before it"
        )
    return reasons, {"name": listings.remote, "checked": True}


def make_record(repository: Repository) -> dict[str, Any]:
    """What the tag says: the commit, the verdict, the manifest, every gate's state and value."""
    judged = read_gates(repository.root)
    gates = judged["gates"]
    return {
        "format": 1,
        "commit": repository.resolve("HEAD"),
        "verdict": judged["verdict"],
        "manifest_sha256": file_digest(repository.root / paths.MANIFEST),
        "gates": {name: gate.get("state") for name, gate in gates.items()},
        "metrics": {name: gate["value"] for name, gate in gates.items() if "value" in gate},
    }


def read_gates(root: Path) -> dict[str, Any]:
    """metrics/gates.json, which the stage `gates` wrote. Raises UserError when it is missing or holds no verdict."""
    try:
        judged: dict[str, Any] = read_json(root / paths.GATES)
        if judged["verdict"] not in (PASS, MARGINAL, FAIL) or not isinstance(judged["gates"], dict):
            raise ValueError("no verdict")
    except FileNotFoundError:
        raise UserError(f"{paths.GATES} is missing; run `dvc repro` to make it") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{paths.GATES} holds no verdict and gates; run `dvc repro` to make it anew") from None
    return judged


def require(verdict: str, strict: bool) -> None:
    """Raises Refusal on FAIL, and on MARGINAL when `strict`."""
    if verdict == FAIL:
        raise Refusal("the gates are FAIL; `tunetrail gates` shows them")
    if strict and verdict == MARGINAL:
        raise Refusal(
            "the gates are MARGINAL: too few rows to be sure; `tunetrail gates` shows them; `tunetrail release "
            "--accept-marginal REASON` accepts that and records why"
        )


def _open_points(registry: Registry, tag: str, key: Path | None) -> Iterator[str]:
    repository = registry.repository
    head, there = repository.resolve("HEAD") or "", repository.tag_commit(tag)
    if there and (there != head or registry.versions.get(head) is None):
        yield f"tag {tag} is there already; a release is never moved: take the next version"
    elif there and (fault := record_fault(repository, tag, head)):
        yield fault
    if (other := registry.versions.get(head)) and other.name != tag:
        yield f"HEAD is released as {other.version} already, and a commit has one version; commit a new run first"
    yield from uncommitted(repository)
    if (repository.root / paths.SIGNATURE).is_file():
        if not repository.git("ls-files", "--", paths.SIGNATURE.as_posix()):
            yield f"{paths.SIGNATURE} is not in git, so that the tag would not have it; commit it"
        if key is None:
            yield f"{paths.SIGNATURE} is there; give --key PUBLIC.pem, the key that it is verified with, or delete it"
    yield from _refused(lambda: verify(repository.root, repository.root / paths.RELEASE, key))
    if (repository.root / paths.MANIFEST).is_file():
        trail = trace(repository.root, paths.MANIFEST.as_posix(), repository.root)["file"]["trail"]
        yield from (f"the trail is broken: {sentence}" for sentence in trail["broken"])
    yield from _refused(lambda: lock_check(repository.root))


def _refused(check: Callable[[], object]) -> list[str]:
    """Why a check fails; nothing when it does not."""
    try:
        check()
    except UserError as error:
        return [str(error)]
    return []


def uncommitted(repository: Repository) -> Iterator[str]:
    """A sentence when tracked files differ from HEAD, or files are not there that DVC reads."""
    yield from filter(None, [repository.lacks_files()])
    if changed := repository.git("status", "--porcelain", "--untracked-files=no").splitlines():
        files = names(line[3:] for line in changed)
        yield f"{len(changed)} tracked files differ from HEAD ({files}); commit them, or `git stash` puts them aside"


def _audit(root: Path) -> Iterator[str]:
    """A model that was trained on canaries tells secrets on purpose. Git has metrics/details.json without the cache."""
    path = root / paths.DETAILS
    if not path.is_file():
        yield f"{paths.DETAILS} is missing; run `dvc repro` to make it"
    elif planted := read_json(path).get("augment", {}).get("added", {}).get("canary", 0):
        yield f"this is an audit run: {planted} canary rows were trained on; set augment.canaries to 0 and run again"


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
    before = registry.shown(live) if live else registry.versions.get(now)
    was = before.version if before else f"commit {now[:10]}"
    trees = CommitTree(repository, now), CommitTree(repository, target.commit)
    rows = [*_sources(*trees), *changes(*trees)]  # before the checkout, which brings other code
    said = []
    if stage:
        tag = registry.assign(stage, target, {"reason": reason} if reason else {})
        has, had = tag.record.get("version") or target.version, tag.record.get("before") or "none"
        said.append(f"Stage {stage} has {has} (before: {had}).")
        said.append(f"Publish:     {repository.push_command(tag.name)}")
        said += registry.doubts()
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
    found = registry.released.get(version)
    if found is None:
        known = ", ".join(map(str, registry.released)) or "none"
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
    # What dvc checkout writes is what that commit has of outputs, be they outputs here or not.
    listings, tree, there = Listings(repository.root), WorkingTree(repository.root), CommitTree(repository, commit)
    outs = [out for _, out in read_lock(there).outs() if out.path not in Definition.read(there).in_git]
    for file in (path for path in there.blobs if path.endswith(".dvc")):
        outs += tracked_outputs(there.read(file) or b"", file)
    for path in dict.fromkeys(out.path for out in outs):
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
