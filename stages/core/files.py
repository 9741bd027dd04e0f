"""Atomic writes and content hashes."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` when the block succeeds.

    The block creates a file or a folder under that name. A killed process leaves only the temporary
    name, which the next run replaces.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    remove(partial)
    yield partial
    if partial.is_dir():
        remove(path)
    else:
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
    partial.replace(path)


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
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


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
