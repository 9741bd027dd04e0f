"""The distance of proposed pairs, by rapidfuzz."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import Indel

from stages.near_duplicates.sides import Side

# Near pairs: int32 (pairs, 4), each the row, the column, the distance and the summed length.
Found = NDArray[np.int32]


def joined(found: Iterable[Found]) -> Found:
    return np.concatenate([np.empty((0, 4), np.int32), *found])


def aligned(left: Side, right: Side, threshold: int, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Found:
    """Those of the pairs (rows[n], columns[n]) that are near."""
    if not len(rows):
        return joined([])
    lengths = left.lengths[rows] + right.lengths[columns]
    limits = (100 - threshold) * lengths // 100
    distances = process.cpdist(
        [left.texts[row] for row in rows.tolist()],
        [right.texts[column] for column in columns.tolist()],
        scorer=Indel.distance,
        # rapidfuzz stops counting beyond the cutoff and returns cutoff + 1, which is over the limit of every pair.
        score_cutoff=int(limits.max()),
        dtype=np.int32,
        workers=-1,
    )
    near = distances <= limits
    return np.stack([rows, columns, distances, lengths], axis=1, dtype=np.int32, casting="unsafe")[near]
