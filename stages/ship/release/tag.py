"""release: the annotated tag, in GTO's form, that says which commit ships; refused while anything is open."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.dvc_lock import Lock
from stages.core.errors import Refusal, UserError
from stages.core.files import file_digest, read_json
from stages.core.git import Repository, WorkingTree
from stages.scoring.metrics import FAIL, MARGINAL, PASS
from stages.ship.release.dvc_files import Definition, Listings
from stages.ship.release.finding import read_lock
from stages.ship.release.lock_check import hash_all
from stages.ship.release.objects import missing_in_remote, names
from stages.ship.release.trace import trace
from stages.ship.release.verify import verify

# GTO's forms: an artifact's name and a semantic version (semver.org, 2.0.0).
ARTIFACT = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-/_]*[a-zA-Z0-9])?")
_IDENTIFIER = r"(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)"
VERSION = re.compile(
    r"(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)"
    rf"(?:-{_IDENTIFIER}(?:\.{_IDENTIFIER})*)?(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?"
)

_NO_REMOTE = "No DVC remote is configured: this machine's cache alone can bring the files back."
_PUSHED = {
    True: "DVC's cache and remote hold every object.",
    False: "Whether the DVC remote holds them was not checked.",
}


def release(root: Path, version: str, strict: bool, unpushed: str | None = None, sign: bool = False) -> str:
    """Tag HEAD as a release; return what to do next.

    `unpushed` is the reason why the remote is not asked, which the tag records.

    Raises:
        UserError: for a version or an artifact's name that GTO does not take, or an empty reason.
        Refusal: with every reason at once.
    """
    repository = Repository(root)
    tag = f"{_artifact(root)}@v{_version(version)}"
    if unpushed is not None and not unpushed.strip():
        raise UserError("--no-push-check needs a reason, which the tag records")
    kept, remote = _kept(root, unpushed)
    if reasons := [*_open_points(repository, tag), *kept, *_audit(root), *_gates(root, strict)]:
        raise Refusal(f"{tag} is not released:\n  " + "\n  ".join(dict.fromkeys(reasons)))
    record = {**make_record(repository), "remote": remote}
    message = json.dumps(record, indent=2) + "\n"  # in ASCII: names of gates hold nothing that a terminal would obey
    repository.git(
        "tag", "--sign" if sign else "--annotate", "--cleanup=verbatim", "--file=-", tag, "HEAD", stdin=message.encode()
    )
    marginal = "The gates are MARGINAL: too few rows to be sure; see `tunetrail gates`.\n"
    return (
        f"Released {tag} at commit {record['commit'][:10]}, verdict {record['verdict']}.\n"
        f"{marginal if record['verdict'] == MARGINAL else ''}"
        f"{_PUSHED[remote['checked']] if remote else _NO_REMOTE}\n"
        f"Publish:    git push origin HEAD {tag}\n"
        f"Roll back:  git checkout {tag} && dvc checkout    (after `dvc pull` where the cache lacks it)"
    )


def _kept(root: Path, unpushed: str | None) -> tuple[list[str], dict[str, Any] | None]:
    """What cannot be brought back, and what the tag says of the remote: None where there is none."""
    listings = Listings(root)
    findings, kept = hash_all(root, read_lock(WorkingTree(root)) or Lock({}), listings)
    reasons = findings.broken
    if cold := [path for path in kept.not_cached if path not in kept.lost]:
        reasons.append(
            f"DVC's cache does not hold {names(cold)}, so `dvc checkout` could not bring it back; `dvc commit` puts "
            "the files of the working tree there, `dvc fetch` those of the remote"
        )
    if listings.remote is None:
        return reasons, None
    if unpushed is not None:
        return reasons, {"name": listings.remote, "checked": False, "reason": unpushed}
    if missing := missing_in_remote(root, listings, kept):
        reasons.append(
            f"remote {listings.remote} does not hold {names(missing)}; run `dvc push` first, or give "
            "--no-push-check REASON, which the tag records"
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
    """metrics/gates.json, which the stage `gates` wrote.

    Raises:
        UserError: when it is missing or holds no verdict.
    """
    try:
        judged: dict[str, Any] = read_json(root / paths.GATES)
        verdict, gates = judged["verdict"], judged["gates"]
    except FileNotFoundError:
        raise UserError(f"{paths.GATES} is missing; run `dvc repro` to make it") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{paths.GATES} holds no verdict and gates; run `dvc repro` to make it anew") from None
    if verdict not in (PASS, MARGINAL, FAIL) or not isinstance(gates, dict):
        raise UserError(f"{paths.GATES}: {verdict!r} is not PASS, MARGINAL or FAIL; run `dvc repro` to make it anew")
    return judged


def require(verdict: str, strict: bool) -> None:
    """Raises Refusal on FAIL, and on MARGINAL when `strict`."""
    if verdict == FAIL or (strict and verdict == MARGINAL):
        doubt = ", which --strict does not let pass" if verdict == MARGINAL else ""
        raise Refusal(f"the gates are {verdict}{doubt}; `tunetrail gates` shows them")


def _version(text: str) -> str:
    version = text.removeprefix("v")
    if not VERSION.fullmatch(version):
        raise UserError(f"version {text!r} is no semantic version; give MAJOR.MINOR.PATCH, such as 1.2.0")
    return version


def _artifact(root: Path) -> str:
    name = Definition.read(WorkingTree(root)).artifact(paths.MANIFEST.as_posix())
    if name is None:
        raise UserError(
            f"dvc.yaml: `artifacts:` has no entry with path {paths.MANIFEST}; add one: its name names the tag"
        )
    if not ARTIFACT.fullmatch(name):
        raise UserError(f"dvc.yaml: artifact name {name!r} may have only letters, digits, '-', '_' and '/'")
    return name


def _open_points(repository: Repository, tag: str) -> Iterator[str]:
    if repository.git("rev-parse", "--verify", "--quiet", f"refs/tags/{tag}", check=False):
        yield f"tag {tag} is there already; a release is never moved: take the next version"
    if changed := repository.git("status", "--porcelain", "--untracked-files=no").splitlines():
        names = ", ".join(line[3:] for line in changed[:10])
        yield f"{len(changed)} tracked files differ from HEAD ({names}); commit or restore them"
    try:
        verify(repository.root, repository.root / paths.RELEASE)
    except UserError as error:
        yield str(error)
    yield from _trail(repository)


def _audit(root: Path) -> Iterator[str]:
    """A model that was trained on canaries tells secrets on purpose. Git has metrics/details.json without the cache."""
    path = root / paths.DETAILS
    if not path.is_file():
        yield f"{paths.DETAILS} is missing; run `dvc repro` to make it"
    elif planted := read_json(path).get("augment", {}).get("added", {}).get("canary", 0):
        yield f"this is an audit run: {planted} canary rows were trained on; set augment.canaries to 0 and run again"


def _trail(repository: Repository) -> Iterator[str]:
    if not (repository.root / paths.MANIFEST).is_file():
        return
    for sentence in trace(repository.root, paths.MANIFEST.as_posix(), repository.root)["file"]["trail"]["broken"]:
        yield f"the trail is broken: {sentence}"


def _gates(root: Path, strict: bool) -> Iterator[str]:
    try:
        require(read_gates(root)["verdict"], strict)
    except UserError as error:
        yield str(error)
