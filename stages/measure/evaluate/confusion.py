"""The confusion table of the classes, as rows that `dvc plots` counts."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from stages.core.files import write_text
from stages.records.contract import Tasks
from stages.scoring import RowScore

NO_ANSWER = "(no valid answer)"


def write_confusion(path: Path, scores: Sequence[RowScore], tasks: Tasks) -> None:
    """One line for each row that has a class: the class, and the one that the output names.

    In a json task the class is the row's label, named at the task's label field; in a classification task it is
    the whole reference.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["actual", "predicted"])
    for score in scores:
        if score.kind != "text":
            writer.writerow(_classes(score, tasks.of(score.task).settings.label_field))
    write_text(path, table.getvalue())


def _classes(score: RowScore, label_field: str) -> tuple[str, str]:
    """The class of the row and that of the output; free text would make a table of a thousand columns."""
    if score.kind == "classification":
        return score.reference, score.output if score.valid else NO_ANSWER
    actual = score.label or "(no label)"
    if not score.valid or not isinstance(score.predicted, dict):
        return actual, NO_ANSWER
    return actual, str(score.predicted.get(label_field, NO_ANSWER))
