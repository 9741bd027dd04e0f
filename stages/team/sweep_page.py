"""The page of a sweep: history, importance and slices, in one file that needs no network."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.core.files import write_text

_WIDTH, _HEIGHT, _EDGE = 640.0, 220.0, 50.0


def write_page(path: Path, name: str, objective: str, study: Any, seed: int) -> Path:
    """Write the page of an Optuna study to `path`, and return that."""
    import optuna
    from jinja2 import Environment, FileSystemLoader

    finished = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    importance: dict[str, float] = {}
    if len({trial.value for trial in finished}) > 1 and finished[0].params:
        judge = optuna.importance.FanovaImportanceEvaluator(seed=seed)
        importance = optuna.importance.get_param_importances(study, evaluator=judge)
    history = scatter([(trial.number, trial.value, f"{name}-{trial.number}") for trial in finished])
    keys = dict.fromkeys(key for trial in finished for key in trial.params)
    slices = {key: scatter([(one.params[key], one.value, f"{name}-{one.number}") for one in finished]) for key in keys}
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    facts = {"name": name, "objective": objective, "importance": importance, "history": history, "slices": slices}
    text = pages.get_template("sweep.html.j2").render(**facts, trials=study.trials, width=_WIDTH, height=_HEIGHT)
    write_text(path, text)
    return path


def scatter(points: Sequence[tuple[Any, float, str]]) -> dict[str, Any]:
    """Points as coordinates of a chart with ticks. Numbers over more than two powers of ten get a logarithmic axis.

    What is no number gets a place for each value, in the order of its text.
    """
    given = [x for x, _, _ in points]
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in given)
    places = {text: i for i, text in enumerate(sorted({str(x) for x in given}))}
    log = numbers and bool(given) and min(given) > 0 and max(given) / min(given) > 100
    xs = [math.log10(x) if log else float(x) if numbers else float(places[str(x)]) for x in given]
    ys = [y for _, y, _ in points]

    def at(value: float, values: Sequence[float], low: float, high: float) -> float:
        span = max(values) - min(values)
        return round((low + high) / 2 if not span else low + (value - min(values)) / span * (high - low), 1)

    right, bottom = _WIDTH - _EDGE, _HEIGHT - _EDGE
    dots = [
        (at(x, xs, _EDGE, right), at(y, ys, bottom, 20.0), told)
        for x, y, (_, _, told) in zip(xs, ys, points, strict=True)
    ]
    chosen = {min(xs), max(xs)} if numbers and xs else set(xs)
    ticks = [
        (at(x, xs, _EDGE, right), f"{10**x:.3g}" if log else f"{x:.4g}" if numbers else list(places)[int(x)])
        for x in sorted(chosen)
    ]
    levels = [(at(y, ys, bottom, 20.0), f"{y:.4g}") for y in sorted({min(ys), max(ys)})] if ys else []
    return {"dots": dots, "ticks": ticks, "levels": levels}
