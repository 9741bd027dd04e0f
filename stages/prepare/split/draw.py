"""`tunetrail holdout draw`: draw the hold-out once, or take a source that people bring, and lock it."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import file_digest, read_json
from stages.params.loader import Params, load_params
from stages.prepare.split.lock import Drawn, DrawnLabel, WholeSource, make_lock, write_lock
from stages.prepare.split.nearness import Nearness, find_nearness, near_groups
from stages.prepare.split.partition import Label, Stratum, few, label_name, restore_locked, stratified_draw
from stages.records.prompt import read_near_pairs
from stages.records.record import Dropped, Record, read_dropped, read_records


def draw(redraw: bool, source: str | None = None) -> None:
    """Draw the hold-out from data/unique.jsonl, or take all rows of `source`; write the lock and print its labels."""
    params = load_params("dedup.threshold", "holdout", "seed", "split")
    path = Path(params.holdout.lock)
    if path.exists() and not redraw:
        raise UserError(
            f"{path} exists, and the hold-out stays the same so that results can be compared; to draw another one on "
            "purpose, add --redraw"
        )
    if not paths.UNIQUE.is_file():
        raise UserError(f"{paths.UNIQUE} is missing; make it with `dvc repro dedup`, then draw")
    records = read_records(paths.UNIQUE)
    drawn, how, lines = _share(records, params) if source is None else _source(records, source)
    write_lock(path, make_lock(drawn, how))
    print("\n".join(lines))
    print(f"{len(drawn)} rows locked in {path}; commit it, then run `dvc repro`")


def _share(records: list[Record], params: Params) -> tuple[list[Record], Drawn, list[str]]:
    share, max_rows, threshold = params.holdout.share, params.holdout.max_rows, params.split.pair_threshold
    nearness = find_nearness(records, read_near_pairs(paths.NEAR_PAIRS, params.dedup.threshold), threshold)
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
        lines.append(f"{len(none)} labels have no row in the hold-out, for training keeps one of each: {few(none)}")
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
    rows = Counter(row.id for row in everything if row.source == source)
    if not rows:
        names = sorted({row.source for row in everything})
        near = difflib.get_close_matches(source, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the sources are {few(names)}"
        raise UserError(f"no row is of the source {source!r}; {hint}")
    if all(row.id in rows for row in unique):
        raise UserError(f"every row is of the source {source!r}, and none would be left to train on; add other rows")
    restored = restore_locked(unique, duplicates, rows.keys())
    return SourceRows(
        rows=rows,
        records=sorted([row for row in unique if row.id in rows] + restored, key=lambda row: row.id),
        restored={row.id for row in restored},
    )
