"""augment: rows added to the training rows, each with a source that says why; no other part is touched."""

from collections import Counter
from pathlib import Path

from stages.core import paths
from stages.core.errors import UserError, run
from stages.core.files import write_json
from stages.near_duplicates.pairs import cross_pairs
from stages.params import Augment, load_params
from stages.prepare.augment.malformed import malformed_rows
from stages.prepare.augment.mixture import balance_tasks, is_structured, plan, repeat_structured, training_order
from stages.prepare.augment.refusal import rows_that_can_refuse
from stages.prepare.augment.replay import read_replay, refuse_leaks
from stages.prepare.augment.value_swap import swapped_rows
from stages.records.canaries import make_canaries
from stages.records.content_order import rank
from stages.records.contract import Tasks
from stages.records.holdout_guard import refuse_overlap
from stages.records.record import REPLAY, Record, read_records, write_records
from stages.text.normal_form import asked, normalise, prompt_hash


def main() -> None:
    params = load_params("augment", "dedup.threshold", "seed", "task")
    settings, seed, threshold = params.augment, params.seed, params.dedup.threshold
    rows = read_records(paths.SPLIT_TRAIN)
    if not rows:
        raise UserError(f"{paths.SPLIT_TRAIN} has no rows: all are hold-out, validation or quarantined; add raw rows")
    holdout = read_records(paths.HOLDOUT)
    held = read_records(paths.VALIDATION) + holdout

    swapped = unlike(_swapped(rows, held, settings, seed), held, threshold)
    malformed = unlike(_malformed(rows, held, settings, Tasks(params.task), seed), held, threshold)
    replay = _replay(held, settings, threshold, seed)
    balance = balance_tasks(rows + swapped, settings.smallest_task_share, seed)
    task = rows + swapped + balance + malformed
    repeats, taken = plan(
        len(task),
        sum(is_structured(row.completion) for row in task),
        len(replay),
        settings.structured_share,
        settings.replay_share,
    )
    structured = repeat_structured(rows, repeats, seed)
    canaries = make_canaries(settings.canaries, seed) * settings.canary_repeats
    out = training_order(task + structured + replay[:taken] + canaries, seed)
    refuse_overlap("the training rows", out, {row.id for row in holdout}, {prompt_hash(asked(row)) for row in holdout})

    write_records(paths.TRAIN, out)
    added = {
        "value_swapped": len(swapped),
        "task_balance": len(balance),
        "malformed": len(malformed),
        "structured": repeats,
        "replay": taken,
        "canary": len(canaries),
    }
    assert len(out) == len(rows) + sum(added.values()), "a row was lost or came from nowhere"
    with_json = sum(is_structured(row.completion) for row in out)
    counts = {"in": len(rows), "out": len(out), "structured": with_json}
    tasks = _tasks(rows, out)
    write_json(paths.AUGMENT_METRICS, {"rows": counts, "added": added, **({"tasks": tasks} if tasks else {})})
    words = ", ".join(f"{count} {kind}" for kind, count in added.items())
    print(f"{len(rows)} rows in; added {words}; {len(out)} rows out, {with_json} with a JSON completion")


def unlike(made: list[Record], held: list[Record], threshold: int) -> list[Record]:
    """The made rows without those that came out like a row of the hold-out or validation."""
    texts, held_texts = ([normalise(asked(row)) for row in some] for some in (made, held))
    near = {pair.left for pair in cross_pairs(texts, held_texts, threshold)}
    return [row for position, row in enumerate(made) if position not in near]


def _swapped(rows: list[Record], held: list[Record], settings: Augment, seed: int) -> list[Record]:
    count = round(settings.value_swapped_per_row * len(rows))
    return swapped_rows(rows, count, {normalise(asked(row)) for row in rows + held}, seed) if count else []


def _malformed(rows: list[Record], held: list[Record], settings: Augment, tasks: Tasks, seed: int) -> list[Record]:
    if settings.malformed_every is None:
        return []
    able = rows_that_can_refuse(rows, settings.malformed_completion, tasks)
    known = {normalise(asked(row)) for row in rows + held}
    return malformed_rows(able, settings.malformed_every, settings.malformed_completion, known, seed)


def _tasks(rows: list[Record], out: list[Record]) -> dict[str, dict[str, int]]:
    """Rows before and after of every tag, general replay rows left out; empty where no row has one."""
    before, after = Counter(row.task for row in rows), Counter(row.task for row in out if row.source != REPLAY)
    return {str(tag): {"in": before[tag], "out": after[tag]} for tag in sorted(before, key=str)} if any(before) else {}


def _replay(held: list[Record], settings: Augment, threshold: int, seed: int) -> list[Record]:
    """The replay rows in the order in which they are taken."""
    if not settings.replay_share:
        return []
    path = Path(settings.replay_file)
    replay = read_replay(path)
    refuse_leaks(replay, held, path, threshold)
    return sorted(replay, key=lambda row: rank(seed, "replay", row.id))


if __name__ == "__main__":
    run(main)
