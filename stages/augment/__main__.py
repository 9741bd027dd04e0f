"""augment: value-swapped, malformed-input, structured and general replay rows added to the training rows."""

from pathlib import Path

from stages import paths
from stages.augment.malformed import malformed_rows
from stages.augment.mixture import check_malformed_completion, is_structured, plan, repeat_structured, training_order
from stages.augment.replay import read_replay, refuse_leaks
from stages.augment.value_swap import swapped_rows
from stages.errors import UserError, run
from stages.files import write_json
from stages.near_duplicates import cross_pairs
from stages.params import Augment, load_params
from stages.prompts import asked, normalise
from stages.records import Record, read_records, write_records
from stages.seeded import rank


def main() -> None:
    params = load_params("augment", "dedup", "seed")
    settings, seed = params.augment, params.seed
    rows = read_records(paths.SPLIT_TRAIN)
    if not rows:
        raise UserError(f"{paths.SPLIT_TRAIN} has no rows: all are hold-out, validation or quarantined; add raw rows")
    held = read_records(paths.VALIDATION) + read_records(paths.HOLDOUT)

    swapped = _swapped(rows, held, settings, params.dedup.threshold, seed)
    malformed = _malformed(rows, held, settings, seed)
    replay = _replay(held, settings, seed)
    task = rows + swapped + malformed
    repeats, taken = plan(
        len(task),
        sum(is_structured(row.completion) for row in task),
        len(replay),
        settings.structured_share,
        settings.replay_share,
    )
    structured = repeat_structured(rows, repeats, seed)
    out = training_order(task + structured + replay[:taken], seed)

    write_records(paths.TRAIN, out)
    added = {"value_swapped": len(swapped), "malformed": len(malformed), "structured": repeats, "replay": taken}
    with_json = sum(is_structured(row.completion) for row in out)
    counts = {"in": len(rows), "out": len(out), "structured": with_json}
    write_json(paths.AUGMENT_METRICS, {"rows": counts, "added": added})
    words = ", ".join(f"{count} {kind}" for kind, count in added.items())
    print(f"{len(rows)} rows in; added {words}; {len(out)} rows out, {with_json} with a JSON completion")


def _swapped(rows: list[Record], held: list[Record], settings: Augment, threshold: int, seed: int) -> list[Record]:
    """Rows with exchanged values, without those that came out like a held row."""
    count = round(settings.value_swapped_per_row * len(rows))
    if not count:
        return []
    made = swapped_rows(rows, count, {normalise(asked(row)) for row in rows + held}, seed)
    texts, held_texts = ([normalise(asked(row)) for row in some] for some in (made, held))
    near = {pair.left for pair in cross_pairs(texts, held_texts, threshold)}
    return [row for position, row in enumerate(made) if position not in near]


def _malformed(rows: list[Record], held: list[Record], settings: Augment, seed: int) -> list[Record]:
    if settings.malformed_every is None:
        return []
    check_malformed_completion(settings.malformed_completion, rows)
    known = {normalise(asked(row)) for row in rows + held}
    return malformed_rows(rows, settings.malformed_every, settings.malformed_completion, known, seed)


def _replay(held: list[Record], settings: Augment, seed: int) -> list[Record]:
    """The replay rows in the order in which they are taken."""
    if not settings.replay_share:
        return []
    path = Path(settings.replay_file)
    replay = read_replay(path)
    refuse_leaks(replay, held, path)
    return sorted(replay, key=lambda row: rank(seed, "replay", row.id))


if __name__ == "__main__":
    run(main)
