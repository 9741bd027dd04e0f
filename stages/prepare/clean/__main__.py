"""clean: raw rows to records; every row that is no record is rejected with its reason."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from stages.core import paths
from stages.core.errors import run
from stages.core.files import atomic, write_json
from stages.core.progress import track
from stages.params import load_params
from stages.prepare.clean.cleaning import Kept, Rules, clean_row
from stages.prepare.clean.counts import Tally
from stages.prepare.clean.examples import Examples
from stages.prepare.clean.rejected_rows import write_rejected
from stages.prepare.clean.rows import Rejected, Row
from stages.prepare.clean.sources import RawFile, count_rows, find_files, read_rows, refuse_unused
from stages.records.record import record_row, row_line, write_rows

_REMEDY = (
    f"{paths.REJECTED_CLEAN} has them all. Mend the raw files, or the parameter that a reason names; raise "
    "clean.max_rejected_share if the loss is meant"
)


def main() -> None:
    params = load_params("clean", "task")
    rules = Rules.of(params.clean, params.task)
    files = find_files(Path(params.clean.raw), params.clean.sources)
    refuse_unused(params.clean.sources, files)
    rows = sum(count_rows(file, params.clean.max_line_bytes) for file in files)
    tally, examples = Tally(), Examples(params.clean.phone_region)
    with atomic(paths.CLEAN) as clean:
        # Inside, so that a refused input leaves no clean.jsonl but does leave the rows to look at.
        with atomic(paths.REJECTED_CLEAN) as rejected, _text(clean) as clean_file, _text(rejected) as rejected_file:
            for source, row, outcome in track(outcomes(files, rules), rows, "clean"):
                tally.add(source, row, outcome)
                examples.add(source, row, outcome)
                write_outcome(source, row, outcome, clean_file, rejected_file)
        tally.check(rows, params.clean.max_rejected_share, _REMEDY)
    write_rows(paths.CLEAN_EXAMPLES, examples.rows)
    write_json(paths.CLEAN_METRICS, tally.metrics())


def outcomes(files: list[RawFile], rules: Rules) -> Iterator[tuple[str, Row, Kept | Rejected]]:
    """Every row with the name of its source, and what became of it, in the order of files and rows."""
    for file in files:
        for row in read_rows(file, rules.params.max_line_bytes):
            yield file.source, row, clean_row(row, file, rules)


def write_outcome(source: str, row: Row, outcome: Kept | Rejected, kept: IO[str], rejected: IO[str]) -> None:
    """Write the row's record to `kept`, or the row with its reason to `rejected`."""
    if isinstance(outcome, Rejected):
        write_rejected(rejected, source, row, outcome)
    else:
        kept.write(row_line(record_row(outcome.record)))


def _text(path: Path) -> IO[str]:
    return path.open("w", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    run(main)
