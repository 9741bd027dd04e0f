"""release: the annotated tag, in GTO's form, that says which commit ships; refused while anything is open."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import Refusal, UserError, names
from stages.core.files import file_digest, read_json
from stages.core.git import Repository, WorkingTree
from stages.scoring.metrics import FAIL, MARGINAL, PASS
from stages.ship.release.dvc_files import Listings, read_lock
from stages.ship.release.finding import record_fault
from stages.ship.release.lock_check import hash_all, lock_check
from stages.ship.release.objects import missing_in_remote, writable_by_all
from stages.ship.release.registry import Registry, artifact_name, parse_stage, parse_version, write_tag
from stages.ship.release.trace import trace
from stages.ship.release.verify import verify

_NO_REMOTE = "No DVC remote is configured: this machine's cache alone can bring the files back."
_WRITERS = "Who else may write to the DVC remote, only its own settings tell: docs/access.md."
_PUSHED = {
    True: "DVC's cache and remote hold every object.",
    False: "Whether the DVC remote holds them was not checked.",
}


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
    registry = Registry(repository, artifact_name(tree))
    tag = f"{registry.artifact}@{parse_version(version)}"
    stage = stage and parse_stage(stage)
    there = next((one for one in registry.tags if one.name == tag), None)
    kept, remote = _kept(root, unpushed)
    marginal = accepted or (there.record.get("accepted_marginal") if there else None)
    gates = _refused(lambda: require(read_gates(root)["verdict"], strict=not marginal))
    if reasons := [*_open_points(registry, tag, key), *kept, *_audit(root), *gates]:
        raise Refusal(f"{tag} is not released:\n  " + "\n  ".join(dict.fromkeys(reasons)))
    record = {**make_record(repository), "remote": remote}
    if record["verdict"] == MARGINAL:
        record["accepted_marginal"] = marginal
    if key:
        record["signature_sha256"] = file_digest(root / paths.SIGNATURE)
    if there is None:
        write_tag(repository, tag, "HEAD", record, sign)
        registry = Registry(repository, registry.artifact)
    released = registry.versions[record["commit"]]
    assigned = registry.assign(stage, released, {}, sign) if stage else None
    before = f" (before: {assigned.record.get('before') or 'none'})" if assigned else ""
    stands = f"{tag} is released already, by {released.who!r}" if there else f"Released {tag}"
    lines = [
        f"{stands} at commit {record['commit'][:10]}, verdict {record['verdict']}.",
        f"Stage {stage} has it{before}." if stage else "",
        f"The gates are MARGINAL, accepted because: {marginal}" if record["verdict"] == MARGINAL else "",
        _PUSHED[remote["checked"]] if remote else _NO_REMOTE,
        _WRITERS if remote and Listings(root).remote_folder is None else "",
        f"Publish:    git push --atomic origin HEAD {shlex.join([tag, *([assigned.name] if assigned else [])])}",
        f"Roll back:  git checkout {tag} && dvc checkout    (after `dvc pull` where the cache lacks it)",
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
    other = registry.versions.get(head)
    if other and other.name != tag:
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
    """A sentence when tracked files differ from HEAD."""
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
