"""clean: raw rows to records; every row that is no record is rejected with its reason."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO

from stages import paths
from stages.clean.cleaning import Rules, clean_line
from stages.clean.lines import Line, count_lines, raw_files, read_lines
from stages.clean.rejected import write_rejected
from stages.clean.rows import Rejected
from stages.clean.tally import Tally
from stages.completions import Schema
from stages.errors import run
from stages.files import atomic, write_json
from stages.params import load_params
from stages.progress import track
from stages.records import row_line


def main() -> None:
    params = load_params("clean", "task")
    rules = Rules.of(params.clean, Schema(Path(params.task.schema_file)))
    files = raw_files(Path(params.clean.raw))
    rows = sum(count_lines(file) for file in files)
    tally = Tally()
    with atomic(paths.CLEAN) as clean:
        # Inside, so that a refused input leaves no clean.jsonl but does leave the rows to look at.
        with atomic(paths.REJECTED_CLEAN) as rejected:
            lines = track(_all_lines(files, params.clean.max_line_bytes), rows, "clean")
            with _text(clean) as clean_file, _text(rejected) as rejected_file:
                sort_lines(lines, rules, tally, clean_file, rejected_file)
        tally.check(rows, params.clean.max_rejected_share)
    write_json(paths.CLEAN_METRICS, tally.metrics())


def sort_lines(lines: Iterator[Line], rules: Rules, tally: Tally, kept: IO[str], rejected: IO[str]) -> None:
    """Write each line's record to `kept`, or the line with its reason to `rejected`."""
    for line in lines:
        outcome = clean_line(line, rules)
        tally.add(line, outcome)
        if isinstance(outcome, Rejected):
            write_rejected(rejected, line, outcome)
        else:
            kept.write(row_line(asdict(outcome.record)))


def _all_lines(files: list[Path], max_bytes: int) -> Iterator[Line]:
    for file in files:
        yield from read_lines(file, max_bytes)


def _text(path: Path) -> IO[str]:
    return path.open("w", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    run(main)
