"""The join on many machines: large tiles of pairs as tasks of a Ray cluster, each the join of one machine.

The join of a tile is that of its rows with its columns, so what a cluster finds is what one machine finds, in whatever
order tiles end and however often one is computed. Beside the texts, which the caller has, this process holds the pairs
and the texts of the tiles under way; a task holds one tile. Each finished tile leaves a file, so that a killed process
goes on from there.
"""

import hashlib
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

import stages
from stages.core import files
from stages.core.errors import UserError
from stages.core.paths import of_checkout
from stages.core.run_notes import track
from stages.near_duplicates import pairs
from stages.near_duplicates.pairs import Found, SortedTexts, Tile, sorted_by_length, tiles

_SIDE = 16_384  # texts: a second of work or so, and some 10 MB of texts
_FINISHED = Path(".tunetrail/tiles")
_CODE = Path(str(stages.__file__)).parent
_SECONDS = 10  # for an answer of the cluster
_DIGEST = hashlib.sha256().digest_size

Arguments = tuple[Sequence[str], Sequence[str] | None, int]


def join(left: SortedTexts, right: SortedTexts, threshold: int, address: str) -> Iterator[Found]:
    """All near pairs of the two sides, a tile at a time; within one side (`left is right`) each pair once.

    Raises UserError where Ray is not installed, the cluster at `address` does not answer, or a task cannot run there.
    """
    same = left is right
    cover = list(tiles(left, right, threshold, range(len(left.texts)), _SIDE, _SIDE))

    def arguments(tile: Tile) -> Arguments:
        rows = left.texts[tile.top : tile.bottom]
        # Within one side the first tile of each run of rows is the square on the diagonal.
        return rows, None if same and tile.first == tile.top else right.texts[tile.first : tile.last], threshold

    folder = of_checkout(_FINISHED) / _key(left, right, threshold)
    try:
        for tile, found in map_tiles(near_in_tile, cover, arguments, folder, address):
            yield found + np.array([tile.top, tile.first, 0, 0], np.int32)
    except GeneratorExit:  # the caller has had too many pairs and would have again
        files.remove(folder)
        raise
    files.remove(folder)


def near_in_tile(rows: Sequence[str], columns: Sequence[str] | None, threshold: int) -> Found:
    """The near pairs of two runs of sorted texts, or within `rows`, by their places in these; on one core."""
    pairs.THREADS = 1  # the cluster shares out cores by tasks
    left = sorted_by_length(rows)
    right = left if columns is None else sorted_by_length(columns)
    return pairs.joined(pairs.on_this_machine(left, right, threshold))


def map_tiles(
    function: Callable[..., Found],
    todo: Sequence[Tile],
    arguments: Callable[[Tile], Arguments],
    folder: Path,
    address: str,
) -> Iterator[tuple[Tile, Found]]:
    """Each tile with `function` of its arguments, in the order in which they end; those finished in `folder` first."""
    left_over = []
    ticks = iter(track(range(len(todo)), len(todo), "near-duplicates, tiles on the cluster"))
    for tile in todo:
        if (found := _finished(folder / "-".join(map(str, tile)))) is None:
            left_over.append(tile)
        else:
            next(ticks)
            yield tile, found
    if left_over:
        with _cluster(address) as ray:
            remote = ray.remote(num_cpus=1, max_retries=-1)(function)  # a machine may die any number of times
            running: dict[Any, Tile] = {}
            while left_over or running:
                while left_over and len(running) < 2 * max(1, ray.cluster_resources().get("CPU", 1)):
                    tile = left_over.pop(0)
                    running[remote.remote(*arguments(tile))] = tile
                (done, *_), _ = ray.wait(list(running), num_returns=1)
                tile, found = running.pop(done), ray.get(done)
                _finish(folder / "-".join(map(str, tile)), found)
                next(ticks)
                yield tile, found
    next(ticks, None)


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster, whose workers import this very code."""
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise UserError("TUNETRAIL_RAY: ray is not installed; install it: pip install 'tunetrail[ray]'") from None
    advice = f"TUNETRAIL_RAY={address}: no Ray cluster answers there; start one (docs/many-machines.md) or unset it"
    if address != "auto":  # Ray itself tries for minutes
        try:
            place = urlsplit(address if "://" in address else f"//{address}")
            socket.create_connection((place.hostname or "", place.port or 0), _SECONDS).close()
        except (OSError, ValueError) as error:
            raise UserError(f"{advice} ({error})") from None
    shipped = {"py_modules": [str(_CODE)], "excludes": ["__pycache__"]}
    try:
        ray.init(address, runtime_env=shipped, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError, another version of Ray or Python
        raise UserError(f"{advice} ({str(error).strip().partition(chr(10))[0]})") from None
    try:
        yield ray
    except RayError as error:
        last = str(error).strip().rpartition("\n")[2]
        raise UserError(
            f"TUNETRAIL_RAY={address}: the cluster could not compute a tile: {last}; each of its machines needs the "
            "packages of this project (docs/many-machines.md); finished tiles are kept, run again to go on"
        ) from error
    finally:
        ray.shutdown()


def _key(left: SortedTexts, right: SortedTexts, threshold: int) -> str:
    """A hash of what the tiles' results depend on: texts, rule, code."""
    digest = hashlib.sha256(json.dumps([threshold, _SIDE, files.tree_digest(Path(__file__).parent)]).encode())
    for side in (left, right)[: 1 if left is right else 2]:
        digest.update(b"side")
        for text in side.texts:
            digest.update(json.dumps(text).encode())
    return digest.hexdigest()


def _finish(path: Path, found: Found) -> None:
    content = found.tobytes()
    with files.atomic(path) as partial:
        partial.write_bytes(hashlib.sha256(content).digest() + content)


def _finished(path: Path) -> Found | None:
    """What a tile left behind; None where it left nothing, or not all of it."""
    with suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]:
            return np.frombuffer(content[_DIGEST:], np.int32).reshape(-1, 4)
    return None
