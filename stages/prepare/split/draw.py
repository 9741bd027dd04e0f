"""`tunetrail holdout draw`: draw the hold-out once, or take a source that people bring, and lock it."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from stages.core import paths
from stages.core.errors import UserError, names
from stages.core.files import changing, file_digest, read_json
from stages.near_duplicates.nearness import Nearness, find_nearness, near_groups, quarantine
from stages.params.loader import Params, load_params
from stages.prepare.split.lock import (
    Added,
    Drawn,
    DrawnLabel,
    Lock,
    WholeSource,
    check_holdout,
    make_lock,
    read_lock,
    said_of_missing,
    with_slice,
    write_lock,
)
from stages.prepare.split.partition import Label, Stratum, label_name, restore_locked, stratified_draw
from stages.records.prompt import read_near_pairs
from stages.records.record import Dropped, Record, read_dropped, read_records


def draw(redraw: bool, source: str | None = None, add: str | None = None) -> None:
    """Draw the hold-out from data/unique.jsonl, or take all rows of `source`; write the lock and print its labels.

    `add` is a source from which a slice is drawn beside the rows that are locked already, which stay.
    """
    params = load_params("dedup.threshold", "holdout", "seed", "split")
    path = Path(params.holdout.lock)
    if add and (redraw or source):
        raise UserError("--add draws a slice beside the locked rows; leave --redraw and --source out")
    with changing(path.parent):
        if path.exists() and not redraw and not add:
            raise UserError(
                f"{path} exists, and the hold-out stays the same so that results can be compared; to draw another one "
                "on purpose, add --redraw"
            )
        if not paths.UNIQUE.is_file():
            raise UserError(f"{paths.UNIQUE} is missing; make it with `dvc repro dedup`, then draw")
        records = read_records(paths.UNIQUE)
        if add:
            drawn, lock, lines = _slice(records, read_lock(path), params, add)
        else:
            drawn, how, lines = _share(records, params) if source is None else _source(records, source)
            lock = make_lock(drawn, how)
        write_lock(path, lock)
    print("\n".join(lines))
    print(f"{len(drawn)} rows locked in {path}; commit it, then run `dvc repro`")


def _slice(records: list[Record], lock: Lock, params: Params, source: str) -> tuple[list[Record], Lock, list[str]]:
    """The slice of a source, of rows that are not near a locked one, and the lock with it."""
    if source in {added.source for added in lock.added}:
        raise UserError(f"the hold-out has a slice of {source!r} already; give later rows a source of their own")
    locked = {row.id for row in lock.rows}
    data = records + restore_locked(records, read_dropped(paths.DUPLICATES), locked)
    holdout = [row for row in data if row.id in locked]
    free, near = quarantine(_of_source(records, source, locked), holdout, lock.prompts(), _nearness(data, params))
    check_holdout(Path(params.holdout.lock), lock, holdout)
    drawn, how, lines = _share(free, params)
    if len(holdout) < len(locked):
        lines.append(said_of_missing(len(locked) - len(holdout), len(locked)))
    if near:
        lines.append(f"{len(near)} rows of the source are near a locked row; they are neither drawn nor trained on")
    seen = [row for file in (paths.SPLIT_TRAIN, paths.VALIDATION) if file.is_file() for row in read_records(file)]
    if known := len({row.id for row in seen} & {row.id for row in drawn}):
        lines.append(f"warning: the last run trained on {known} of these rows; its model cannot be judged by them")
    return drawn, with_slice(lock, drawn, Added(**how.model_dump(), source=source)), lines


def _nearness(records: Sequence[Record], params: Params) -> Nearness:
    near_prompts = read_near_pairs(paths.NEAR_PAIRS, params.dedup.threshold)
    return find_nearness(records, near_prompts, params.split.pair_threshold)


def _share(records: list[Record], params: Params) -> tuple[list[Record], Drawn, list[str]]:
    share, max_rows, threshold = params.holdout.share, params.holdout.max_rows, params.split.pair_threshold
    nearness = _nearness(records, params)
    drawn, strata = draw_holdout(records, nearness, share, max_rows, params.seed)
    if not drawn:
        largest = max(map(len, near_groups(records, nearness)), default=0)
        raise UserError(
            f"no row can be drawn from the {len(records)} of {paths.UNIQUE}: rows with near prompts stay together (the "
            f"largest group has {largest}), and training keeps one row of each label; add rows or raise holdout.share"
        )
    how = Drawn(
        labels=[DrawnLabel(label=s.label, rows=s.rows, quota=s.quota, drawn=s.drawn) for s in strata],
        max_rows=max_rows,
        pair_threshold=threshold,
        rows=len(records),
        seed=params.seed,
        share=share,
        threshold=params.dedup.threshold,
        unique_md5=file_digest(paths.UNIQUE, "md5"),
    )
    lines = strata_table(strata)
    if none := [label_name(s.label) for s in strata if not s.drawn]:
        lines.append(f"{len(none)} labels have no row in the hold-out, for training keeps one of each: {names(none)}")
    return drawn, how, lines


def draw_holdout(
    records: Sequence[Record], nearness: Nearness, share: float, max_rows: int, seed: int
) -> tuple[list[Record], list[Stratum]]:
    """Draw `share` of the records, at most `max_rows`, by label and in whole groups of near-duplicates."""
    if not records:
        return [], []
    # By way of its text, 0.15 is 15/100 and not the binary number beside it.
    wanted = min(Fraction(str(share)), Fraction(max_rows, len(records)))
    return stratified_draw(near_groups(records, nearness), wanted, seed, "hold-out")


def strata_table(strata: Sequence[Stratum]) -> list[str]:
    columns = ("rows", "ideal", "drawn", "kept back by groups")
    return _table({s.label: (s.rows, float(s.ideal), s.drawn, s.quota - s.drawn) for s in strata}, columns)


def _table(rows: Mapping[Label, Sequence[float]], columns: Sequence[str]) -> list[str]:
    """The lines of a table with one line for each label and the sum."""
    import pandas as pd

    table = pd.DataFrame(list(rows.values()), pd.Index(map(label_name, rows)), pd.Index(columns, name="label"))
    table = pd.concat([table, table.agg(["sum"]).rename(index={"sum": "all"})])
    lines: list[str] = table.to_string(float_format="{:.2f}".format).splitlines()
    return lines


def _source(records: list[Record], source: str) -> tuple[list[Record], WholeSource, list[str]]:
    found = take_source(records, read_dropped(paths.DUPLICATES), source)
    counts = found.labels()
    how = WholeSource(
        labels=[DrawnLabel(label=label, rows=rows, quota=n, drawn=n) for label, (rows, n) in counts.items()],
        rows=len(records),
        source=source,
        unique_md5=file_digest(paths.UNIQUE, "md5"),
    )
    columns = ("rows", "locked", "repeats of locked rows")
    lines = [
        *_table({label: (rows, n, rows - n) for label, (rows, n) in counts.items()}, columns),
        f"{len(found.restored)} of the locked rows dedup had dropped for a row like them; the split brings them back",
    ]
    sources = read_json(paths.CLEAN_METRICS)["sources"] if paths.CLEAN_METRICS.is_file() else {}
    if source in sources and (count := sources[source]["rows"]["rejected"]):
        lines.append(f"warning: clean rejected {count} more rows of the source; {paths.REJECTED_CLEAN} says why")
    return found.records, how, lines


@dataclass(frozen=True, slots=True)
class SourceRows:
    """The rows of a source: how many have each id, one record for each, and the ids of those that dedup had dropped."""

    rows: Counter[str]
    records: list[Record]
    restored: set[str]

    def labels(self) -> dict[Label, tuple[int, int]]:
        """For each label its rows and its records; a row counts for the label of the record that stands for it."""
        rows: Counter[Label] = Counter()
        for record in self.records:
            rows[record.label] += self.rows[record.id]
        records = Counter(record.label for record in self.records)
        ordered = sorted(rows, key=lambda label: (label is None, label or ""))
        return {label: (rows[label], records[label]) for label in ordered}


def take_source(unique: Sequence[Record], duplicates: Sequence[Dropped], source: str) -> SourceRows:
    """All rows of the source, each id once: the set as published but for its exact repeats.

    A row that dedup dropped for a near one is locked itself, and not the one that stood for it, for what is near the
    former need not be near the latter. The split brings it back and keeps from training all that is near it.
    """
    everything = [*unique, *(rejected.record for rejected in duplicates)]
    rows = Counter(row.id for row in _of_source(everything, source))
    if all(row.id in rows for row in unique):
        raise UserError(f"every row is of the source {source!r}, and none would be left to train on; add other rows")
    restored = restore_locked(unique, duplicates, rows.keys())
    return SourceRows(
        rows=rows,
        records=sorted([row for row in unique if row.id in rows] + restored, key=lambda row: row.id),
        restored={row.id for row in restored},
    )


def _of_source(records: Sequence[Record], source: str, locked: Set[str] = frozenset()) -> list[Record]:
    """Its rows that are not locked. Raises UserError when no row, locked or not, is of the source."""
    found = [row for row in records if row.source == source]
    if not found:
        known = sorted({row.source for row in records})
        near = difflib.get_close_matches(source, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the sources are {names(known)}"
        raise UserError(f"no row is of the source {source!r}; {hint}")
    return [row for row in found if row.id not in locked]
