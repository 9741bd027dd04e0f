"""report: one page that says whether this model may ship, and shows what that rests on."""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from stages.core import paths
from stages.core.errors import UserError, run
from stages.core.files import read_json, write_text
from stages.params.loader import Params, load_params
from stages.records.record import read_rows
from stages.report import beyond, data, tables, verdict
from stages.report.changed_examples import Answers, Row, failures, flips, shared
from stages.report.charts import Points, interval_chart, loss_chart
from stages.report.formats import render
from stages.scoring.paired_answers import read_previous
from stages.scoring.rows import score_row
from stages.text.json_schema import Tasks

_CHECKS = ("triggers", "tied", "conflicts")


@dataclass(frozen=True)
class Inputs:
    """Metrics by stage, generations by model (base, adapter, then the artefacts), and the rest.

    `previous` are the rows of the previous release, none without one; it may have answered other rows than these.
    `curves` are (step, loss) by name, without points that are no finite number; `confusion` are the columns actual
    and predicted of the hold-out rows.
    """

    metrics: dict[str, Any]
    manifest: dict[str, Any]
    generations: dict[str, list[Row]]
    previous: list[Row]
    samples: list[Row]
    cleaning: list[Row]
    rejected: dict[str, list[Row]]
    checks: dict[str, list[Row]]
    tried: list[Row]
    curves: dict[str, Points]
    confusion: pd.DataFrame

    def scores(self) -> dict[str, Any]:
        """The SCORES of every model, in the order in which they are made."""
        evaluate, artefacts = self.metrics["evaluate"], self.metrics["quantize"]["artefacts"]
        return {
            "base": self.metrics["baseline"]["base"],
            **({"linear": self.metrics["baseline"]["linear"]} if "linear" in self.metrics["baseline"] else {}),
            **({"previous": evaluate["previous"]["scores"]} if "previous" in evaluate else {}),
            "adapter": evaluate["adapter"],
            **{name: artefact["scores"] for name, artefact in artefacts.items()},
        }

    def comparisons(self) -> dict[tuple[str, str], Any]:
        """The COMPARISON of two models by their names: others to the adapter, then the adapter to each artefact."""
        evaluate, artefacts = self.metrics["evaluate"], self.metrics["quantize"]["artefacts"]
        earlier = {"base": "against_baseline", "linear": "against_linear", "previous": "against_previous"}
        return {
            **{(before, "adapter"): evaluate[key] for before, key in earlier.items() if key in evaluate},
            **{("adapter", name): artefact["against_adapter"] for name, artefact in artefacts.items()},
        }


def main() -> None:
    params = load_params("gates", "report", "scoring", "task")
    inputs = read_inputs(params.report.examples)
    shown = view(inputs, params, Tasks(params.task))
    write_text(paths.REPORT_HTML, render("report.html.j2", shown))
    write_text(paths.REPORT_MARKDOWN, render("report.md.j2", shown))
    print(f"{shown['verdict'].state}: {shown['verdict'].sentence} See {paths.REPORT_HTML}")


def view(inputs: Inputs, params: Params, tasks: Tasks) -> dict[str, Any]:
    """Everything that the templates show; `metrics` are those of the stages by name, which they read themselves."""
    metrics, confidence = inputs.metrics, params.scoring.confidence
    scores = inputs.scores()
    found = tables.measured(scores, inputs.comparisons(), confidence)
    return {
        "confidence": f"{confidence * 100:.4g} %",
        "one_in": round(1 / (1 - confidence)),
        "metrics": metrics,
        "tables": tables,  # they make a table of a part of the metrics
        "data": data,
        "manifest": inputs.manifest,
        "verdict": verdict.verdict(metrics["gates"], confidence),
        "answers": verdict.answers(metrics, found),
        "found": found,
        "main": found[0].main,
        "models": list(scores),
        "interval_chart": interval_chart(scores, found[0].main, _threshold(params, found[0].main), confidence),
        "brief": tables.brief_table(found),
        "sizes": tables.size_row(list(scores), metrics["quantize"]["artefacts"]),
        "confusion": tables.confusion_table(inputs.confusion),
        "label_field": params.task.label_field,
        **_examples(inputs, params, tasks, found[0].compared),
        "opinions": {name: beyond.contests(metrics[name]) for name in ("judge", "review")},
        "forgetting": beyond.forgetting(metrics["evaluate"], confidence),
        "robustness": beyond.robustness(metrics["evaluate"]),
        "safety": beyond.safety(metrics["evaluate"]),
        "refusals": beyond.refusals(metrics["evaluate"], confidence),
        "slices": beyond.slices(metrics["evaluate"]),
        "loss_chart": loss_chart(inputs.curves, metrics["train"].get("best_step")),
        "validation": inputs.curves["validation"],
        "samples": inputs.samples,
        "flags": data.flags(metrics, inputs.generations),
        "funnel": data.funnel(metrics),
        "cleaning": {
            kind: data.reasons(kind, metrics["clean"][kind], inputs.cleaning) for kind in ("changed", "rejected")
        },
        "rejected": inputs.rejected,
        "checks": inputs.checks,
        "tried": inputs.tried,
    }


def _examples(inputs: Inputs, params: Params, tasks: Tasks, compared: list[tables.Comparison]) -> dict[str, Any]:
    limit = params.report.examples
    given = {**inputs.generations, "previous": inputs.previous}
    answers = {name: Answers(name, rows, [score_row(row, tasks) for row in rows]) for name, rows in given.items()}
    pairs = [
        shared(answers[one.before], answers[one.after])
        for one in compared
        if one.before in answers and one.after in answers
    ]
    return {
        "instruction": params.task.instruction,
        "flips": [one for before, after in pairs for one in flips(before, after, tasks, limit)],
        "failures": failures(answers["adapter"], tasks, limit),
        "in_git": params.report.pull_request_examples,
    }


def _threshold(params: Params, main: tables.Metric) -> float | None:
    """The minimum that a gate asks of the adapter's main metric."""
    wanted = main.path.removeprefix("classification.").removeprefix("text.").replace(".", "_")
    gates = (gate for gate in params.gates.values() if (gate.model, gate.metric) == ("adapter", wanted))
    return next((gate.minimum for gate in gates if not gate.against and not gate.of and gate.minimum is not None), None)


def read_inputs(examples: int) -> Inputs:
    """Read what the other stages wrote, and up to `examples` of each kind of rejected rows.

    Raises:
        UserError: naming the file that is missing or broken.
    """
    metrics = {**_json(paths.DETAILS), "gates": _json(paths.GATES)}
    generations = {"base": paths.BASE_GENERATIONS, "adapter": paths.ADAPTER_GENERATIONS}
    generations |= {name: paths.ARTEFACT_GENERATIONS / f"{name}.jsonl" for name in metrics["quantize"]["artefacts"]}
    rejected = (paths.DUPLICATES, paths.QUARANTINE)
    return Inputs(
        metrics=metrics,
        manifest=_json(paths.MANIFEST),
        generations=_same_rows({name: (path, list(read_rows(path))) for name, path in generations.items()}),
        previous=sorted(read_previous(), key=lambda row: row["id"]),
        samples=list(read_rows(paths.TRAINING_SAMPLES)),
        cleaning=list(read_rows(paths.CLEAN_EXAMPLES)) if examples else [],
        rejected={path.stem: _some(path, examples) for path in rejected},
        checks={name: list(islice(read_rows(paths.CHECKS / f"{name}.jsonl"), examples)) for name in _CHECKS},
        tried=_json(paths.TRIED_TRIGGERS, list),  # the suspected triggers that the tuned model was asked about
        curves={name: _points(name) for name in ("train", "validation")},
        confusion=_table(paths.CONFUSION, ","),
    )


def _json(path: Path, kind: type = dict) -> Any:
    """A JSON object, or what else `kind` says."""
    try:
        value = read_json(_there(path))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); run `dvc repro` to make it anew") from None
    if not isinstance(value, kind):
        raise UserError(
            f"{path}: expected a JSON {'object' if kind is dict else 'list'}; run `dvc repro` to make it anew"
        )
    return value


def _table(path: Path, separator: str) -> pd.DataFrame:
    """A table of text as it stands: a label may be "null" or empty."""
    return pd.read_csv(_there(path), sep=separator, dtype=str, keep_default_na=False)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path} is missing; run `dvc repro` to make it")
    return path


def _points(name: str) -> Points:
    """A loss curve; a run without validation rows has none for them."""
    path = paths.CURVES / "plots/metrics" / name / "loss.tsv"
    if name == "validation" and not path.exists():
        return []
    rows = _table(path, "\t")[["step", "loss"]].astype(float)
    return [point for point in rows.itertuples(index=False, name=None) if all(map(math.isfinite, point))]


def _some(path: Path, limit: int) -> list[Row]:
    """`limit` rows, with rare reasons among them: the first of each reason, then the second of each.

    The file may be as large as the raw data, so that only the rows that can be chosen are kept.
    """
    seen: Counter[str] = Counter()
    ranked = []
    for row in read_rows(path):
        seen[row["reason"]] += 1
        if seen[row["reason"]] <= limit:
            ranked.append((seen[row["reason"]], row))
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])[:limit]]


def _same_rows(files: dict[str, tuple[Path, list[Row]]]) -> dict[str, list[Row]]:
    """The rows of every model by id, in one order. Raises UserError when the files differ in rows."""
    by_id = {name: {row["id"]: row for row in rows} for name, (_, rows) in files.items()}
    base = by_id["base"]
    for name, rows in by_id.items():
        if rows.keys() != base.keys():
            raise UserError(
                f"{files[name][0]} and {files['base'][0]} answer different rows; run `dvc repro` to make both anew"
            )
    return {name: [rows[key] for key in sorted(rows)] for name, rows in by_id.items()}


if __name__ == "__main__":
    run(main)
