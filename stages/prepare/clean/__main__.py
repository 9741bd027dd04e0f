"""clean: raw rows to records; every row that is no record is rejected with its reason."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import run
from stages.core.files import atomic, write_json
from stages.params.loader import Params, load_params
from stages.prepare.clean.cleaning import Kept, Rules, clean_row
from stages.prepare.clean.counts import Tally
from stages.prepare.clean.rejected_rows import Row
from stages.prepare.clean.shards import clean_all
from stages.prepare.clean.sources import RawFile, count_rows, find_files, list_raw, refuse_unused
from stages.records.record import Record, row_line, write_rows

_REMEDY = (
    f"{paths.REJECTED_CLEAN} has them all. Mend the raw files, or the parameter that a reason names; raise "
    "clean.max_rejected_share if the loss is meant"
)
_CHECK_REMEDY = "the clean stage would stop. Mend the file, or the parameter that a reason names"


def main() -> None:
    params = load_params("clean", "task")
    rules, raw = Rules.of(params.clean, params.task), Path(params.clean.raw)
    files = find_files(raw, params.clean.sources)
    refuse_unused(params.clean.sources, files)
    listing = list_raw(raw)
    if listing.left_behind:
        print(f"clean: passed over, for they are no data: {', '.join(listing.left_behind)}", file=sys.stderr)
    rows, tally = count(files, rules), Tally()
    with atomic(paths.CLEAN) as clean:
        # Inside, so that a refused input leaves no clean.jsonl but does leave the rows to look at.
        with atomic(paths.REJECTED_CLEAN) as rejected, ExitStack() as stack:
            kept_file, rejected_file = (
                stack.enter_context(path.open("w", encoding="utf-8", newline="\n")) for path in (clean, rejected)
            )
            for shard in clean_all(files, rules, params.task, rows, "clean"):
                kept_file.write(shard.kept)
                rejected_file.write(shard.rejected)
                tally.add(shard.part)
        tally.check(rows, params.clean.max_rejected_share, _REMEDY)
    for warning in tally.warnings():
        print(f"clean: {warning}", file=sys.stderr)
    write_rows(paths.CLEAN_EXAMPLES, tally.examples)
    write_json(paths.CLEAN_METRICS, {"files": listing.metrics(), **tally.metrics()})


def check(path: Path, strict: bool) -> str:
    """`tunetrail data check`: what the stage would say of a file or folder; if `strict`, no row may be rejected."""
    params = load_params("clean", "task")
    rules = Rules.of(params.clean, params.task)
    files = find_files(path, params.clean.sources)
    rows, tally = count(files, rules), Tally()
    for shard in clean_all(files, rules, params.task, rows, "check"):
        tally.add(shard.part)
    tally.check(rows, 0.0 if strict else params.clean.max_rejected_share, _CHECK_REMEDY)
    return f"{path}: {tally.text()}"


def row_cleaner(params: Params) -> Callable[[dict[str, Any], str], Record | str]:
    """What the stage would make of the columns of a row from a source: its record, or why there is none."""
    rules = Rules.of(params.clean, params.task)

    def clean(values: dict[str, Any], source: str) -> Record | str:
        row = Row(source, 1, values, lambda: row_line(values).encode())
        found = clean_row(row, RawFile(Path(source), source, "jsonl", source, "auto"), rules)
        return found.record if isinstance(found, Kept) else f"{found.reason}: {found.detail}"

    return clean


def count(files: list[RawFile], rules: Rules) -> int:
    return sum(count_rows(file, rules.params.max_line_bytes) for file in files)


if __name__ == "__main__":
    run(main)
