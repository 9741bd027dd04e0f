"""What DVC keeps of a trail: does its cache, or its remote, hold every object, and has it the bytes it is named by?

An object is named by the MD5 of its bytes. DVC trusts that name; here the bytes are asked. `doctor` brings right bytes
back and deletes nothing: a damaged object moves to .tunetrail/damaged, where it is in nobody's way.
"""

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from stages.core.dvc_lock import Entry, Lock, Stage, entry_hash, object_path, parse_lock, read_lock
from stages.core.errors import names
from stages.core.files import file_digest
from stages.core.git import CommitTree, Repository, Tree, WorkingTree
from stages.core.run_notes import track
from stages.ship.release.dvc_files import Definition, Listings, added, dvc_repo, is_outside
from stages.ship.release.finding import tagged_locks

SAFE_GC = (
    "To free space: `dvc gc --workspace --all-branches --all-tags` keeps what every release needs, also with --cloud; "
    "without --all-tags it deletes what earlier releases need."
)
OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")
_EMPTY = "d41d8cd98f00b204e9800998ecf8427e"

RIGHT, ABSENT, DAMAGED = "right", "absent", "damaged"


@dataclass
class Kept:
    """Where the objects of a trail are, as the paths in the working tree that they belong to."""

    remote: str | None
    objects: dict[str, str] = field(default_factory=dict)  # path to MD5; a folder's listing has the folder's path
    damaged: list[str] = field(default_factory=list)  # in the cache, with other bytes
    not_cached: list[str] = field(default_factory=list)
    only_here: list[str] = field(default_factory=list)  # of those, the ones that the working tree alone holds
    not_asked: list[str] = field(default_factory=list)  # of those, the ones that a remote beyond a network may hold
    lost: list[str] = field(default_factory=list)  # of those, the ones that are nowhere

    def not_in_cache(self) -> list[str]:
        """What `dvc checkout` could not bring back, though something else has it."""
        return [path for path in self.not_cached if path not in self.lost]

    def broken(self) -> Iterator[str]:
        remote = f"remote {self.remote}" if self.remote else "a remote (none is configured)"
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

    def notes(self) -> Iterator[str]:
        if self.only_here:
            yield f"only the working tree holds {names(self.only_here)}; `dvc commit` puts it into DVC's cache"
        if self.not_asked:
            yield (
                f"{len(self.not_asked)} of {len(self.objects)} objects are not in DVC's cache; whether remote "
                f"{self.remote} holds them was not asked: `dvc fetch` brings them"
            )


def examine(
    lock: Lock, tree: Tree, listings: Listings, stages: Iterable[Stage] | None = None, deep: bool = False
) -> Kept:
    """Look for every object of these stages, or of all, in the cache, in a remote that is a folder, and in its place.

    With `deep` all bytes are hashed; else names, sizes and the listings of folders are compared.
    """
    kept, here_tree = Kept(listings.remote), WorkingTree(listings.root)
    entries = _entries(lock, lock.stages.values() if stages is None else stages, tree)
    for entry in track(entries, len(entries), "hashing DVC's objects") if deep else entries:
        files = listings.get(entry.md5) if entry.is_folder else None
        found = {entry.path: str(entry.md5), **{f"{entry.path}/{name}": md5 for name, md5 in (files or {}).items()}}
        kept.objects |= found
        states = {path: object_state(listings.cached_file(md5), md5, deep) for path, md5 in found.items()}
        kept.damaged += [path for path, state in states.items() if state == DAMAGED]
        kept.not_cached += [path for path, state in states.items() if state == ABSENT]
        store, here = listings.remote_folder, None
        for path in [path for path, state in states.items() if state != RIGHT]:
            md5 = found[path]
            if store and object_state(object_path(store, md5), md5, deep) == RIGHT:
                continue
            here = here_tree.md5s(entry.path) if here is None else here
            if md5 == (entry_hash(here) if path == entry.path else here.get(path[len(entry.path) + 1 :])):
                kept.only_here.append(path)
            elif listings.remote and store is None:
                kept.not_asked.append(path)
            else:
                kept.lost.append(path)
        if set(states.values()) == {RIGHT} and entry.size is not None:
            cached = [listings.cached_file(md5) for md5 in found.values() if not md5.endswith(".dir")]
            if sum(file.stat().st_size for file in cached) != entry.size:
                kept.damaged.append(entry.path)
    return kept


def _entries(lock: Lock, stages: Iterable[Stage], tree: Tree) -> list[Entry]:
    """What DVC, not git, keeps of these stages: their outputs, and the data of `dvc add` that they read."""
    in_git = Definition.read(tree).in_git
    found: list[Entry | None] = []
    for stage in stages:
        found += [out for out in stage.outs if out.md5 and out.path not in in_git]
        found += [added(tree, dep) for dep in stage.deps if not lock.makers(dep.path)]
    return [entry for entry in dict.fromkeys(found) if entry and not is_outside(entry.path)]


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


def missing_in_remote(listings: Listings, kept: Kept) -> list[str]:
    """The paths whose objects the default remote does not hold; asks the network where the remote is no folder.

    The bytes of a folder's objects are hashed; of those beyond a network DVC tells the names and sizes. Raises
    UserError when the remote does not answer.
    """
    if listings.remote_folder:
        store = listings.remote_folder
        return [p for p, md5 in kept.objects.items() if object_state(object_path(store, md5), md5, True) != RIGHT]
    with dvc_repo(listings.root, f"remote {listings.remote} does not answer") as repo:
        remote = repo.cloud.get_remote_odb(listings.remote)
        present = _present(remote, set(kept.objects.values()))
        sizes = {md5: remote.fs.size(remote.oid_to_path(md5)) for md5 in present}

    def whole(md5: str) -> bool:
        cached = listings.cached_file(md5)
        return md5 in present and (not cached.is_file() or cached.stat().st_size == sizes[md5])

    return [path for path, md5 in kept.objects.items() if not whole(md5)]


def _present(remote: Any, md5s: set[str]) -> set[str]:
    """The objects that a remote holds. By HTTP all seem absent when it is down or lets nobody in: then this raises."""
    present = set(remote.oids_exist(md5s))
    if not remote.fs.CAN_TRAVERSE and (absent := md5s - present):
        with suppress(FileNotFoundError):
            remote.fs.cat_file(remote.oid_to_path(min(absent)))
    return present


def writable_by_all(listings: Listings) -> list[str]:
    """A sentence when everybody may write into a remote that is a folder here; of others only their settings tell."""
    store = listings.remote_folder
    modes = {path: path.lstat().st_mode for path in [store, *store.rglob("*")]} if store and store.is_dir() else {}
    found = [str(path) for path, mode in modes.items() if mode & stat.S_IWOTH and not stat.S_ISLNK(mode)]
    said = f"remote {listings.remote}: everybody on this machine may write {names(found)}, so anybody can change a"
    return [f"{said} release; `chmod -R o-w {store}` ends that"] if found else []


def lost_releases(repository: Repository, listings: Listings) -> Iterator[str]:
    """A sentence for each tag whose release DVC's cache and remote can no longer bring back."""
    for tag, commit, text in tagged_locks(repository):
        try:
            lock = parse_lock(text)
        except ValueError:
            continue
        kept = examine(lock, CommitTree(repository, commit), listings)
        yield from (f"{tag}: {sentence}" for sentence in kept.broken())


def heal(root: Path) -> tuple[list[str], list[str]]:
    """Heal what can be healed; return what was found and done, and what stays damaged or lost."""
    listings, tree = Listings(root), WorkingTree(root)
    lock = read_lock(tree)
    damaged = _set_aside(root, listings.cache, "DVC's cache")
    said = [f"DVC's cache: {len(damaged)} damaged objects"]
    if listings.remote_folder and (wrong := _set_aside(root, listings.remote_folder, "the remote")):
        said.append(f"remote {listings.remote}: {len(wrong)} damaged objects set aside; then run `dvc push`")
    here = {out: tree.md5s(out.path) for _, out in lock.outs()}
    places = {md5: root / out.path / name for out, files in here.items() for name, md5 in files.items()}
    copies = {md5: partial(shutil.copyfile, places[md5]) for md5 in damaged if md5 in places}
    left = [md5 for md5 in damaged if md5 not in copies or not _bring(listings, md5, copies[md5])]
    left = _fetch(root, listings, left) if left and listings.remote else left
    said += [f"{len(damaged) - len(left)} healed"] if damaged else []
    for out, files in here.items():
        if entry_hash(files) not in (None, out.md5):
            for name in files:  # so that DVC looks at it again: it takes files of unchanged times for unchanged
                os.utime(root / out.path / name if name else root / out.path)
            said.append(f"{out.path} is not what dvc.lock says; `dvc checkout --force {out.path}` replaces it")
    listings = Listings(root)
    kept = examine(lock, tree, listings)
    for count, what in zip(_send_again(listings, kept) if listings.remote else (), ("cut", "missing"), strict=False):
        said += [f"remote {listings.remote}: {count} objects were {what}, and are sent again"] if count else []
    lost = [f"neither the working tree nor a remote has the right bytes of {names(left)}"] if left else []
    return [*said, *kept.notes()], [*lost, *kept.broken(), *lost_releases(Repository(root), listings)]


def _set_aside(root: Path, store: Path, what: str) -> list[str]:
    """Move every object whose bytes are not those of its name out of a cache or remote; return the names."""
    files = sorted(f for f in (store / "files" / "md5").glob("[0-9a-f][0-9a-f]/*") if OBJECT.fullmatch(f.name))
    found = []
    for file in track(files, len(files), f"hashing {what}"):
        md5 = file.parent.name + file.name
        if object_state(file, md5, deep=True) == DAMAGED:
            aside = root / ".tunetrail" / "damaged" / md5
            aside.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file, aside)
            found.append(md5)
    return found


def _fetch(root: Path, listings: Listings, wanted: list[str]) -> list[str]:
    """Bring objects into the cache from the remote; return those left."""
    with dvc_repo(root, f"remote {listings.remote} does not answer") as repo:
        remote = repo.cloud.get_remote_odb(listings.remote)
        fetches = {md5: partial(remote.fs.get_file, remote.oid_to_path(md5)) for md5 in wanted}
        return [md5 for md5, fetch in fetches.items() if not _bring(listings, md5, fetch)]


def _send_again(listings: Listings, kept: Kept) -> tuple[int, int]:
    """Send what `dvc push` will not after one that failed; how many objects were cut, and how many were missing.

    It takes a cut object, which a killed server leaves, for whole; and a folder whose listing is there for sent, though
    it sends a listing also when a file failed that another folder has, too.
    """
    with dvc_repo(listings.root, f"remote {listings.remote} cannot be asked or mended") as repo:
        remote, local = repo.cloud.get_remote_odb(listings.remote), repo.cache.local.fs
        present = _present(remote, set(kept.objects.values()))
        listed = {md5 for one in present if one.endswith(".dir") for md5 in (listings.get(one) or {}).values()}
        cached = {md5: file for md5 in present | listed if (file := listings.cached_file(md5)).is_file()}
        sizes = {md5: remote.fs.size(remote.oid_to_path(md5)) for md5 in cached.keys() & present}
        cut = [md5 for md5, size in sizes.items() if size != cached[md5].stat().st_size]
        missing = cached.keys() - present
        for md5 in cut if remote.fs.CAN_TRAVERSE else []:  # HTTP deletes nothing, and overwrites
            remote.fs.remove(remote.oid_to_path(md5))
        for md5 in (*cut, *missing):
            remote.add(str(cached[md5]), local, md5, check_exists=False)
    return len(cut), len(missing)


def _bring(listings: Listings, md5: str, copy: Callable[[str], object]) -> bool:
    """Put an object into the cache when `copy` brings the bytes that it is named by."""
    file = listings.cached_file(md5)
    half = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        copy(str(half))
        if object_state(half, md5, deep=True) != RIGHT:
            return False
        half.chmod(0o444)  # as DVC leaves them
        half.replace(file)
        return True
    except OSError:
        return False
    finally:
        half.unlink(missing_ok=True)
