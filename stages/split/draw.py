"""`tunetrail holdout draw`: draw the hold-out once, and lock it."""

from pathlib import Path

from stages import paths
from stages.errors import UserError
from stages.files import file_digest
from stages.params import load_params
from stages.records import read_records
from stages.split.holdout import draw_holdout, table
from stages.split.lock import Drawn, DrawnLabel, make_lock, write_lock
from stages.split.nearness import Nearness


def draw(redraw: bool) -> None:
    """Draw the hold-out from data/unique.jsonl, write the lock and print a table of the labels.

    Raises:
        UserError: when there is a lock and `redraw` is not set, no data, or no row that could be drawn.
    """
    params = load_params("dedup", "holdout", "seed", "split")
    path = Path(params.holdout.lock)
    if path.exists() and not redraw:
        raise UserError(
            f"{path} exists, and the hold-out stays the same so that results can be compared; "
            "to draw another one on purpose: `tunetrail holdout draw --redraw`"
        )
    if not paths.UNIQUE.is_file():
        raise UserError(f"{paths.UNIQUE} is missing; make it with `dvc repro dedup`, then draw")

    records = read_records(paths.UNIQUE)
    share, max_rows = params.holdout.share, params.holdout.max_rows
    nearness = Nearness(params.dedup.threshold, params.split.pair_threshold)
    drawn, strata = draw_holdout(records, nearness, share, max_rows, params.seed)
    if not drawn:
        raise UserError(
            f"no row can be drawn from the {len(records)} of {paths.UNIQUE}; add rows that are not near-duplicates "
            "of each other, or raise holdout.share"
        )
    how = Drawn(
        labels=[DrawnLabel(label=s.label, rows=s.rows, quota=s.quota, drawn=s.drawn) for s in strata],
        max_rows=max_rows,
        pair_threshold=nearness.pair,
        rows=len(records),
        seed=params.seed,
        share=share,
        threshold=nearness.prompt,
        unique_md5=file_digest(paths.UNIQUE, "md5"),
    )
    write_lock(path, make_lock(drawn, how))
    print("\n".join(table(strata)))
    print(f"{len(drawn)} of {len(records)} rows locked in {path}; commit it, then run `dvc repro`")
