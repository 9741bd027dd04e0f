"""Near pairs where comparing all is too much: hashing proposes pairs, the same rule judges them. Some are missed.

A text's set of trigrams has a signature of minimum hashes; two texts agree in one of them with a chance of the Jaccard
similarity of their sets (Broder, "On the resemblance and containment of documents", SEQUENCES 1997). Pairs that agree
in all hashes of at least one band are proposed (Indyk, Motwani, "Approximate nearest neighbors", STOC 1998).
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from stages.core.progress import track
from stages.near_duplicates import kernels
from stages.near_duplicates.aligned import Found, aligned
from stages.near_duplicates.encoding import character_bags, fill, in_threads
from stages.near_duplicates.sides import Side

_Q = 3
_BANDS = 24
_HASHES = 6  # in a band: similarity 0.75 is proposed 99 times in 100, 0.2 once or twice in 1,000
_REACH = 64  # partners in one band, so that a band that all texts share stays linear
_PROPOSED = 50_000  # texts at once
_ALIGNED = 100_000  # pairs at once


def join(side: Side, threshold: int) -> Iterator[Found]:
    """Near pairs within one side, each once: most, not all."""
    (bags,) = character_bags([side])
    keys = _band_keys(side)
    pairs = np.empty(0, np.int64)
    for band in track(range(_BANDS), _BANDS, "near-duplicates, bands of hashes"):
        order = np.argsort(keys[:, band], kind="stable")
        propose = partial(_propose, order, keys[order, band], side.lengths, bags, 100 - threshold)
        found = list(in_threads(propose, range(0, len(order), _PROPOSED)))
        pairs = np.unique(np.concatenate([pairs, *found]))
    for start in range(0, len(pairs), _ALIGNED):
        some = pairs[start : start + _ALIGNED]
        yield aligned(side, side, threshold, some >> 32, some & 0xFFFFFFFF)


def _band_keys(side: Side) -> NDArray[np.uint64]:
    """(texts, bands): what texts that agree in a band have in common."""
    keys = np.empty((len(side.texts), _BANDS), np.uint64)
    parameters = np.random.default_rng(0).integers(0, 1 << 32, (2, _BANDS * _HASHES), dtype=np.uint32)
    multipliers, summands = parameters[0] | 1, parameters[1]
    fill(side.texts, keys, lambda codes, ends, part: kernels.hash_bands(codes, ends, _Q, multipliers, summands, part))
    return keys


def _propose(
    order: NDArray[np.int64],
    keys: NDArray[np.uint64],
    lengths: NDArray[np.int64],
    bags: NDArray[np.uint8],
    loss: int,
    start: int,
) -> NDArray[np.int64]:
    """Pairs of texts with one key, as row * 2**32 + column."""
    stop = min(start + _PROPOSED, len(order))
    found = np.empty((stop - start) * _REACH, np.int64)
    count = kernels.pair_up(order, keys, lengths, bags, loss, start, stop, _REACH, found)
    return found[:count].copy()
