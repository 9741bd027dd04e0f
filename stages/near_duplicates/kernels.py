"""The loops that are compiled: what can be said about a pair of texts without aligning them.

numba takes half a second to import, so only `sketched` imports this module. The machine code is cached beside it.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

BUCKETS = 32
LANES = 64  # columns that are compared at once: a bit of a word for each
FEW = 4  # columns are written for each row without a branch, though fewer may be left


@intrinsic
def _ones(context, word):  # type: ignore[no-untyped-def]
    """Number of one bits of a 64-bit word."""

    def generate(context, builder, signature, arguments) -> ir.Value:  # type: ignore[no-untyped-def]
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def within(context, bags, row, strips, strip, starts, over):  # type: ignore[no-untyped-def]
    """The columns of a strip for which start + the sum of max(bag - column, 0) by bucket is below `over`, as bits.

    bags: uint8 (rows, BUCKETS); strips: uint8 (strips, BUCKETS, LANES); starts (LANES,) and over: of the unsigned type
    in which sums are held, which stop at its end. The vectors of LANES stay in registers; LLVM cuts them to the size
    that a machine has.
    """

    def generate(context, builder, signature, arguments) -> ir.Value:  # type: ignore[no-untyped-def]
        bag, columns, start = (
            context.make_array(signature.args[place])(context, builder, arguments[place]).data for place in (0, 2, 4)
        )
        kind = arguments[5].type
        vector = ir.VectorType(kind, LANES)

        def saturating(operation: str, left: ir.Value, right: ir.Value) -> ir.Value:
            name = f"llvm.{operation}.sat.v{LANES}i{kind.width}"
            function = get_or_insert_function(builder.module, ir.FunctionType(vector, [vector, vector]), name)
            return builder.call(function, [left, right])

        def load(pointer: ir.Value, vector: ir.VectorType) -> ir.Value:
            return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=1)

        def in_each(value: ir.Value) -> ir.Value:
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
            return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

        def widened(value: ir.Value, wide: ir.Type) -> ir.Value:
            return value if value.type == wide else builder.zext(value, wide)

        bag = builder.gep(bag, [builder.mul(arguments[1], arguments[1].type(BUCKETS))])
        columns = builder.gep(columns, [builder.mul(arguments[3], arguments[3].type(BUCKETS * LANES))])
        total = load(start, vector)
        for bucket in range(BUCKETS):
            here = in_each(widened(builder.load(builder.gep(bag, [ir.IntType(64)(bucket)])), kind))
            there = builder.gep(columns, [ir.IntType(64)(bucket * LANES)])
            there = widened(load(there, ir.VectorType(ir.IntType(8), LANES)), vector)
            total = saturating("uadd", total, saturating("usub", here, there))
        return builder.bitcast(builder.icmp_unsigned("<", total, in_each(arguments[5])), ir.IntType(LANES))

    return types.uint64(bags, types.int64, strips, types.int64, starts, over), generate


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
def candidates(rows, columns, tile, diagonal, loss, spread, starts, found):  # type: ignore[no-untyped-def]
    """Write the pairs of a tile that neither bags nor sketches rule out to `found`, and return how many.

    rows: (lengths int64 (n,), bags (n, BUCKETS), their sums int64 (n,), folded sketches and full ones uint64
    (n, words)); columns: the same with strips for bags; tile: top, bottom, first, last; of row r only columns beyond
    r + diagonal count; a pair may have D <= loss * L // 100; `spread` is how many elements of a sketch one edit
    changes; starts: (LANES,) of a type that holds more than any sum that is not ruled out; found: int32 (2, the tile's
    pairs + FEW or more), is filled.
    """
    lengths, _, sums, _, _ = columns
    top, bottom, first, last = tile
    most, whole = np.iinfo(starts.dtype).max, rows[3].shape[1] == rows[4].shape[1]
    count = 0
    for strip in range(first // LANES, (last + LANES - 1) // LANES):
        begin, end = max(first, strip * LANES), min(last, (strip + 1) * LANES)
        highest = (loss * lengths[begin:end] - 100 * sums[begin:end]).max()
        starts[:] = 0
        for column in range(begin, end):
            start = (highest - loss * lengths[column] + 100 * sums[column]) // 200
            starts[column - strip * LANES] = min(start, most // 2)
        held = count
        for row in range(top, min(bottom, end - 1 - diagonal)):
            over = (loss * rows[0][row] + 100 * rows[2][row] + highest) // 200 + 1
            if over <= 0:
                continue
            mask = within(rows[1], row, columns[1], strip, starts, starts.dtype.type(min(over, most)))
            mask &= _bits_from(max(begin, row + diagonal + 1) - strip * LANES) & ~_bits_from(end - strip * LANES)
            after = held + _count(mask)
            for place in range(held, held + FEW):
                found[0, place], found[1, place] = row, strip * LANES + _lowest(mask)
                mask &= mask - np.uint64(1)
            for place in range(held + FEW, after):
                found[0, place], found[1, place] = row, strip * LANES + _lowest(mask)
                mask &= mask - np.uint64(1)
            held = after
        for place in range(count, held):
            row, column = found[0, place], found[1, place]
            limit = np.uint64(loss * (rows[0][row] + lengths[column]) // 100 * spread)
            if _differing(rows[3], row, columns[3], column) > limit:
                continue
            if whole or _differing(rows[4], row, columns[4], column) <= limit:
                found[0, count], found[1, count] = row, column
                count += 1
    return count


@njit(cache=True, nogil=True)
def _count(word):  # type: ignore[no-untyped-def]
    return np.int64(_ones(word))


@njit(cache=True, nogil=True)
def _lowest(word):  # type: ignore[no-untyped-def]
    """The place of the lowest bit that is set; of none, 64."""
    return _count((word & -word) - np.uint64(1))


@njit(cache=True, nogil=True)
def _bits_from(place):  # type: ignore[no-untyped-def]
    """A word whose bits are set from `place`, 0 to 64, on."""
    return ~np.uint64(0) << np.uint64(place) if place < LANES else np.uint64(0)


@njit(cache=True, nogil=True)
def _differing(left, row, right, column):  # type: ignore[no-untyped-def]
    """In how many bits two sketches differ."""
    differing = np.uint64(0)
    for word in range(left.shape[1]):
        differing += _ones(left[row, word] ^ right[column, word])
    return differing
