"""The loops that are compiled: what can be said about a pair of texts without aligning them.

numba takes half a second to import, so only `sketched` imports this module. The machine code is cached beside it.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

BUCKETS = 32
_COLUMNS = 512  # of a strip whose bags, 32 bytes each, stay in the first-level cache


@intrinsic
def _ones(context, word):  # type: ignore[no-untyped-def]
    """Number of one bits of a 64-bit word."""

    def generate(context, builder, signature, arguments) -> ir.Value:  # type: ignore[no-untyped-def]
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


def _saturating(operation: str) -> Any:
    """`uadd` or `usub` of two unsigned integers of one type that stops at the type's end: one instruction for many."""

    @intrinsic
    def call(context, left, right):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments) -> ir.Value:  # type: ignore[no-untyped-def]
            kind = arguments[0].type
            function = builder.module.declare_intrinsic(
                f"llvm.{operation}.sat", [kind], ir.FunctionType(kind, [kind, kind])
            )
            return builder.call(function, arguments)

        return left(left, left), generate

    return call


_plus, _minus = _saturating("uadd"), _saturating("usub")


@njit(cache=True, nogil=True)
def count_characters(codes, ends, bucket_of, bags):  # type: ignore[no-untyped-def]
    """Count the code points of each text by bucket, up to 255.

    codes: uint32, the texts one after the other; ends: int64 (texts,), where each ends; bucket_of: uint8, the bucket
    of each code point; bags: uint8 (texts, BUCKETS), zeros, is filled.
    """
    start = 0
    for text in range(len(ends)):
        for place in range(start, ends[text]):
            bucket = bucket_of[codes[place]]
            if bags[text, bucket] < 255:
                bags[text, bucket] += 1
        start = ends[text]


@njit(cache=True, nogil=True)
def _hash(codes):  # type: ignore[no-untyped-def]
    """64 bits of a gram."""
    mixed = np.uint64(0)
    for code in codes:
        mixed = (mixed ^ np.uint64(code)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
    return mixed


@njit(cache=True, nogil=True)
def sketch_grams(codes, ends, q, sketches):  # type: ignore[no-untyped-def]
    """Flip one bit of a text's sketch for each of its q-grams.

    A gram that occurs again is another element, the second of its kind, and so on: two texts then differ in as many
    elements as the L1 distance of their bags of q-grams.

    codes, ends: as above; sketches: uint64 (texts, words), words a power of two, zeros, is filled.
    """
    bits = np.uint64(64 * sketches.shape[1] - 1)
    slots, longest, start = 64, 0, 0
    for end in ends:
        longest, start = max(longest, end - start), end
    while slots < 2 * longest:
        slots *= 2
    # An open hash table of the grams seen so far; a slot with another owner is free.
    hashes, counts, owners = np.empty(slots, np.uint64), np.empty(slots, np.uint64), np.full(slots, -1, np.int64)
    mask = np.uint64(slots - 1)
    start = 0
    for text in range(len(ends)):
        for place in range(start, ends[text] - q + 1):
            gram = _hash(codes[place : place + q])
            slot = gram & mask
            while owners[slot] == text and hashes[slot] != gram:
                slot = (slot + np.uint64(1)) & mask
            if owners[slot] != text:
                owners[slot], hashes[slot], counts[slot] = text, gram, 0
            counts[slot] += np.uint64(1)
            element = (gram + counts[slot]) * np.uint64(0xD6E8FEB86659FD93)
            bit = (element ^ (element >> np.uint64(32))) & bits
            sketches[text, bit >> np.uint64(6)] ^= np.uint64(1) << (bit & np.uint64(63))
        start = ends[text]


@njit(cache=True, nogil=True)
def candidates(rows, columns, loss, spread, diagonal, found):  # type: ignore[no-untyped-def]
    """Write the pairs that neither bags nor sketches rule out to `found`, and return how many.

    rows, columns: (lengths int64 (n,) ascending, bags (n, BUCKETS), sketches uint64 (n, words)); a pair may have
    D <= loss * L // 100, for bags of uint8 at most 253; `spread` is how many elements of a sketch one edit changes;
    of row r only columns beyond r + diagonal count; found: int32 (2, at least rows * columns), is filled.
    """
    strip = np.empty((BUCKETS, _COLUMNS), rows[1].dtype)
    apart, slack = np.empty(_COLUMNS, rows[1].dtype), np.empty(_COLUMNS, rows[1].dtype)
    pair = loss, spread, diagonal
    count = 0
    for start in range(0, len(columns[0]), _COLUMNS):
        wide = min(_COLUMNS, len(columns[0]) - start)
        strip[:, :wide] = columns[1][start : start + wide].T
        longest = columns[0][start + wide - 1]
        for row in range(min(len(rows[0]), start + wide - 1 - diagonal)):
            over = min(loss * (rows[0][row] + longest) // 100 + 1, 65535)
            _compare_bags(rows[1][row], strip, rows[1].dtype.type(over), apart, slack)
            count = _compare_sketches(rows, row, columns, start, wide, pair, over, slack, found, count)
    return count


@njit(cache=True, nogil=True)
def _compare_bags(bag, strip, over, apart, slack):  # type: ignore[no-untyped-def]
    """How far the L1 distance of a bag to each column of a strip stays below `over`: `slack` is filled."""
    apart[:] = 0
    for bucket in range(BUCKETS):
        here = bag[bucket]
        for column in range(_COLUMNS):
            there = strip[bucket, column]
            apart[column] = _plus(apart[column], _minus(here, there) | _minus(there, here))
    for column in range(_COLUMNS):
        slack[column] = _minus(over, apart[column])


@njit(cache=True, nogil=True)
def _compare_sketches(rows, row, columns, start, wide, pair, over, slack, found, count):  # type: ignore[no-untyped-def]
    """Add to the `count` pairs in `found` those of a row and a strip that have slack and near sketches."""
    loss, spread, diagonal = pair
    words = slack.view(np.uint64)
    lanes = _COLUMNS // len(words)
    for word in range(len(words)):
        if words[word] == 0:  # as most are: several columns ruled out at once
            continue
        for column in range(word * lanes, min((word + 1) * lanes, wide)):
            partner = start + column
            distance = loss * (rows[0][row] + columns[0][partner]) // 100
            if slack[column] == 0 or over - slack[column] > distance or partner <= row + diagonal:
                continue
            differing = np.uint64(0)
            for part in range(rows[2].shape[1]):
                differing += _ones(rows[2][row, part] ^ columns[2][partner, part])
            if differing <= np.uint64(spread * distance):
                found[0, count], found[1, count] = row, partner
                count += 1
    return count
