"""The user's own score of an answer: a function of a file below data/metric, which the stages that score depend on."""

import inspect
import os
import runpy
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.errors import UserError, names
from stages.params.task import Task
from stages.scoring.rows import RowScore, score_row
from stages.text.json_schema import Tasks

ScoreRows = Callable[[Iterable[Mapping[str, Any]]], list[RowScore]]


def scorer(task: Task) -> ScoreRows:
    """What scores generation rows (`score_row`), by `task.metric`, too, where it names a function.

    Raises UserError when the function cannot be had; from what is returned, when it fails on a row or gives no score.
    """
    tasks, function = Tasks(task), load_metric(task.metric) if task.metric else None

    def score_rows(rows: Iterable[Mapping[str, Any]]) -> list[RowScore]:
        scored = [(row, score_row(row, tasks)) for row in rows]
        if function is None:
            return [score for _, score in scored]
        return [replace(score, own=_asked(function, str(task.metric), row, score)) for row, score in scored]

    return score_rows


def load_metric(metric: str) -> Callable[..., Any]:
    """The function that FILE.py:FUNCTION names. What lies beside the file can be imported from it."""
    path, _, name = metric.rpartition(":")
    folder = os.fspath(Path(path).parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    if not Path(path).is_file():
        raise UserError(f"task.metric: {path} is missing")
    try:  # run, not imported: an import may take byte code of the second before
        found = runpy.run_path(path, run_name="own_metric")
    except (Exception, SystemExit) as error:
        raise UserError(f"task.metric: {path} cannot be loaded: {_said(error)}") from error
    if not callable(function := found.get(name)):
        there = names(key for key, value in found.items() if inspect.isfunction(value))
        raise UserError(f"task.metric: {path} has no function {name}" + (f", but {there}" if there else ""))
    try:
        inspect.signature(function).bind("", "", "")
    except TypeError as error:
        raise UserError(f"task.metric: {metric} is given prompt, reference and answer: {error}") from None
    return function  # type: ignore[no-any-return]


def _asked(function: Callable[..., Any], metric: str, row: Mapping[str, Any], score: RowScore) -> bool | float:
    try:
        value = function(row["prompt"], score.reference, score.output)
    except (Exception, SystemExit) as error:
        raise UserError(f"task.metric: {metric} failed on row {row['id']}: {_said(error)}") from error
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, Real) and 0 <= float(value) <= 1:  # not NaN
        return float(value)
    raise UserError(f"task.metric: {metric} gave {value!r:.80} on row {row['id']}, not a bool or a number from 0 to 1")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
