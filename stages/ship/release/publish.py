"""publish: a release's files to a model hub, byte for byte those that were judged, and read back from there."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.core.files import file_digest, read_json
from stages.ship.release.verify import changes

_NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)", re.ASCII)
_OF_THE_HUB = ".gitattributes"


def publish(folder: Path, adapter: Path, release: str, target: str, forms: Sequence[str], public: bool) -> str:
    """Upload a verified release `folder` in one commit, tag it with the release's id, and read it back.

    `forms` are formats of the release, and "adapter" for the files of `adapter`; none for all formats. What else the
    hub's repository held leaves it. A repository that this makes is private unless it is to be `public`. The library
    takes the token from HF_TOKEN or its own login. Run again after a break: files that arrived are not sent anew.
    Raises UserError for a target or a format that cannot be; when the hub refuses or cannot be reached; Refusal when
    the adapter is not the release's, or the hub has other bytes afterwards.
    """
    found = _NAME.fullmatch(target)
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
        said = " ".join(str(error).split())
        raise UserError(
            f"hub:{name} did not take {release}: {said}; with a token that may write, run it again"
        ) from error
    if wrong:
        raise Refusal(f"hub:{name} is not what was sent; publish it again:\n  " + "\n  ".join(wrong))
    return f"{release} is hub:{name} at {commit[:10]}: {len(files)} files, read back"


def _tag(api: HfApi, name: str, tag: str, commit: str) -> None:
    """Let the tag name the commit, also where other formats of the version were published before."""
    at = {one.name: one.target_commit for one in api.list_repo_refs(name).tags}
    if at.get(tag, commit) != commit:
        api.delete_tag(name, tag=tag)
    api.create_tag(name, tag=tag, revision=commit, exist_ok=True)


def _files(api: HfApi, name: str, revision: str | None) -> dict[str, RepoFile]:
    found = api.list_repo_tree(name, recursive=True, revision=revision)
    return {one.path: one for one in found if isinstance(one, RepoFile) and one.path != _OF_THE_HUB}


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


def _differences(files: Mapping[str, Path], there: Mapping[str, RepoFile]) -> list[str]:
    """Sentences; of a large file the hub knows the SHA-256, of a small one git's hash."""
    found = {path: one.lfs.sha256 if one.lfs else one.blob_id for path, one in there.items()}
    large = {path for path, one in there.items() if one.lfs}
    expected = {path: file_digest(file) if path in large else _blob_id(file) for path, file in files.items()}
    return list(changes(expected, found, "the release"))


def _blob_id(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
