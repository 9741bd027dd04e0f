"""`tunetrail data check`: what the clean stage would do with a file, before the file enters the pipeline."""

from pathlib import Path

from stages.core.progress import track
from stages.params import load_params
from stages.prepare.clean.__main__ import outcomes
from stages.prepare.clean.cleaning import Rules
from stages.prepare.clean.counts import Tally
from stages.prepare.clean.sources import count_rows, find_files

_REMEDY = "the clean stage would stop. Mend the file, or the parameter that a reason names"


def check(path: Path, strict: bool) -> str:
    """Clean every row with the parameters of params.yaml, write nothing, and say what came of it.

    Raises:
        UserError: when the file is unfit: it cannot be read, no row is kept, or more are rejected than
            clean.max_rejected_share allows; if `strict`, when any is.
    """
    params = load_params("clean", "task")
    rules = Rules.of(params.clean, params.task)
    files = find_files(path, params.clean.sources)
    rows = sum(count_rows(file, params.clean.max_line_bytes) for file in files)
    tally = Tally()
    for source, row, outcome in track(outcomes(files, rules), rows, "check"):
        tally.add(source, row, outcome)
    tally.check(rows, 0.0 if strict else params.clean.max_rejected_share, _REMEDY)
    return "\n".join(_lines(path, tally))


def _lines(path: Path, tally: Tally) -> list[str]:
    total = tally.total
    lines = [f"{path}: {total.rows} rows, {total.kept} fit, {total.rejected.total()} rejected"]
    if total.rejected:
        lines.append(tally.table())
    for name, counts in sorted(tally.sources.items()):
        shapes = ", ".join(f"{count} {shape}" for shape, count in counts.shapes.most_common())
        lines.append(f"source {name}: {shapes or 'no row fits'}")
        if counts.left_out:
            lines.append(f"  columns left out: {', '.join(sorted(counts.left_out))}")
    changed = [f"{operator} {count}" for operator, count in total.changed.most_common()]
    masked = [f"{kind} {count}" for kind, count in total.personal_data.most_common() if count]
    lines.append(f"rows that cleaning changes: {', '.join(changed) or 'none'}")
    if masked:
        lines.append(f"personal data that it masks: {', '.join(masked)}")
    return lines
