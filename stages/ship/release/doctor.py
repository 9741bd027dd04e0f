"""doctor: find what is damaged in DVC's cache and remote, and bring the right bytes back.

Nothing is deleted: a damaged object moves to .tunetrail/damaged, where it is in nobody's way.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from stages.core.dvc_lock import Lock, entry_hash
from stages.core.errors import Refusal
from stages.core.files import file_digest
from stages.core.git import Repository, WorkingTree
from stages.core.progress import track
from stages.ship.release.dvc_files import Listings
from stages.ship.release.finding import read_lock
from stages.ship.release.objects import (
    DAMAGED,
    examine,
    lost_releases,
    names,
    object_state,
    open_remote,
    trail_entries,
)

SAFE_GC = (
    "To free space: `dvc gc --workspace --all-branches --all-tags` keeps what every release needs, also with --cloud; "
    "without --all-tags it deletes what earlier releases need."
)
_OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")


def doctor(root: Path) -> str:
    """Heal what can be healed; return what was found and done.

    Raises:
        Refusal: with the same text, when something stays damaged or lost.
    """
    listings, tree = Listings(root), WorkingTree(root)
    lock = read_lock(tree) or Lock({})
    damaged = _set_aside(root, listings.cache, "DVC's cache")
    said = [f"DVC's cache: {len(damaged)} damaged objects"]
    if listings.remote_folder and (wrong := _set_aside(root, listings.remote_folder, "the remote")):
        said.append(
            f"remote {listings.remote}: {len(wrong)} damaged objects set aside; `dvc push` sends the right ones"
        )
    left = _heal(root, listings, lock, damaged)
    said += [f"  {len(damaged) - len(left)} healed"] if damaged else []
    said += [f"  neither the working tree nor a remote has the right bytes of {names(left)}"] if left else []
    for _, out in lock.outs():
        files = tree.md5s(out.path)
        if entry_hash(files) not in (None, out.md5):
            for name in files:  # so that DVC looks at it again: it takes files of unchanged times for unchanged
                os.utime(root / out.path / name if name else root / out.path)
            said.append(f"{out.path} is not what dvc.lock says; `dvc checkout --force {out.path}` replaces it")
    listings = Listings(root)
    kept = examine(trail_entries(lock, lock.stages.values(), tree), listings, root)
    lost = [*kept.broken(listings), *lost_releases(Repository(root), listings)]
    text = "\n".join([*said, *kept.notes(listings), *lost, SAFE_GC])
    if left or lost:
        raise Refusal(f"not everything could be healed\n{text}")
    return text


def _set_aside(root: Path, store: Path, what: str) -> list[str]:
    """Move every object whose bytes are not those of its name out of a cache or remote; return the names."""
    files = sorted(f for f in (store / "files" / "md5").glob("[0-9a-f][0-9a-f]/*") if _OBJECT.fullmatch(f.name))
    found = []
    for file in track(files, len(files), f"hashing {what}"):
        md5 = file.parent.name + file.name
        if object_state(file, md5, deep=True) == DAMAGED:
            aside = root / ".tunetrail" / "damaged" / md5
            aside.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file, aside)
            found.append(md5)
    return found


def _heal(root: Path, listings: Listings, lock: Lock, wanted: list[str]) -> list[str]:
    """Bring objects into the cache from their places in the working tree or from the remote; return those left."""
    if not wanted:
        return []
    tree = WorkingTree(root)
    places = {m: root / out.path / name for _, out in lock.outs() for name, m in tree.md5s(out.path).items()}
    left = [md5 for md5 in wanted if md5 not in places or not _bring(listings, md5, _copier(places[md5]))]
    if not left or not listings.remote:
        return left
    with open_remote(root, listings) as remote:

        def fetched(md5: str) -> Callable[[Path], object]:
            return lambda target: remote.fs.get_file(remote.oid_to_path(md5), str(target))

        return [md5 for md5 in left if not _bring(listings, md5, fetched(md5))]


def _copier(source: Path) -> Callable[[Path], object]:
    return lambda target: shutil.copyfile(source, target)


def _bring(listings: Listings, md5: str, copy: Callable[[Path], object]) -> bool:
    """Put an object into the cache when `copy` brings the bytes that it is named by."""
    file = listings.cached_file(md5)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        copy(partial)
        if file_digest(partial, "md5") != md5.removesuffix(".dir"):
            return False
        partial.chmod(0o444)  # as DVC leaves them
        partial.replace(file)
        return True
    except OSError:
        return False
    finally:
        partial.unlink(missing_ok=True)
