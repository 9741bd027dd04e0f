"""The rows in runs of some thousand of one file, which are cleaned one after the other or as tasks of a Ray cluster."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from stages.core.cluster import in_order
from stages.core.machine import machine_settings
from stages.core.run_notes import track
from stages.params.prepare import Clean
from stages.params.task import Task
from stages.prepare.clean.cleaning import Kept, Rules, clean_row
from stages.prepare.clean.counts import count_part
from stages.prepare.clean.data_sets import Batch
from stages.prepare.clean.rejected_rows import Rejected, Row, write_rejected
from stages.prepare.clean.sources import RawFile, Unparsed, parsed, read_unparsed
from stages.prepare.clean.text_files import Line, Lines
from stages.records.record import record_line

_ROWS, _BYTES = 2000, 1 << 22  # of a shard, at most, and one row more: a second of work
_FEW = 20_000  # rows, which are clean before a cluster has begun


class Cleaned(NamedTuple):
    """Of a shard the lines of the records kept and of the rows rejected, and what a `Tally` takes."""

    kept: str
    rejected: str
    part: dict[str, Any]


def clean_all(files: Sequence[RawFile], rules: Rules, task: Task, rows: int, what: str) -> Iterator[Cleaned]:
    """All rows of the files, which are so many, shard by shard, in the order of files and rows.

    Raises UserError for a file that cannot be read, and where machine settings name a cluster that does not work.
    """
    todo = _shards(files, rules.params.max_line_bytes)
    results: Iterator[bytes]
    if (address := machine_settings().ray) and rows >= _FEW:
        said = json.dumps([rules.params.model_dump_json(), task.model_dump_json(), rules.tasks.schema])
        tasks = ((said, replace(file, data=None), shard) for file, shard in todo)
        results = in_order(clean_there, tasks, address, "clean")
    else:
        results = (clean_shard(rules, file, shard) for file, shard in todo)
    ticks = iter(track(range(rows), rows, what))
    for result in results:
        shard = Cleaned(*json.loads(result))
        for _ in range(shard.part["rows"]):
            next(ticks, None)
        yield shard
    next(ticks, None)


def clean_there(said: str, file: RawFile, shard: Sequence[Unparsed]) -> bytes:
    """`clean_shard` on a machine that has the code alone."""
    return clean_shard(_rules(said), file, shard)


@lru_cache(1)
def _rules(said: str) -> Rules:
    clean, task, schema = json.loads(said)
    return Rules.of(Clean.model_validate_json(clean), Task.model_validate_json(task), schema)


def clean_shard(rules: Rules, file: RawFile, shard: Sequence[Unparsed]) -> bytes:
    """A `Cleaned` as JSON."""
    kept, rejected = list[str](), io.StringIO()

    def outcomes() -> Iterator[tuple[Row, Kept | Rejected]]:
        for row in (row for unparsed in shard for row in parsed(file, unparsed)):
            yield row, (outcome := clean_row(row, file, rules))
            if isinstance(outcome, Rejected):
                write_rejected(rejected, file.source, row, outcome)
            else:
                kept.append(record_line(outcome.record))

    part = count_part(file, outcomes(), rules.shown)
    return json.dumps(["".join(kept), rejected.getvalue(), part]).encode()


def _shards(files: Sequence[RawFile], max_bytes: int) -> Iterator[tuple[RawFile, list[Unparsed]]]:
    for file in files:
        shard, rows, size = list[Unparsed](), 0, 0
        for unparsed in read_unparsed(file, max_bytes):
            shard.append(unparsed)
            if isinstance(unparsed, Batch):
                rows, size = rows + unparsed.table.num_rows, size + unparsed.table.nbytes
            else:
                held = unparsed.raw() if isinstance(unparsed, Row) else unparsed.content
                rows, size = rows + 1, size + len(held)
            if rows >= _ROWS or size >= _BYTES:
                yield file, _in_one_piece(shard)
                shard, rows, size = [], 0, 0
        if shard:
            yield file, _in_one_piece(shard)


def _in_one_piece(shard: list[Unparsed]) -> list[Unparsed]:
    lines = [one for one in shard if isinstance(one, Line) and one.sha256 is None]
    if len(lines) < len(shard):
        return shard
    return [Lines(lines[0].number, lines[0].offset, b"\n".join(line.content for line in lines))]
