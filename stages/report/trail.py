"""The hashes that lead back to what made a release."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.report.formats import size


@dataclass(frozen=True)
class HashedFile:
    path: str
    size: str
    sha256: str


def hashed_files(entries: Mapping[str, Any]) -> list[HashedFile]:
    """A part of the manifest as rows; code has hashes without sizes."""
    return [
        HashedFile(path, "", entry)
        if isinstance(entry, str)
        else HashedFile(path, size(entry["bytes"]), entry["sha256"])
        for path, entry in entries.items()
    ]
