"""split: the locked hold-out, and training and validation rows that do not leak into it."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import names, run
from stages.core.files import atomic, write_json
from stages.near_duplicates.nearness import distances, find_nearness
from stages.params.loader import load_params
from stages.params.prepare import Holdout
from stages.prepare.split.lock import Drawn, Lock, WholeSource, check_holdout, read_lock, said_of_missing
from stages.prepare.split.partition import Partition, partition, restore_locked, summarise
from stages.records.prompt import read_near_pairs, refuse_overlap
from stages.records.record import Dropped, Record, read_dropped, read_records, write_dropped, write_records, write_rows


def main() -> None:
    params = load_params("dedup.threshold", "holdout", "seed", "split")
    path = Path(params.holdout.lock)
    unique, duplicates, lock = read_records(paths.UNIQUE), read_dropped(paths.DUPLICATES), read_lock(path)
    restored = restore_locked(unique, duplicates, {row.id for row in lock.rows})
    records = unique + restored
    near_prompts = read_near_pairs(paths.NEAR_PAIRS, params.dedup.threshold)
    nearness = find_nearness(records, near_prompts, params.split.pair_threshold)
    parts = partition(records, lock, nearness, params.split, params.seed)
    check_holdout(path, lock, parts.holdout)
    refuse_overlap("training or validation", parts.train + parts.validation, lock.prompts())
    metrics = summarise(len(records), parts, len(restored), lock)
    rows_in, *rows_out = metrics["rows"].values()
    if rows_in != sum(rows_out):
        raise RuntimeError(f"of {rows_in} rows {sum(rows_out)} are in a part: one is in none or in two")

    _write_parts(parts, lock)
    write_dropped(paths.QUARANTINE, parts.quarantined + parts.beyond_max)
    write_json(paths.SPLIT_METRICS, metrics)
    _show(metrics, lock, params.holdout, came_later(unique, duplicates, lock))


def came_later(unique: Sequence[Record], duplicates: Sequence[Dropped], lock: Lock) -> int:
    """How many rows, each id once, have come to the source that was locked; 0 where none was."""
    if isinstance(lock.drawn, Drawn):
        return 0
    everything = [*unique, *(rejected.record for rejected in duplicates)]
    return len({row.id for row in everything if row.source == lock.drawn.source} - {row.id for row in lock.rows})


def _write_parts(parts: Partition, lock: Lock) -> None:
    """All files or none: the folder is renamed as a whole."""
    slices = {row.id: {"slice": row.slice} for row in lock.rows if row.slice}  # of rows that were added later

    def write(folder: Path, train: Sequence[Record], validation: Sequence[Record]) -> None:
        write_records(folder / paths.SPLIT_TRAIN.name, train)
        write_records(folder / paths.VALIDATION.name, validation)

    with atomic(paths.SPLIT_TRAIN.parent) as folder:
        write(folder, parts.train, parts.validation)
        write_records(folder / paths.HOLDOUT.name, parts.holdout)
        write_rows(folder / paths.LOCKED.name, (row.model_dump(include={"id", "prompt_sha256"}) for row in lock.rows))
        nearest = distances(parts.holdout, parts.train)
        write_rows(folder / paths.NEAREST.name, [row | slices.get(row["id"], {}) for row in nearest])
        for number in range(1, len(parts.folds) + 1):
            write(folder / "folds" / str(number), *parts.fold(number))


def _show(metrics: dict[str, Any], lock: Lock, params: Holdout, later: int) -> None:
    print(", ".join(f"{name} {count}" for name, count in metrics["rows"].items()))
    if lost := [label for label, count in metrics["labels"].items() if not count["train"]]:
        print(f"warning: {len(lost)} labels have no training row; add some: {names(lost)}")
    locked = metrics["locked"]
    if locked["missing"]:
        print(said_of_missing(locked["missing"], locked["rows"]))
    if locked["restored"]:
        print(f"{locked['restored']} locked rows came back from {paths.DUPLICATES}; other rows had stood for them")
    if isinstance(lock.drawn, WholeSource):
        if later:
            print(f"warning: {later} rows of {lock.drawn.source} came after {params.lock} and are not locked")
    elif (lock.drawn.share, lock.drawn.max_rows) != (params.share, params.max_rows):
        print(
            f"holdout.share and max_rows act at the next draw; {params.lock} is of {lock.drawn.share} and "
            f"{lock.drawn.max_rows}"
        )


if __name__ == "__main__":
    gc.disable()  # millions of rows, in which no cycles are
    run(main)
