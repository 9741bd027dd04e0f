"""One contender of benchmarks/dedup.py, in a process of its own: python dedup_contenders.py NAME TEXTS.json PAIRS.npy

Prints JSON: seconds of the search, CPU seconds of all cores, peak memory, version. Importing the library, reading texts
and writing pairs are not counted, but for numba, which ours loads only when it has much to do. A contender that only
proposes or clusters texts is taken by its word: what it puts together are its pairs.
"""

import importlib.metadata
import json
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np

THRESHOLD = 90
GRAM = 5  # characters; the hashes of one text, in bands of 8
HASHES, BANDS = 128, 16

Pairs = Iterable[tuple[int, int]]


def ours(texts: list[str]) -> Callable[[], Pairs]:
    from stages.near_duplicates.pairs import near_pairs

    return lambda: [(pair.left, pair.right) for pair in near_pairs(texts, THRESHOLD)]


def rapidfuzz_full(texts: list[str]) -> Callable[[], Pairs]:
    """Every distance of every pair in full."""
    return rapidfuzz(texts, cutoff=0)


def rapidfuzz(texts: list[str], cutoff: int = THRESHOLD) -> Callable[[], Pairs]:
    """Every pair once, in tiles: half the matrix. Below `cutoff`, a distance need not be finished."""
    from rapidfuzz import fuzz, process

    tile = 2000

    def search() -> Iterator[tuple[int, int]]:
        for top in range(0, len(texts), tile):
            for left in range(top, len(texts), tile):
                rows, columns = texts[top : top + tile], texts[left : left + tile]
                scores = process.cdist(
                    rows, columns, scorer=fuzz.ratio, score_cutoff=cutoff, dtype=np.float64, workers=-1
                )
                for row, column in np.argwhere(scores >= THRESHOLD).tolist():
                    if top + row < left + column:
                        yield top + row, left + column

    return search


def datasketch(texts: list[str]) -> Callable[[], Pairs]:
    from datasketch import MinHash, MinHashLSH

    def search() -> Iterator[tuple[int, int]]:
        index = MinHashLSH(num_perm=HASHES, params=(BANDS, HASHES // BANDS))
        for place, text in enumerate(texts):
            signature = MinHash(num_perm=HASHES)
            signature.update_batch([gram.encode() for gram in grams(text)])
            yield from ((other, place) for other in index.query(signature))
            index.insert(place, signature)

    return search


def rensa(texts: list[str]) -> Callable[[], Pairs]:
    from rensa import RMinHash, RMinHashLSH

    def search() -> Iterator[tuple[int, int]]:
        signatures = RMinHash.from_token_sets((grams(text) for text in texts), HASHES, 42)
        index = RMinHashLSH(THRESHOLD / 100, HASHES, BANDS)
        index.insert_many(signatures)
        for place, others in enumerate(index.query_all(signatures)):
            yield from ((place, other) for other in others if place < other)

    return search


def semhash(texts: list[str]) -> Callable[[], Pairs]:
    from semhash import SemHash

    index = SemHash.from_records(["warm"])  # loads its model
    place = {text: number for number, text in enumerate(texts)}

    def search() -> Iterator[tuple[int, int]]:
        found = SemHash.from_records(texts, model=index.model).self_deduplicate(threshold=THRESHOLD / 100)
        for row in found.filtered:
            for other, _ in row.duplicates:
                yield tuple(sorted((place[row.record], place[other])))

    return search


def text_dedup(texts: list[str]) -> Callable[[], Pairs]:
    """Its MinHash command with its defaults (word 5-grams, 250 hashes, similarity 0.7) on a data set on disk."""
    import text_dedup.minhash as command
    from datasets import Dataset

    folder = Path(tempfile.mkdtemp())
    Dataset.from_dict({"text": texts}).save_to_disk(folder / "in")
    places = ["--path", str(folder / "in"), "--output", str(folder / "out"), "--column", "text"]

    def search() -> Iterator[tuple[int, int]]:
        command.main([*places, "--local", "--num_proc", str(os.cpu_count())], standalone_mode=False)
        clusters = defaultdict(list)
        for number in range(len(texts)):
            clusters[command.uf.find(number)].append(number)
        for members in clusters.values():
            yield from combinations(members, 2)

    return search


def grams(text: str) -> list[str]:
    return [text[place : place + GRAM] for place in range(max(1, len(text) - GRAM + 1))]


PACKAGES = {ours: "numba", rapidfuzz: "rapidfuzz", rapidfuzz_full: "rapidfuzz"}
PACKAGES |= {datasketch: "datasketch", rensa: "rensa", semhash: "semhash", text_dedup: "text-dedup"}


def main(name: str, texts_file: str, pairs_file: str) -> None:
    contender = next(function for function in PACKAGES if function.__name__ == name)
    version = importlib.metadata.version(PACKAGES[contender])
    search = contender(json.loads(Path(texts_file).read_text(encoding="utf-8")))
    start, used = time.perf_counter(), sum(os.times()[:4])
    pairs = list(search())
    seconds, cpu_seconds = time.perf_counter() - start, sum(os.times()[:4]) - used
    row = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak_mib(), "version": version}
    np.save(pairs_file, np.array(pairs, np.int64).reshape(-1, 2))
    print(json.dumps(row))


def peak_mib() -> int:
    """The most memory that this program held. getrusage would count that of the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.M)[1]) // 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
