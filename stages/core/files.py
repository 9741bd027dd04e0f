"""Atomic writes and content hashes."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from stages.core.errors import UserError

_PIECE = 1 << 24  # bytes of a file that are hashed at once
PARTIALS = Path(".tunetrail/partial")  # neither git nor DVC looks there


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the name of `path`; rename it to `path` when the block succeeds.

    The block creates a file or a folder there. It lies in a new folder of .tunetrail/partial, never in an output:
    a killed process leaves it there, and the next that writes clears it away. Of two that write the same path at
    the same time, the later one stands. Raises UserError where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _private_folder(path) as folder:
        partial = folder / path.name
        try:
            yield partial
            if partial.is_file():
                with partial.open("rb") as handle:
                    os.fsync(handle.fileno())
        except Exception as error:  # told before what was written is removed, which makes room
            from stages.core.disk import when_full

            if said := when_full(error, path):
                raise UserError(said) from error
            raise
        while True:
            try:
                partial.replace(path)
                return
            except OSError as error:  # a folder with files in it, or a file where a folder shall be
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
                    raise
                with suppress(FileNotFoundError):  # another process was quicker
                    path.replace(folder / f"old-{uuid4().hex}")


@contextmanager
def _private_folder(path: Path) -> Iterator[Path]:
    """A new folder for this block, on the file system of `path`.

    Its owner holds a lock on it that the kernel lets go when the process ends, however it ends: a zombie or
    another process that has got the same number since is not taken for the owner.
    """
    place = _partials(path)
    place.mkdir(parents=True, exist_ok=True)
    clear_partials(place)
    new = Path(tempfile.mkdtemp(prefix=".", suffix=".new", dir=place))
    lock = os.open(new, os.O_RDONLY)
    _locked(lock)
    folder = new.replace(new.with_suffix(".partial"))  # seen by others only now that it is locked
    try:
        yield folder
    finally:
        remove(folder)
        os.close(lock)


def _partials(path: Path) -> Path:
    """As near to the repository's root as the file system of `path` goes; outside a repository, beside it."""
    root = Path.cwd()
    if not (root / "dvc.yaml").is_file() or not (root / path).is_relative_to(root):
        return path.parent
    device = path.parent.stat().st_dev
    above = reversed((root / path).relative_to(root).parents)
    return next(folder for folder in above if folder.stat().st_dev == device) / PARTIALS


def clear_partials(place: Path = PARTIALS) -> None:
    """Remove what killed processes left unfinished in `place`."""
    for folder in place.glob(".*.partial"):
        with suppress(OSError), alone(folder) as lock:  # gone by now, or not ours to remove
            if lock is not None:
                remove(folder)


@contextmanager
def alone(path: Path, wait: bool = False) -> Iterator[int | None]:
    """Hold a file or folder by a lock that the kernel lets go when this process and those that inherit the descriptor
    have ended, however they end; None where another holds it, thread or process, unless this one shall `wait`.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        yield descriptor if _locked(descriptor, wait) else None
    finally:
        os.close(descriptor)


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Hold a folder, made if need be, while a file in it is read, changed and written; who does the same waits.

    Where its file system knows no locks, a file of the temporary folder is held instead: who is on this machine waits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        if held.enter_context(alone(folder, wait=True)) is None:
            name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
            spare = Path(tempfile.gettempdir(), f"tunetrail-{os.getuid()}-{name}.lock")
            spare.touch(0o600)
            if held.enter_context(alone(spare, wait=True)) is None:
                raise UserError(f"neither {folder} nor {spare.parent} can be locked; set TMPDIR to a folder that can")
        yield


def _locked(descriptor: int, wait: bool = False) -> bool:
    """Whether the lock was got; not where another process holds it, nor on a file system that knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON. Raises ValueError on NaN or infinity, which JSON has no word for."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's bytes; DVC names its contents by "md5"."""
    found = hashlib.new(algorithm, usedforsecurity=False)
    # Large pieces: beside a thread that runs Python code, each costs a wait for Python's lock.
    with path.open("rb", buffering=0) as handle:
        piece = memoryview(bytearray(min(_PIECE, max(os.fstat(handle.fileno()).st_size, 1 << 16))))
        while size := handle.readinto(piece):
            found.update(piece[:size])
    return found.hexdigest()


def content_hashes(path: Path) -> dict[str, Any]:
    """SHA-256 for people and other tools, MD5 because DVC names contents by it, size in bytes."""
    with ThreadPoolExecutor(2) as threads:  # which hash without Python's lock
        sha256, md5 = threads.map(file_digest, (path, path), ("sha256", "md5"))
    return {"sha256": sha256, "md5": md5, "bytes": path.stat().st_size}


def files_under(path: Path) -> list[Path]:
    """The file itself, or all files below a folder in sorted order, without byte code caches."""
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def tree_digest(path: Path) -> str:
    """SHA-256 over names and contents of a file or folder, the same on every machine."""
    if path.is_file():
        return file_digest(path)
    listing = [(p.relative_to(path).as_posix(), file_digest(p)) for p in files_under(path)]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
