"""Where the time of the near-duplicate join goes, and what other bounds would leave: python dedup_phases.py TEXTS.json

Prints JSON. The join runs on one thread, so that CPU seconds can be told apart; tiles are scanned again with sketches
that say nothing, for the time of the bags alone.
"""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from stages.near_duplicates import pairs, sketched
from stages.near_duplicates.pairs import SortedTexts, Tile, joined, sorted_by_length, within_window

THRESHOLD = 90
EACH, MANY = 8, 10**9  # of more pairs than that only one tile in eight is scanned again
LEAF = 64  # texts of a box
Drawn = list[tuple[str, str]]


def main(file: str) -> None:
    side = sorted_by_length(json.loads(Path(file).read_text(encoding="utf-8")))
    print(json.dumps({**phases(side), "dropped": dropped(side)}))


def phases(side: SortedTexts) -> dict[str, Any]:
    """CPU seconds of each phase, and how many pairs the lengths, bags, folded sketches, sketches and the rule leave."""
    seconds: Counter[str] = Counter()
    sampled: Counter[str] = Counter()
    left: Counter[str] = Counter(lengths=within_window(side, side, THRESHOLD))

    def timed(name: str, function: Callable[..., Any], clock: Callable[[], float] = time.thread_time) -> Any:
        def call(*arguments: Any) -> Any:
            start = clock()
            result = function(*arguments)
            seconds[name] += clock() - start
            return result

        return call

    scan = sketched._candidates
    first_pass = timed("scan", scan)
    tiles, each = 0, EACH if left["lengths"] > MANY else 1

    def scan_again(rows: Any, columns: Any, *rest: Any) -> Any:
        nonlocal tiles
        found = first_pass(rows, columns, *rest)
        left["sketches"] += found.shape[1]
        tiles += 1
        tile: Tile = rest[-1]
        within = sum(tile.last - max(tile.first, row + 1) for row in range(tile.top, tile.bottom))
        sampled["all pairs"] += within
        if tiles % each == 0:
            silent = np.zeros((len(rows.lengths), 1), np.uint64), np.zeros((len(columns.lengths), 1), np.uint64)
            start = time.thread_time()
            for name, blank in (("bags", ("folded", "sketches")), ("folded", ("sketches",)), ("full", ())):
                some = [
                    one._replace(**dict.fromkeys(blank, silent[place])) for place, one in enumerate((rows, columns))
                ]
                begin = time.thread_time()
                sampled[name] += scan(*some, *rest).shape[1]
                sampled[f"{name} seconds"] += time.thread_time() - begin
            sampled["pairs"] += within
            seconds["again"] += time.thread_time() - start
        return found

    pairs.THREADS = 1
    patched = {"_candidates": scan_again, "aligned": timed("alignment", sketched.aligned)}
    # These start threads, whose time the thread that calls them does not have.
    patched |= {
        name: timed("preparation", getattr(sketched, name), time.process_time) for name in ("character_bags", "_scan")
    }
    before = {name: getattr(sketched, name) for name in patched}
    vars(sketched).update(patched)
    start = time.process_time()
    left["near"] = len(joined(sketched.join(side, side, THRESHOLD)))
    total = time.process_time() - start - seconds["again"]
    vars(sketched).update(before)
    for name in ("bags", "folded"):
        left[name] = round(sampled["all pairs"] * sampled[name] / max(1, sampled["pairs"]))
    share = min(1, sampled["bags seconds"] / max(1e-9, sampled["full seconds"]))
    found = {
        "preparation": seconds["preparation"],
        "bags": seconds["scan"] * share,
        "sketches": seconds["scan"] * (1 - share),
        "alignment": seconds["alignment"],
    }
    return {"seconds": {**found, "rest": total - sum(found.values())}, "left": dict(left)}


def dropped(side: SortedTexts) -> dict[str, float]:
    """The share of the pairs within the length window that other ways to search would still have to look at."""
    draw = random.Random(0)
    last = np.searchsorted(side.lengths, (200 - THRESHOLD) * side.lengths // THRESHOLD, "right")
    sizes = last - np.arange(len(last)) - 1
    rows = draw.choices(range(len(last)), sizes.tolist(), k=5000)
    drawn = [(side.texts[row], side.texts[draw.randrange(row + 1, last[row])]) for row in rows]
    return {
        **{f"rarest {q}-grams": rare_grams(drawn, side.texts, q) for q in (2, 3, 5)},
        "segments": segments(drawn),
        "boxes": boxes(side, rows[:300]),
    }


def limit(one: str, other: str) -> int:
    return (100 - THRESHOLD) * (len(one) + len(other)) // 100


def rare_grams(drawn: Drawn, texts: list[str], q: int) -> float:
    """An inverted index of the rarest q-grams, of which a near pair has one in common (Xiao et al., VLDB 2008)."""
    every = texts[:: max(1, len(texts) // 20_000)]
    common = Counter(text[place : place + q] for text in every for place in range(len(text) - q + 1))

    def rarest(text: str, shared: int) -> set[tuple[str, int]]:
        seen: Counter[str] = Counter()
        grams = []
        for place in range(len(text) - q + 1):
            gram = text[place : place + q]
            seen[gram] += 1
            grams.append((common[gram], gram, seen[gram]))
        return {(gram, number) for _, gram, number in islice(sorted(grams), max(0, len(grams) - shared + 1))}

    met = 0
    for one, other in drawn:
        shared = (len(one) + len(other) - 2 * (q - 1) - (2 * q - 1) * limit(one, other) + 1) // 2
        met += shared <= 0 or not rarest(one, shared).isdisjoint(rarest(other, shared))
    return met / len(drawn)


def segments(drawn: Drawn) -> float:
    """An index of D + 1 segments, of which one stands in the other text almost where it was (Li et al., VLDB 2011)."""
    met = 0
    for one, other in drawn:
        most = limit(one, other)
        borders = np.linspace(0, len(one), most + 2).astype(int).tolist()
        less, more = (most - len(other) + len(one)) // 2, (most + len(other) - len(one)) // 2
        met += any(one[start:end] in other[max(0, start - less) : end + more] for start, end in pairwise(borders))
    return met / len(drawn)


def boxes(side: SortedTexts, rows: list[int]) -> float:
    """Boxes around LEAF similar bags, the leaves of a k-d tree: pairs of a text and a box that the length leaves."""
    (bags,) = sketched.character_bags([side])
    leaves = [np.arange(len(bags))]
    while len(leaves[0]) > LEAF:
        halves = []
        for leaf in leaves:
            widest = bags[leaf].var(axis=0).argmax()
            order = np.argpartition(bags[leaf, widest], len(leaf) // 2)
            halves += [leaf[order[: len(leaf) // 2]], leaf[order[len(leaf) // 2 :]]]
        leaves = halves
    lowest, highest = (
        np.stack([side_of(bags[leaf], axis=0) for leaf in leaves]).astype(int) for side_of in (np.min, np.max)
    )
    longest = np.array([side.lengths[leaf].max() for leaf in leaves])
    shortest = np.array([side.lengths[leaf].min() for leaf in leaves])
    kept = within = 0
    for row in rows:
        length, bag = side.lengths[row], bags[row].astype(int)
        possible = ((200 - THRESHOLD) * longest >= THRESHOLD * length) & (
            THRESHOLD * shortest <= (200 - THRESHOLD) * length
        )
        apart = np.maximum(bag - highest, 0).sum(axis=1) + np.maximum(lowest - bag, 0).sum(axis=1)
        kept += int((possible & (apart <= (100 - THRESHOLD) * (length + longest) // 100)).sum())
        within += int(possible.sum())
    return kept / max(1, within)


if __name__ == "__main__":
    main(*sys.argv[1:])
