"""What a long join has found so far, kept so that a killed run goes on where it was."""

import hashlib
from pathlib import Path

import numpy as np

from stages.core import paths
from stages.core.files import atomic, remove, tree_digest
from stages.near_duplicates.aligned import Found
from stages.near_duplicates.sides import Side


class Parts:
    """The near pairs of blocks of rows, in a folder of files; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.saved: dict[range, Found] = {}
        for file in sorted(folder.glob("*.npy")) if folder else []:
            start, _, stop = file.stem.partition("-")
            self.saved[range(int(start), int(stop))] = np.load(file)

    def save(self, rows: range, found: Found) -> None:
        if self._folder:
            with atomic(self._folder / f"{rows.start}-{rows.stop}.npy") as partial, partial.open("wb") as handle:
                np.save(handle, found)

    def clear(self) -> None:
        """Delete the files, and those that joins of other texts left: this one is done."""
        if self._folder:
            remove(self._folder.parent)


def join_folder(left: Side, right: Side, threshold: int) -> Path:
    """The folder of exactly these texts, this threshold and this code."""
    digest = hashlib.sha256(f"{threshold} {tree_digest(Path(__file__).parent)}".encode())
    for side in (left, right):
        digest.update(np.ascontiguousarray(side.lengths).data)
        for text in side.texts:
            digest.update(text.encode("utf-8", "surrogatepass"))
    return paths.JOINS / digest.hexdigest()[:16]
