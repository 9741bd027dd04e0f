"""The confusion table of the label field, as rows that `dvc plots` counts."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from stages.files import write_text
from stages.scoring import RowScore

NO_ANSWER = "(no valid answer)"


def write_confusion(path: Path, scores: Sequence[RowScore], label_field: str) -> None:
    """One line for each hold-out row: its label and what the output says at `label_field`."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["actual", "predicted"])
    for score in scores:
        writer.writerow([score.label or "(no label)", _predicted(score, label_field)])
    write_text(path, table.getvalue())


def _predicted(score: RowScore, label_field: str) -> str:
    """The label that the output names; free text would make a table of a thousand columns."""
    if not score.schema_valid or not isinstance(score.predicted, dict):
        return NO_ANSWER
    return str(score.predicted.get(label_field, NO_ANSWER))
