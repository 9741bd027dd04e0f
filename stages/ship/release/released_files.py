"""A release's files: found by version or path, verified, and refused for what speaks against them; and published.

`publish` brings them to a model hub, byte for byte those that were judged, and reads them back from there.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.core.files import atomic, file_digest, read_json
from stages.core.git import CommitTree, Repository, WorkingTree
from stages.core.yaml_reader import load_yaml
from stages.params.task import Task
from stages.scoring.metrics import FAIL
from stages.ship.release.dvc_files import in_words
from stages.ship.release.finding import read_record, record_fault, tagged_locks
from stages.ship.release.registry import artifact_name, parse_version
from stages.ship.release.verify import changes, verify

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

_HUB = re.compile(r"hub:([\w.-]+/[\w.-]+)", re.ASCII)


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
    elif repository.tag_commit(f"{tag}!"):
        yield f"{tag} was withdrawn"
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
                repository.contents(CommitTree(repository, commit).blobs.values())  # DVC waits for what is not fetched
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
                    f"the files of {tag} cannot be had: {in_words(error)}; `dvc fetch --all-tags` may bring them"
                ) from error
    return target


def publish(folder: Path, adapter: Path, release: str, target: str, forms: Sequence[str], public: bool) -> str:
    """Upload a verified release `folder` in one commit, tag it with the release's id, and read it back.

    `forms` are formats of the release, and "adapter" for the files of `adapter`; none for all formats. What else the
    hub's repository held leaves it. A repository that this makes is private unless it is to be `public`. The library
    takes the token from HF_TOKEN or its own login. Run again after a break: files that arrived are not sent anew.
    Raises UserError for a target or a format that cannot be; when the hub refuses or cannot be reached; Refusal when
    the adapter is not the release's, or the hub has other bytes afterwards.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi  # late: serving does without

    found = _HUB.fullmatch(target)
    if not found:
        raise UserError(f"{target}: expected hub:OWNER/NAME")
    files = _chosen(folder, adapter, forms)
    api, name = HfApi(), found[1]
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        before = _files(api, name, None).keys()
        operations: list[Any] = [CommitOperationAdd(path, file) for path, file in files.items()]
        operations += [CommitOperationDelete(path) for path in sorted(before - files.keys())]
        commit = api.create_commit(name, operations, commit_message=release).oid
        there = _files(api, name, commit)
        wrong = _differences(files, there)
        if not wrong:
            _tag(api, name, release.rpartition("@")[2], commit)
    except Exception as error:  # the library's own, and those of the way to the hub
        said = in_words(error)
        raise UserError(
            f"hub:{name} did not take {release}: {said}; with a token that may write, run it again"
        ) from error
    if wrong:
        raise Refusal(f"hub:{name} is not what was sent; publish it again:\n  " + "\n  ".join(wrong))
    return f"{release} is hub:{name} at {commit[:10]}: {len(files)} files, read back"


def _tag(api: "HfApi", name: str, tag: str, commit: str) -> None:
    """Let the tag name the commit, also where other formats of the version were published before."""
    at = {one.name: one.target_commit for one in api.list_repo_refs(name).tags}
    if at.get(tag, commit) != commit:
        api.delete_tag(name, tag=tag)
    api.create_tag(name, tag=tag, revision=commit, exist_ok=True)


def _files(api: "HfApi", name: str, revision: str | None) -> dict[str, "RepoFile"]:
    from huggingface_hub.hf_api import RepoFile

    found = api.list_repo_tree(name, recursive=True, revision=revision)
    return {one.path: one for one in found if isinstance(one, RepoFile) and one.path != ".gitattributes"}


def _chosen(folder: Path, adapter: Path, forms: Sequence[str]) -> dict[str, Path]:
    """Path on the hub: file here. The documents always go; verify then names the formats that were left out."""
    manifest = read_json(folder / paths.MANIFEST.name)
    known = manifest["formats"].keys()
    if unknown := sorted(set(forms) - known - {paths.ADAPTER.name}):
        raise UserError(f"--format {unknown[0]}: the release has {', '.join(known)} and {paths.ADAPTER.name}")
    left_out = {name for name in known if forms and name not in forms}
    names = [name for name in manifest["files"] if name.partition("/")[0] not in left_out]
    chosen = {name: folder / name for name in [*names, paths.MANIFEST.name]}
    if paths.ADAPTER.name in forms:
        there = {path.as_posix(): adapter / path.relative_to(paths.ADAPTER) for path in map(Path, manifest["adapter"])}
        expected = {path: row["sha256"] for path, row in manifest["adapter"].items()}
        found = {path: file_digest(file) for path, file in there.items() if file.is_file()}
        if wrong := list(changes(expected, found, "the release")):
            raise Refusal(
                f"{adapter} is not the release's:\n  " + "\n  ".join(wrong) + "\n`dvc checkout` brings it back"
            )
        chosen |= {f"{paths.ADAPTER.name}/{file.relative_to(adapter)}": file for file in there.values()}
    return chosen


def _differences(files: Mapping[str, Path], there: Mapping[str, "RepoFile"]) -> list[str]:
    """Sentences; of a large file the hub knows the SHA-256, of a small one git's hash."""
    found = {path: one.lfs.sha256 if one.lfs else one.blob_id for path, one in there.items()}
    large = {path for path, one in there.items() if one.lfs}
    expected = {path: file_digest(file) if path in large else _blob_id(file) for path, file in files.items()}
    return list(changes(expected, found, "the release"))


def _blob_id(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
