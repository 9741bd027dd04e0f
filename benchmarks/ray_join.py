"""The exact join on a Ray cluster beside that of one machine: one table from one run, clusters of this machine's cores.

    python -m benchmarks.ray_join --rows 100000 --output benchmarks/results/ray_join.md

Each worker of a cluster has one core, the head none. Every run must find the pairs of the first. In the last run one of
two workers is killed when a quarter of the tiles is finished. The time of a run includes connecting to the cluster.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from benchmarks.dedup import describe_machine
from benchmarks.prompts import make_prompts
from stages.core import cluster as on_ray
from stages.near_duplicates import pairs
from stages.near_duplicates.rule import Pair

Timed = tuple[float, list[Pair], int]
THRESHOLD = 90
MEMORY = 200 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.pop("TUNETRAIL_RAY", None)
    machine, load = describe_machine(), os.getloadavg()[0]
    texts = make_prompts(options.rows).texts
    pairs.near_pairs(texts[:2000], THRESHOLD)  # compiles
    root = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where tiles are kept
        try:
            runs = [("one machine, all cores", *timed(texts)), *on_cluster(texts)]
            runs.append(("one machine again", *timed(texts)))  # for the machine is shared
        finally:
            os.chdir(root)
    expected, seconds = runs[0][2], (runs[0][1] + runs[-1][1]) / 2
    if wrong := [name for name, _, found, _ in runs if found != expected]:
        sys.exit(f"other pairs than those of one machine: {', '.join(wrong)}")
    lines = [
        "# The exact join on a Ray cluster",
        "",
        f"`python -m benchmarks.ray_join --rows {options.rows}`: generated prompts, `rapidfuzz.fuzz.ratio` of at least",
        f"{THRESHOLD}, all {len(expected):,} pairs the same in every run. Ray {version('ray')}, {machine['cpu']},",
        f"{machine['cores']} cores that other work shared (load {load:.1f} before, {os.getloadavg()[0]:.1f} after):",
        "the ratios are rough, and all workers are processes of this one machine. They show what Ray costs, not what",
        "more machines bring. A run on the cluster includes connecting to it.",
        "",
        "| run | tiles computed | seconds | to the mean of one machine |",
        "|---|---:|---:|---:|",
        *(f"| {name} | {tiles or ''} | {s:.1f} | {s / seconds:.2f} |" for name, s, _, tiles in runs),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


def timed(texts: list[str], tick: Callable[[int], None] = lambda finished: None) -> Timed:
    """Seconds, pairs, and how many tiles came from a cluster, each of which calls `tick`."""
    finish, finished = on_ray._finish, 0

    def counted(path: Path, found: bytes) -> None:
        nonlocal finished
        finish(path, found)
        finished += 1
        tick(finished)

    on_ray._finish = counted
    start = time.perf_counter()
    try:
        found = pairs.near_pairs(texts, THRESHOLD)
    finally:
        on_ray._finish = finish
    return time.perf_counter() - start, found, finished


def on_cluster(texts: list[str]) -> Iterator[tuple[str, float, list[Pair], int]]:
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        os.environ["TUNETRAIL_RAY"] = cluster.address
        workers = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY)]
        pairs.near_pairs(texts[:2000], THRESHOLD)  # sends the code, and compiles it
        seconds, found, tiles = timed(texts)
        yield "Ray, 1 worker", seconds, found, tiles
        workers.append(cluster.add_node(num_cpus=1, object_store_memory=MEMORY))
        yield "Ray, 2 workers", *timed(texts)

        def kill(finished: int) -> None:
            if finished == max(1, tiles // 4):
                cluster.remove_node(workers[0], allow_graceful=False)

        yield "Ray, 2 workers, one killed", *timed(texts, kill)
    finally:
        del os.environ["TUNETRAIL_RAY"]
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
