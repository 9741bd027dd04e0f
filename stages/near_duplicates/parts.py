"""What a long join has found so far, kept so that a killed run goes on where it was."""

import hashlib
from pathlib import Path

import numpy as np

from stages import paths
from stages.files import atomic, remove, tree_digest
from stages.near_duplicates.aligned import Found
from stages.near_duplicates.sides import Side


class Parts:
    """The near pairs of each block of rows, in a folder of files or, without one, in memory."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[range, Found] = {}
        if folder:
            for file in sorted(folder.glob("*.npy")):
                start, _, stop = file.stem.partition("-")
                self._held[range(int(start), int(stop))] = np.load(file)

    def __contains__(self, rows: range) -> bool:
        return rows in self._held

    def __getitem__(self, rows: range) -> Found:
        return self._held[rows]

    def __setitem__(self, rows: range, found: Found) -> None:
        self._held[rows] = found
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
