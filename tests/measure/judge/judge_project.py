"""A folder in which the judge stage can run: parameters, a hold-out and what two models said to it."""

import shutil
from pathlib import Path
from typing import Any

from project import ROOT, set_params

from stages.core import paths
from stages.params.loader import load_params
from stages.params.measure import Judge
from stages.records.record import make_record, write_records, write_rows

KEY = "sk-planted-0123456789"


def judge_params(folder: Path = ROOT, **changes: Any) -> Judge:
    """The section of params.yaml with other values, quick to give up."""
    quick = {"attempts": 4, "longest_wait": 0.02, "timeout": 5.0, "parallel": 2, "key_variable": None}
    section = load_params("judge", path=folder / "params.yaml").judge
    return Judge.model_validate({**section.model_dump(), **quick, **changes})


def make_judge_project(folder: Path, pairs: list[tuple[str, str]], **changes: Any) -> Path:
    """One row for each pair of outputs (base, tuned); its reference is RIGHT."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / "data", folder / "data", ignore=lambda *_: ["raw"])
    set_params(folder, {"judge": {**judge_params(**changes).model_dump(), "enabled": True}})
    records = [make_record(f"question {n}", "RIGHT", None, "test", f"test:{n}") for n in range(len(pairs))]
    write_records(folder / paths.HOLDOUT, records)
    write_rows(folder / paths.PREVIOUS_GENERATIONS, [{"release": None}])
    for place, side in ((paths.BASE_GENERATIONS, 0), (paths.ADAPTER_GENERATIONS, 1)):
        rows = [{"id": record.id, "output": pair[side]} for record, pair in zip(records, pairs, strict=True)]
        write_rows(folder / place, rows)
    return folder


def right_one(question: dict[str, str]) -> str:
    """A fair judge: the answer that is the reference."""
    first, second = (question[f"answer {letter}"] == question["reference answer"] for letter in "AB")
    return "TIE" if first == second else "A" if first else "B"
