"""verify: is a release folder, byte for byte, what its manifest says, and does dvc.lock or a signature speak for it?"""

import posixpath
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.core.files import file_digest
from stages.core.git import LOCK, Repository, WorkingTree
from stages.ship.release.changed_files import changes, digests, shown
from stages.ship.release.dvc_files import Listings, read_manifest
from stages.ship.release.finding import History, read_lock
from stages.ship.release.objects import lost_releases
from stages.ship.release.signature import signed_differences

_NOT_IN_MANIFEST = {paths.MANIFEST.name, paths.MODEL_CARD.name}
# Formats that run code when they are loaded: Python pickles, and archives that hold them.
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".keras"}
_PATH_SHOWN = 200
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


def verify(root: Path | None, folder: Path, key: Path | None = None, signature: Path | None = None) -> str:
    """Check a release folder; return the sentences that say what holds.

    Against its manifest always; against the signature with the public key; against dvc.lock in the repository `root`,
    where that is known and the folder lies in it or no key speaks for the folder.

    Raises:
        Refusal: with every difference at once.
        UserError: when there is no manifest, or a key or signature that cannot be read.
    """
    # Without a .., by which a copy beside the repository seems to lie in it.
    folder = Path(posixpath.normpath(folder.absolute().as_posix()))
    label = folder.relative_to(root) if root and folder.is_relative_to(root) else folder
    listings = Listings(root or folder.parent)
    place = signature or (root or folder.parent) / paths.SIGNATURE
    if key and (found := [*odd_entries(folder, listings), *signed_differences(folder, key, place)]):
        raise Refusal(f"{label} is not what {place.name} signed:\n  " + "\n  ".join(found))
    found = differences(folder, listings)
    in_git = root is not None and (key is None or folder.is_relative_to(root))
    if root and in_git:
        found += _manifest_differences(root, folder, listings)
    if found:
        fault = f"is not what its manifest and {LOCK} say" if in_git else "is not what its manifest says"
        raise Refusal(f"{label} {fault}:\n  " + "\n  ".join(found))
    manifest = read_manifest(folder / paths.MANIFEST.name) or {}
    answer = f"{label}: {len(manifest['files'])} files are what the manifest says"
    if root and in_git:
        answer += f", and {LOCK} holds the manifest"
    if key:
        answer += f"\n{place.name} is the signature of these files by {key.name}"
    elif not in_git:
        answer += "; only a signature says whose manifest it is: give --key and --signature"
    return "\n".join([answer, *(lost_releases(Repository(root), listings) if root and in_git else ())])


def differences(folder: Path, listings: Listings) -> list[str]:
    """Every way in which a folder is not what its manifest says. Raises UserError without a sound manifest."""
    path = folder / paths.MANIFEST.name
    manifest = read_manifest(path)
    if manifest is None:
        raise UserError(
            f"{str(path)[:_PATH_SHOWN]} is missing or no manifest; `dvc checkout` restores it, `dvc repro` makes it"
        )
    for name, row in manifest["files"].items():
        if not isinstance(row, dict) or not {"sha256", "md5", "bytes"} <= row.keys():
            raise UserError(f"{path} has no sha256, md5 and bytes for {shown(name)}; `dvc checkout` restores it")
    return [*odd_entries(folder, listings), *_file_differences(folder, manifest), *_pickles(folder)]


def odd_entries(folder: Path, listings: Listings) -> Iterator[str]:
    """What is neither a plain file, a folder with files in it, nor DVC's link of a file into its cache."""
    for path in sorted(folder.rglob("*")):
        mode, name = path.lstat().st_mode, path.relative_to(folder).as_posix()
        if stat.S_ISLNK(mode):
            cached = path.resolve().is_relative_to(listings.cache.resolve())
            if not path.exists():
                yield f"{name} is a link to {path.readlink()}, which is not there; `dvc fetch` and `dvc checkout` help"
            elif not (cached and path.is_file()):
                yield f"{name} is a link to {path.readlink()}; only files ship, or links of files into DVC's cache"
        elif stat.S_ISDIR(mode):
            if not any(path.iterdir()):
                yield f"{name} is an empty folder, which no manifest can name"
        elif not stat.S_ISREG(mode):
            yield f"{name} is neither a file nor a folder"


def _file_differences(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    files = manifest["files"]
    found = digests(folder)
    for name in _NOT_IN_MANIFEST if manifest.get("format") == 1 else [paths.MANIFEST.name]:
        found.pop(name, None)
    yield from changes({name: row["sha256"] for name, row in files.items()}, found, "the manifest")
    for name in sorted(name for name, row in files.items() if found.get(name) == row["sha256"]):
        path = folder / name
        if (path.stat().st_size, file_digest(path, "md5")) != (files[name]["bytes"], files[name]["md5"]):
            yield f"{shown(name)} has another size or MD5 than the manifest says"


def _pickles(folder: Path) -> Iterator[str]:
    """Tensors ship as safetensors alone: loading one of these can run code."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        with path.open("rb") as handle:
            start = handle.read(9)
        if path.suffix.lower() in _PICKLES or start.startswith(_PICKLE_STARTS):
            yield f"{name} can hold a pickle, which runs code when it is loaded; only safetensors may ship"
        elif path.suffix == ".safetensors" and not _is_safetensors(path):
            yield f"{name} is no safetensors file"


def _is_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return True
    except SafetensorError:
        return False


def _manifest_differences(root: Path, folder: Path, listings: Listings) -> Iterator[str]:
    """The manifest and the model card must be outputs of dvc.lock; for a copy elsewhere, of any of its versions."""
    place = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else None
    lock = read_lock(WorkingTree(root))
    history = partial(History, Repository(root), everything=True)
    outs = {out.path: out.md5 for _, out in lock.outs()} if lock else {}
    for name in sorted(_NOT_IN_MANIFEST):
        path = folder / name
        if not path.is_file():
            if f"{place}/{name}" in outs:
                yield f"{name} is missing"
            continue
        md5 = file_digest(path, "md5")
        if place is not None and outs.get(f"{place}/{name}") != md5:
            yield f"{name} is not the one in {LOCK}"
        elif place is None and md5 not in outs.values() and not history().search(md5, listings, name):
            yield f"{name} is in no version of {LOCK}"
