"""What DVC keeps of a trail: does its cache, or its remote, hold every object, and has it the bytes it is named by?

An object is named by the MD5 of its bytes. DVC trusts that name; here the bytes are asked.
"""

import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.core.dvc_lock import Entry, Lock, Stage, entry_hash, object_path, parse_lock
from stages.core.errors import UserError
from stages.core.files import file_digest
from stages.core.git import CommitTree, Repository, Tree, WorkingTree
from stages.core.progress import track
from stages.ship.release.checks import added, is_outside
from stages.ship.release.dvc_files import Definition, Listings
from stages.ship.release.finding import tagged_locks

_EMPTY = "d41d8cd98f00b204e9800998ecf8427e"
_NAMES_SHOWN = 5

RIGHT, ABSENT, DAMAGED = "right", "absent", "damaged"


@dataclass
class Kept:
    """Where the objects of a trail are, as the paths in the working tree that they belong to."""

    objects: dict[str, str] = field(default_factory=dict)  # path to MD5; a folder's listing has the folder's path
    damaged: list[str] = field(default_factory=list)  # in the cache, with other bytes
    not_cached: list[str] = field(default_factory=list)
    only_here: list[str] = field(default_factory=list)  # of those, the ones that the working tree alone holds
    not_asked: list[str] = field(default_factory=list)  # of those, the ones that a remote beyond a network may hold
    lost: list[str] = field(default_factory=list)  # of those, the ones that are nowhere

    def broken(self, listings: Listings) -> Iterator[str]:
        remote = f"remote {listings.remote}" if listings.remote else "a remote (none is configured)"
        if self.lost:
            yield (
                f"{len(self.lost)} of {len(self.objects)} objects can no longer be brought back: neither DVC's cache "
                f"nor {remote} holds {names(self.lost)}"
            )
        if self.damaged:
            yield (
                f"DVC's cache holds other bytes than it says for {names(self.damaged)}; `tunetrail doctor` brings the "
                "right ones from the remote"
            )

    def notes(self, listings: Listings) -> Iterator[str]:
        if self.only_here:
            yield f"only the working tree holds {names(self.only_here)}; `dvc commit` puts it into DVC's cache"
        if self.not_asked:
            yield (
                f"{len(self.not_asked)} of {len(self.objects)} objects are not in DVC's cache; whether remote "
                f"{listings.remote} holds them was not asked: `dvc fetch` brings them"
            )


def trail_entries(lock: Lock, stages: Iterable[Stage], tree: Tree) -> list[Entry]:
    """What DVC, not git, keeps of these stages: their outputs, and the data of `dvc add` that they read."""
    in_git = set(Definition.read(tree).in_git)
    found: dict[Entry, None] = {}
    for stage in stages:
        found |= dict.fromkeys(out for out in stage.outs if out.md5 and out.path not in in_git)
        found |= dict.fromkeys(
            one for dep in stage.deps if not lock.makers(dep.path) and (one := added(tree, dep)) is not None
        )
    return [entry for entry in found if not is_outside(entry.path)]


def examine(entries: list[Entry], listings: Listings, root: Path, deep: bool = False) -> Kept:
    """Look for every object in the cache, in a remote that is a folder, and in its place in the working tree.

    With `deep` all bytes are hashed; else names, sizes and the listings of folders are compared.
    """
    kept, tree = Kept(), WorkingTree(root)
    for entry in track(entries, len(entries), "hashing DVC's objects") if deep else entries:
        here: dict[str, str] | None = None
        bytes_found = 0
        for path, md5 in objects(entry, listings):
            kept.objects[path] = md5
            file = listings.cached_file(md5)
            state = object_state(file, md5, deep)
            if state == DAMAGED:
                kept.damaged.append(path)
            if state == RIGHT:
                bytes_found += 0 if md5.endswith(".dir") else file.stat().st_size
                continue
            bytes_found = -1 << 60  # not all sizes are known
            if state == ABSENT:
                kept.not_cached.append(path)
            if listings.remote_folder and object_state(object_path(listings.remote_folder, md5), md5, deep) == RIGHT:
                continue
            here = tree.md5s(entry.path) if here is None else here
            if md5 == (entry_hash(here) if path == entry.path else here.get(path[len(entry.path) + 1 :])):
                kept.only_here.append(path)
            elif listings.remote and listings.remote_folder is None:
                kept.not_asked.append(path)
            else:
                kept.lost.append(path)
        if entry.size is not None and bytes_found >= 0 and bytes_found != entry.size:
            kept.damaged.append(entry.path)
    return kept


def objects(entry: Entry, listings: Listings) -> Iterator[tuple[str, str]]:
    """Path and MD5 of the objects of an output: the file, or the folder's listing and each of its files."""
    if entry.md5:
        yield entry.path, entry.md5
        files = listings.get(entry.md5) if entry.is_folder else None
        yield from ((f"{entry.path}/{name}", md5) for name, md5 in (files or {}).items())


def object_state(file: Path, md5: str, deep: bool) -> str:
    """Whether a file is the object of this name. Listings are always hashed: all that a folder holds hangs on them."""
    try:
        found = file.stat()
    except OSError:
        return ABSENT
    if not stat.S_ISREG(found.st_mode):
        return DAMAGED
    try:
        if deep or md5.endswith(".dir"):
            return RIGHT if file_digest(file, "md5") == md5.removesuffix(".dir") else DAMAGED
    except OSError:  # no right to read it, or a broken disk
        return DAMAGED
    return RIGHT if (found.st_size == 0) == (md5 == _EMPTY) else DAMAGED


def missing_in_remote(root: Path, listings: Listings, kept: Kept) -> list[str]:
    """The paths whose objects the default remote does not hold; asks the network where the remote is no folder.

    The bytes of a folder's objects are hashed; of those beyond a network DVC tells the names and sizes.

    Raises:
        UserError: when the remote does not answer.
    """
    if listings.remote_folder:
        store = listings.remote_folder
        return [p for p, md5 in kept.objects.items() if object_state(object_path(store, md5), md5, True) != RIGHT]
    with open_remote(root, listings) as remote:
        present = set(remote.oids_exist(set(kept.objects.values())))
        sizes = {md5: remote.fs.size(remote.oid_to_path(md5)) for md5 in present}

    def whole(md5: str) -> bool:
        cached = listings.cached_file(md5)
        return md5 in present and (not cached.is_file() or cached.stat().st_size == sizes[md5])

    return [path for path, md5 in kept.objects.items() if not whole(md5)]


@contextmanager
def open_remote(root: Path, listings: Listings) -> Iterator[Any]:
    """DVC's own access to the default remote. Raises UserError for every error of the block."""
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            yield repo.cloud.get_remote_odb(listings.remote)
    except Exception as error:  # each kind of remote has errors of its own
        raise UserError(f"remote {listings.remote} does not answer: {error}") from error


def lost_releases(repository: Repository, listings: Listings) -> Iterator[str]:
    """A sentence for each tag whose release DVC's cache and remote can no longer bring back."""
    for tag, commit, text in tagged_locks(repository):
        try:
            lock = parse_lock(text)
        except ValueError:
            continue
        kept = examine(
            trail_entries(lock, lock.stages.values(), CommitTree(repository, commit)), listings, repository.root
        )
        yield from (f"{tag}: {sentence}" for sentence in kept.broken(listings))


def names(paths: list[str]) -> str:
    """The first few paths of a list, and how many more there are."""
    unique = list(dict.fromkeys(paths))
    more = f" and {len(unique) - _NAMES_SHOWN} more" if len(unique) > _NAMES_SHOWN else ""
    return ", ".join(unique[:_NAMES_SHOWN]) + more
