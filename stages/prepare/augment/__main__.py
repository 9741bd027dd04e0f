"""augment: rows added to the training rows, each with a source that says why; no other part is touched."""

import gc
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from stages.core import paths
from stages.core.errors import UserError, run
from stages.core.files import write_json
from stages.core.run_notes import measured
from stages.near_duplicates.nearness import made_leaks
from stages.near_duplicates.pairs import cross_pairs
from stages.params.loader import load_params
from stages.prepare.augment.added_rows import (
    balance_tasks,
    malformed_rows,
    plan,
    repeat_structured,
    rows_that_can_refuse,
    swapped_rows,
    training_order,
)
from stages.prepare.augment.paraphrases import paraphrased_rows
from stages.records.canaries import make_canaries
from stages.records.prompt import compared, read_texts, refuse_overlap
from stages.records.record import REPLAY, Dropped, Record, rank, read_records, read_rows, write_records
from stages.text.json_schema import Tasks
from stages.text.strict_json import is_structured


def main() -> None:
    params = load_params("augment", "clean", "dedup.threshold", "seed", "split", "task")
    settings, seed, threshold = params.augment, params.seed, params.dedup.threshold
    rows = read_records(paths.SPLIT_TRAIN)
    if not rows:
        raise UserError(f"{paths.SPLIT_TRAIN} has no rows: all are hold-out, validation or quarantined; add raw rows")
    held = read_records(paths.VALIDATION) + read_records(paths.HOLDOUT)
    locked = {row["prompt_sha256"]: row["id"] for row in read_rows(paths.LOCKED)}  # in the data or not

    known = {compared(row) for row in rows + held}
    swapped = swapped_rows(rows, round(settings.value_swapped_per_row * len(rows)), known, seed)
    malformed, paraphrased = list[Record](), list[Record]()
    said: dict[str, Any] = {}  # of paraphrases, where there are any
    if settings.paraphrases.per_row:
        with measured("augment"):
            asking = settings.paraphrases, params.clean, params.task, threshold, seed
            paraphrased, left_out, said = paraphrased_rows(rows, *asking)
    if settings.malformed_every is not None:
        able = rows_that_can_refuse(rows, settings.malformed_completion, Tasks(params.task))
        malformed = malformed_rows(able, settings.malformed_every, settings.malformed_completion, known, seed)
    del known  # as large as the rows
    replay = (
        read_texts("augment.replay_file", settings.replay_file, {"prompt", "completion"})
        if settings.replay_share
        else []
    )
    # These texts are new, so dedup's near pairs do not have them: the one search of this stage.
    made = [*swapped, *malformed, *replay, *paraphrased]
    leaks = made_leaks(made, rows + held, held, locked, threshold, params.split.pair_threshold)
    refuse_leaks(replay, leaks, settings.replay_file)
    kinds = {"value_swapped": swapped, "malformed": malformed}
    near = {kind: Counter(leaks[row.id].reason for row in made if row.id in leaks) for kind, made in kinds.items()}
    swapped, malformed = ([row for row in made if row.id not in leaks] for made in kinds.values())

    if said:
        train = sorted({compared(row) for row in [*rows, *swapped, *malformed, *replay]})
        apart = [row for row in paraphrased if row.id not in leaks]
        left_out["near the hold-out or validation"] += len(paraphrased) - len(apart)
        close = {pair.left for pair in cross_pairs(list(map(compared, apart)), train, threshold)}
        left_out["near a training row"] += len(close)
        paraphrased = [row for place, row in enumerate(apart) if place not in close]
        if sum(left_out.values()) + len(paraphrased) != said["asked"]:
            raise RuntimeError("a paraphrase was lost or came from nowhere")
        said["dropped"] = dict(sorted(left_out.items()))

    balance = balance_tasks(rows + swapped + paraphrased, settings.smallest_task_share, seed)
    task = rows + swapped + paraphrased + balance + malformed
    structured = sum(is_structured(row.completion) for row in task)
    repeats, taken = plan(len(task), structured, len(replay), settings.structured_share, settings.replay_share)
    added = {
        "value_swapped": swapped,
        **({"paraphrase": paraphrased} if said else {}),
        "task_balance": balance,
        "malformed": malformed,
        "structured": repeat_structured(rows, repeats, seed),
        "replay": sorted(replay, key=lambda row: rank(seed, "replay", row.id))[:taken],
        "canary": make_canaries(settings.canaries, seed) * settings.canary_repeats,
    }
    out = training_order([*rows, *(row for made in added.values() for row in made)], seed)
    refuse_overlap("the training rows", out, locked)

    if len(out) != len(rows) + sum(map(len, added.values())):
        raise RuntimeError(f"{len(out)} rows out: one was lost or came from nowhere")
    write_records(paths.TRAIN, out)
    with_json = sum(is_structured(row.completion) for row in out)
    metrics = {
        "rows": {"in": len(rows), "out": len(out), "structured": with_json},
        "added": {kind: len(made) for kind, made in added.items()},
        **(
            {"left_out": {kind: dict(sorted(n.items())) for kind, n in near.items() if n}} if any(near.values()) else {}
        ),
    }
    write_json(paths.AUGMENT_METRICS, {**metrics, **_tasks(rows, out), **({"paraphrases": said} if said else {})})
    words = ", ".join(f"{len(made)} {kind}" for kind, made in added.items())
    less = "".join(f"; left out {n.total()} {kind} that split would quarantine" for kind, n in near.items() if n)
    print(f"{len(rows)} rows in; added {words}{less}; {len(out)} rows out, {with_json} with a JSON completion")


def refuse_leaks(replay: Iterable[Record], leaks: Mapping[str, Dropped], file: str) -> None:
    """Raises UserError when a replay row is what a split would keep from the hold-out or validation."""
    for row in replay:
        if row.id in leaks:
            line = row.origin.rpartition(":")[2]
            raise UserError(
                f"{file}, line {line}: {leaks[row.id].detail} in the hold-out or validation; remove the line"
            )


def _tasks(rows: list[Record], out: list[Record]) -> dict[str, dict[str, dict[str, int]]]:
    """Rows before and after of every tag, general replay rows left out; nothing where no row has one."""
    before, after = Counter(row.task for row in rows), Counter(row.task for row in out if row.source != REPLAY)
    tasks = {str(tag): {"in": before[tag], "out": after[tag]} for tag in sorted(before, key=str)}
    return {"tasks": tasks} if any(before) else {}


if __name__ == "__main__":
    gc.disable()  # millions of rows, in which no cycles are
    run(main)
