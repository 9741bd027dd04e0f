"""`tunetrail holdout draw`: draw the hold-out once, or take a source that people bring, and lock it."""

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import file_digest, read_json
from stages.params import Params, load_params
from stages.prepare.split.holdout import draw_holdout, table
from stages.prepare.split.lock import Drawn, DrawnLabel, WholeSource, make_lock, write_lock
from stages.prepare.split.nearness import Nearness
from stages.prepare.split.source import source_table, take_source
from stages.records.dropped import read_rejected
from stages.records.record import Record, read_records


def draw(redraw: bool, source: str | None = None) -> None:
    """Draw the hold-out from data/unique.jsonl, or take all rows of `source`; write the lock and print its labels.

    Raises:
        UserError: when there is a lock and `redraw` is not set, no data, no row that could be drawn, or no such source.
    """
    params = load_params("dedup", "holdout", "seed", "split")
    path = Path(params.holdout.lock)
    if path.exists() and not redraw:
        of_source = f" --source {shlex.quote(source)}" if source else ""
        raise UserError(
            f"{path} exists, and the hold-out stays the same so that results can be compared; "
            f"to draw another one on purpose: `tunetrail holdout draw --redraw{of_source}`"
        )
    if not paths.UNIQUE.is_file():
        raise UserError(f"{paths.UNIQUE} is missing; make it with `dvc repro dedup`, then draw")
    records = read_records(paths.UNIQUE)
    drawn, how, lines = _source(records, source) if source is not None else _share(records, params)
    write_lock(path, make_lock(drawn, how))
    print("\n".join(lines))
    print(f"{len(drawn)} rows locked in {path}; commit it, then run `dvc repro`")


def _share(records: list[Record], params: Params) -> tuple[list[Record], Drawn, Iterable[str]]:
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
    return drawn, how, table(strata)


def _source(records: list[Record], source: str) -> tuple[list[Record], WholeSource, Iterable[str]]:
    found = take_source(records, read_rejected(paths.DUPLICATES), source)
    how = WholeSource(
        labels=[
            DrawnLabel(label=label, rows=rows, quota=locked, drawn=locked)
            for label, (rows, locked) in found.labels().items()
        ],
        rows=len(records),
        source=source,
        unique_md5=file_digest(paths.UNIQUE, "md5"),
    )
    return found.records, how, [*source_table(found), *_rejected(source)]


def _rejected(source: str) -> Iterator[str]:
    """A line about rows of the source that the clean stage took for none."""
    sources = read_json(paths.CLEAN_METRICS)["sources"] if paths.CLEAN_METRICS.is_file() else {}
    if source in sources and (count := sources[source]["rows"]["rejected"]):
        yield f"warning: the clean stage rejected {count} more rows of the source; {paths.REJECTED_CLEAN} says why"
