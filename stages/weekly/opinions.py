"""preferences: what people said of a release's answers, as rows that the stage prefer learns from.

A correction makes a pair: what should have been said before what was said. A thumb makes a single answer.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import UserError
from stages.params.loader import Params
from stages.records.record import write_rows
from stages.text.personal_data import masker
from stages.weekly.collect import Kept, inbox_row, record_of_request
from stages.weekly.logs import read_logs

_KEPT = ("prompt", "task", "context", "source", "log", "release", "asked", "annotator")


def write_preferences(files: Sequence[Path], params: Params, name: str) -> str:
    """Write data/preferences/NAME.jsonl, of logs and of annotated rows of `tunetrail collect`; say what was found.

    Raises UserError when a file has neither, nobody said anything in them, or NAME.jsonl is there.
    """
    target = paths.PREFERENCES / f"{name}.jsonl"
    if target.exists() or Path(name).name != name:
        raise UserError(f"{target} is there already, or is no plain name; choose another --name")
    rows = [row for file in files for asked in _annotated(file) or _logged(file, params) for row in _said(asked)]
    if not rows:
        raise UserError("nobody corrected an answer or gave a thumb in these files; there is nothing to learn from")
    write_rows(target, rows)
    pairs = sum("chosen" in row for row in rows)
    return f"{pairs} pairs and {len(rows) - pairs} thumbs in {target}"


def _annotated(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of the inbox, complete or not; none of any other file."""
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError):
        return []  # a log has its own reader, which says what is wrong
    ours = all(isinstance(row, dict) and {"prompt", "completion", "answer"} <= row.keys() for row in rows)
    return [row | {"thumb": False if "thumb down" in row.get("kept_because", ()) else None} for row in rows if ours]


def _logged(file: Path, params: Params) -> Iterator[dict[str, Any]]:
    mask = masker(params.clean.mask_personal_data, params.clean.phone_region, params.clean.ner_model)
    for one in read_logs([file])[0]:
        kept = Kept(record_of_request(one, params.task, mask), one, mask(one.output), ())
        yield inbox_row(kept, file.stem) | {"thumb": one.feedback}


def _said(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    made, right, answer = {key: row[key] for key in _KEPT if row.get(key)}, row["completion"], row["answer"]
    if right.strip() and answer.strip() and right.strip() != answer.strip():
        yield made | {"chosen": right, "rejected": answer}
    elif row["thumb"] is not None and answer.strip():
        yield made | {"completion": answer, "label": row["thumb"]}
