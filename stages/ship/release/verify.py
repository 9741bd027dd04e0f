"""verify: is a release folder, byte for byte, what its manifest says, and is the manifest the one in dvc.lock?"""

from collections.abc import Iterator
from pathlib import Path

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.core.files import file_digest
from stages.core.git import LOCK, Repository, WorkingTree
from stages.ship.release.dvc_files import Listings, read_manifest
from stages.ship.release.finding import History, read_lock

_NOT_IN_MANIFEST = {paths.MANIFEST.name, paths.MODEL_CARD.name}
# Formats that run code when they are loaded: Python pickles, and archives that hold them.
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".keras"}
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


def verify(root: Path, folder: Path) -> str:
    """Check a release folder; return the sentence that says what holds.

    Raises:
        Refusal: with every difference at once.
        UserError: when there is no manifest.
    """
    shown = folder.relative_to(root) if folder.is_relative_to(root) else folder
    if found := [*differences(folder), *_manifest_differences(root, folder)]:
        raise Refusal(f"{shown} is not what its manifest and {LOCK} say:\n  " + "\n  ".join(found))
    manifest = read_manifest(folder / paths.MANIFEST.name) or {}
    return f"{shown}: {len(manifest['files'])} files are what the manifest says, and {LOCK} holds the manifest"


def differences(folder: Path) -> list[str]:
    """Every way in which the files of a folder are not those of its manifest. Raises UserError without a manifest."""
    path = folder / paths.MANIFEST.name
    manifest = read_manifest(path)
    if manifest is None:
        raise UserError(f"{path} is missing or no manifest; `dvc checkout` restores it, `dvc repro` makes it")
    return [*_file_differences(folder, manifest["files"]), *_pickles(folder)]


def _file_differences(folder: Path, files: dict[str, dict[str, object]]) -> Iterator[str]:
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    for name in sorted(files.keys() - there):
        yield f"{name} is missing"
    for name in sorted(there - files.keys() - _NOT_IN_MANIFEST):
        yield f"{name} is not in the manifest"
    for name in sorted(files.keys() & there):
        size, expected = (folder / name).stat().st_size, files[name]
        if size != expected["bytes"]:
            yield f"{name} has {size} bytes, the manifest says {expected['bytes']}"
        elif file_digest(folder / name) != expected["sha256"]:
            yield f"{name} has other bytes than the manifest says"


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


def _manifest_differences(root: Path, folder: Path) -> Iterator[str]:
    """The manifest and the model card must be outputs of dvc.lock; for a copy elsewhere, of any of its versions."""
    folder = folder.absolute()
    place = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else None
    lock = read_lock(WorkingTree(root))
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
        elif place is None and md5 not in outs.values() and not _in_history(root, md5, name):
            yield f"{name} is in no version of {LOCK}"


def _in_history(root: Path, md5: str, name: str) -> bool:
    return bool(History(Repository(root), everything=True).search(md5, Listings(root), name))
