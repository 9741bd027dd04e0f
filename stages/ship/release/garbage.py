"""gc --dry: which objects of DVC's cache or remote nothing here needs; it removes nothing.

All that git keeps of DVC's files counts, every working tree, ref, stash and queued experiment, of which `dvc gc` looks
at some tips alone.
"""

import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.core.dvc_lock import Entry, parse_lock, tracked_outputs
from stages.core.errors import Refusal, UserError, names
from stages.core.git import LOCK, CommitTree, Repository, dvc_folder
from stages.core.yaml_reader import load_written_yaml
from stages.ship.release.dvc_files import Definition, Listings, dvc_repo
from stages.ship.release.objects import OBJECT

_DVCS = re.compile(r"(.*/)?(dvc\.lock|dvc\.yaml|[^/]*\.dvc)")  # the files that DVC reads
_HEADS = ("HEAD", "MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "REBASE_HEAD")  # a merge needs both sides
# What it put aside for its end, changed and staged, and the commits that it has yet to replay.
_ASIDE = ("MERGE_AUTOSTASH", "rebase-merge/autostash", "rebase-apply/autostash", "rebase-merge/orig-head")
_LOGGED = re.compile(r"refs/stash|refs/exps/.*(stash|failed)")  # refs whose log is a list: stashes, DVC's queue
_SCOPES = (["all_branches", "all_tags", "all_experiments"], ["all_commits", "all_experiments"])


def garbage(root: Path, remote: str | None) -> str:
    """The objects that could go with their sizes, the total, and the `dvc gc` that removes no others, if there is one.

    Raises UserError when a file of DVC's is unreadable, or DVC cannot list the remote; Refusal when a folder's listing
    is nowhere, so that nobody knows which objects are needed.
    """
    import pandas as pd
    from jinja2.filters import do_filesizeformat

    if lacks := Repository(root).lacks():  # DVC's reader of git would wait for ever for what a partial clone lacks
        raise Refusal(f"any object may be needed: {lacks}")
    root = dvc_folder(root).parent  # other projects in it have the same cache
    with dvc_repo(root, "DVC cannot be asked") as repo:
        stored, said = {"DVC's cache": cached(Path(repo.cache.local_cache_dir))}, []
        if remote and not (odb := repo.cloud.get_remote_odb(remote)).fs.CAN_TRAVERSE:
            raise UserError(f"remote {remote} cannot be listed: {odb.fs.protocol} has no listings")
        if remote:
            stored[f"remote {remote}"] = {md5: odb.fs.size(odb.oid_to_path(md5)) for md5 in odb.all()}
        needs = needed(root, repo)
        for place, objects in stored.items():
            gone = pd.Series(objects, dtype=int).drop(objects.keys() & needs.keys()).sort_values(ascending=False)
            total = f"{place}: {len(gone)} of {len(objects)} objects could go, {do_filesizeformat(int(gone.sum()))}."
            said += [*(f"{do_filesizeformat(size):>12}  {md5}" for md5, size in gone.items()), total]
        cloud = f" --cloud --remote {remote}" if remote else ""
        said += _commands(repo, cloud, set().union(*stored.values()), needs)
    said.append(
        "Not known here: other repositories that share cache or remote, and what was not pushed to git or not fetched."
    )
    return "\n".join(said)


def _commands(repo: Any, cloud: str, stored: set[str], needs: Mapping[str, str]) -> Iterator[str]:
    """The first `dvc gc` that removes none of what is needed; what each other one removes of that."""
    for scope in _SCOPES:
        command = f"dvc gc --workspace --{' --'.join(scope).replace('_', '-')}{cloud}"
        found = repo.used_objs(skip_failed=True, **dict.fromkeys(scope, True))
        used = {one.value for some in found.values() for one in some}
        if harm := [needs[md5] for md5 in stored - used if md5 in needs]:
            yield f"Do not run `{command}`: it removes {names(sorted(harm))}."
        elif gone := stored - used:
            yield f"`{command}` removes {len(gone)} of these objects and no other."
            return


def needed(root: Path, repo: Any) -> dict[str, str]:
    """MD5 of every object that something needs, to one that does, in words; the objects of folders are among them."""
    listings, found, seen = Listings(root), dict[str, str](), set()
    for label, files in states(root):
        for path, text in files.items():
            definition = files.get(posixpath.join(posixpath.dirname(path), "dvc.yaml"), b"")
            if path.endswith("dvc.yaml") or (path, text, definition) in seen:
                continue
            seen.add((path, text, definition))
            try:
                for one in _outputs(path, text, definition, listings):
                    found.setdefault(str(one.md5), f"{one.path} of {label}")
            except ValueError as error:
                raise UserError(f"{path} of {label} is unreadable ({error}), so what it needs is not known") from None
    folders = {md5: words for md5, words in found.items() if md5.endswith(".dir")}
    if listings.remote and (unknown := [md5 for md5 in folders if listings.get(md5) is None]):
        remote = repo.cloud.get_remote_odb(listings.remote)
        for md5 in remote.oids_exist(unknown):
            rows = json.loads(remote.fs.cat_file(remote.oid_to_path(md5)))
            listings.add({row["relpath"]: row["md5"] for row in rows})
    if lost := [words for md5, words in folders.items() if listings.get(md5) is None]:
        raise Refusal(
            f"neither DVC's cache nor a remote says which files are in {names(lost)}, so any object may be needed; "
            "fetch it where another machine has it, or delete the ref that needs it"
        )
    return {md5: words for folder, words in folders.items() for md5 in (listings.get(folder) or {}).values()} | found


def states(root: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """DVC's files in each working tree, in its index, and in the commit of every ref, stash and queued experiment."""
    repository, commits = Repository(root), dict[str | None, str]()
    for place, label in _worktrees(repository):
        tree = Repository(place)
        yield f"the working tree{label}", _on_disk(place)
        staged = (row.split("\t", 1) for row in tree.git("ls-files", "--stage", "-z").split("\0") if row)
        yield f"git's index{label}", _contents(tree, {path: meta.split()[1] for meta, path in staged})
        commits |= {tree.resolve(head): head + label for head in (*_HEADS, *_ASIDE, *(f"{one}^2" for one in _ASIDE))}
    for ref in repository.git("for-each-ref", "--format=%(refname)").splitlines():
        commits[repository.resolve(ref)] = ref
        if _LOGGED.fullmatch(ref) and (logged := repository.git("reflog", "show", "--format=%H", ref).split()):
            # The parents, too: what was staged or not yet tracked lies in commits of its own.
            commits |= dict.fromkeys(repository.git("rev-list", "--no-walk", "--parents", *logged).split(), ref)
    for commit, ref in commits.items():
        if commit:
            yield ref, _contents(repository, CommitTree(repository, commit).blobs)


def _worktrees(repository: Repository) -> Iterator[tuple[Path, str]]:
    """The folder of dvc.yaml here and in each other working tree of `git worktree`, with its name in words."""
    yield repository.root, ""
    below, top = repository.git("rev-parse", "--show-prefix"), repository.git("rev-parse", "--show-toplevel")
    for entry in repository.git("worktree", "list", "--porcelain").split("\n\n"):
        first, *about = entry.splitlines()
        path = Path(first.removeprefix("worktree "))
        if not path.is_dir():
            raise Refusal(
                f"working tree {path} is not there, so any object may be needed; `git worktree repair` where it has "
                "moved to, or `git worktree prune` if it is gone (unlock it first if it is locked)"
            )
        if (path / below).is_dir() and path != Path(top) and "bare" not in about:
            yield path / below, f" {path}"


def _contents(repository: Repository, blobs: Mapping[str, str]) -> dict[str, bytes]:
    wanted = {path: blob for path, blob in blobs.items() if _DVCS.fullmatch(path)}
    contents = zip(wanted, repository.contents(wanted.values()), strict=True)
    found = {path: content for path, content in contents if content is not None}
    if lacking := wanted.keys() - found.keys():
        raise UserError(f"git lacks {names(sorted(lacking))}, as a partial clone does; clone the whole")
    return found


def _on_disk(root: Path) -> dict[str, bytes]:
    """With the copies in which experiments run, below .dvc/tmp."""
    found = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name != ".git" and (Path(folder).name, name) != (".dvc", "cache")]
        found += [Path(folder, name) for name in files if _DVCS.fullmatch(name)]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found if path.is_file()}


def _outputs(path: str, text: bytes, definition: bytes, listings: Listings) -> Iterator[Entry]:
    """What DVC's cache holds for a dvc.lock or .dvc file, and what its run cache knows of the same stages."""
    if path.endswith(".dvc"):
        yield from (entry for entry in tracked_outputs(text, path) if entry.md5)
        return
    from dvc.utils import dict_sha256

    in_git = Definition(load_written_yaml(definition) or {}).in_git
    for stage in parse_lock(text).stages.values():
        # The run cache's name of a stage with its inputs, as `dvc.stage.cache` makes it. Runs that gave other bytes lie
        # side by side, and `dvc repro` takes the newest.
        key = dict_sha256({**stage.raw, "outs": [out.path for out in stage.outs]}, exclude=["size", "nfiles"])
        runs = (listings.cache / "runs" / key[:2] / key).glob("*")
        entries = [*stage.outs, *(out for run in runs for out in tracked_outputs(run.read_bytes(), LOCK))]
        yield from (entry for entry in entries if entry.md5 and entry.path not in in_git)


def cached(cache: Path) -> dict[str, int]:
    """All objects of a cache. DVC 3 keeps the listings of folders of code where DVC 2 kept everything."""
    files = [file for below in ("files/md5", ".") for file in (cache / below).glob("[0-9a-f][0-9a-f]/*")]
    return {file.parent.name + file.name: file.stat().st_size for file in files if OBJECT.fullmatch(file.name)}
