"""A release to be served: found by its version or its path, verified, and refused for what speaks against it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.core.files import atomic, file_digest
from stages.core.git import Repository, WorkingTree
from stages.core.yaml_reader import load_yaml
from stages.params.task import Task
from stages.scoring.metrics import FAIL
from stages.ship.release.finding import read_record, record_fault, tagged_locks
from stages.ship.release.registry import artifact_name, parse_version
from stages.ship.release.verify import verify


class Found(NamedTuple):
    """A release's id (its tag, else the start of its manifest's hash), its folder, and the repository's files of it."""

    id: str
    folder: Path
    tree: Path


def find_release(root: Path, start: Path, key: Path | None, unreleased: str | None, name: str) -> Found:
    """The release that a version or a path from `start` names, after `verify`; a version is brought out of DVC.

    `unreleased` is the reason why one is taken that is not released, not signed by `key` or failed its gates; that its
    files are what its manifest says is never waived. Raises UserError when there is none of that name, or the reason is
    empty; Refusal with everything that speaks against it.
    """
    version, folder = "", Path(os.path.normpath(start / name))
    with suppress(UserError):  # then it is a path
        version = parse_version(name)
    if not version and folder.parts[-2:] == paths.RELEASE.parts and (folder.parents[1] / paths.PIPELINE).is_file():
        root = folder.parents[1]  # perhaps another project than this one: the release's tags and rows are there
    tree = _fetch(root, version) if version else root
    folder = tree / paths.RELEASE if version else folder
    # A fetched folder is no output of dvc.lock as it is; below, its tag speaks for its manifest.
    print(verify(None if version else root, folder, key, tree / paths.SIGNATURE if key else None), flush=True)
    digest = file_digest(folder / paths.MANIFEST.name)
    repository = Repository(root)
    records = {tag: read_record(repository, tag) for tag, *_ in tagged_locks(repository)}
    tags = [tag for tag, record in records.items() if record.get("manifest_sha256") == digest]
    tag = max(tags, key=lambda tag: tag.endswith(f"@{version}"), default="")
    if reasons := list(_against(repository, tag, key)):
        if unreleased is None:
            raise Refusal(
                f"{name} is not served:\n  " + "\n  ".join(reasons) + '\n--unreleased "WHY" serves it nevertheless'
            )
        if not unreleased.strip():
            raise UserError("--unreleased needs a reason")
        print(f"served nevertheless ({unreleased}): {'; '.join(reasons)}", flush=True)
    return Found(tag or f"sha256-{digest[:12]}", folder, tree)


def _against(repository: Repository, tag: str, key: Path | None) -> Iterator[str]:
    if not tag:
        yield "no release tag records its manifest; `tunetrail release VERSION` sets one"
    elif fault := record_fault(repository, tag, repository.tag_commit(tag) or ""):
        yield fault
    elif read_record(repository, tag).get("verdict") == FAIL:
        yield f"{tag} failed its gates"
    if not key:
        yield "its signature was not checked; give --key PUBLIC.pem, and `tunetrail sign --key KEY` makes one"


def _fetch(root: Path, version: str) -> Path:
    """A folder of a released version's files, laid out as in the repository: models/release and what its answers need.

    Raises UserError when it is not released, or neither DVC's cache nor its remote has the files.
    """
    repository = Repository(root)
    tag = f"{artifact_name(WorkingTree(root))}@{version}"
    commit, target = repository.tag_commit(tag), root / paths.RELEASES / version
    if commit is None:
        raise UserError(f"there is no tag {tag}: `git fetch --tags` brings those of others, `gto show` lists them")
    if not target.exists():
        from dvc.api import DVCFileSystem

        with atomic(target) as partial:
            try:
                files = DVCFileSystem(str(root), rev=commit)
                task = load_yaml(files.read_bytes(str(paths.PARAMS))).get("task") or {}
                schema = task.get("schema_file", Task.model_fields["schema_file"].default)
                wanted = [
                    paths.RELEASE,
                    paths.ADAPTER,
                    paths.ARTEFACT_GENERATIONS,
                    paths.HOLDOUT,
                    paths.SIGNATURE,
                    schema,
                ]
                for path in map(str, wanted):
                    if files.exists(path):
                        (partial / path).parent.mkdir(parents=True, exist_ok=True)
                        files.get(path, str(partial / path), recursive=files.isdir(path))
            except Exception as error:  # DVC's own, and those of its remote
                raise UserError(
                    f"the files of {tag} cannot be had: {error}; `dvc fetch --all-tags` may bring them"
                ) from error
    return target
