"""The page and the short version for a pull request, from the inputs."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.params.loader import Params
from stages.records.contract import Tasks
from stages.report import beyond, data, formats, tables, verdict
from stages.report.changed_examples import Answers, failures, flips, shared
from stages.report.charts import interval_chart, loss_chart
from stages.report.inputs import Inputs
from stages.scoring.rows import score_row

_FILTERS = ("excerpt", "markdown_code", "markdown_text", "number", "percent", "plural", "size", "whole", "words")


def view(inputs: Inputs, params: Params, tasks: Tasks) -> dict[str, Any]:
    """Everything that the templates show; `metrics` are those of the stages by name, which they read themselves."""
    metrics, confidence = inputs.metrics, params.scoring.confidence
    scores = inputs.scores()
    found = tables.measured(scores, inputs.comparisons(), confidence)
    forgetting = beyond.forgetting(metrics["evaluate"], confidence)
    return {
        "confidence": f"{confidence * 100:.4g} %",
        "one_in": round(1 / (1 - confidence)),
        "metrics": metrics,
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
        "opinions": [beyond.judge(metrics["judge"]), beyond.review(metrics["review"])],
        "forgetting": forgetting,
        "robustness": beyond.robustness(metrics["evaluate"]),
        "safety": beyond.safety(metrics["evaluate"], confidence),
        "slices": [*beyond.distance(metrics["evaluate"]), *beyond.slices(metrics["evaluate"])],
        "replay_advice": beyond.replay_advice(forgetting, metrics["augment"]),
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


def render(template: str, values: dict[str, Any]) -> str:
    """Fill a template of this folder; in HTML every value is escaped, and a missing one is an error."""
    return environment().get_template(template).render(values)


def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update({name: getattr(formats, name) for name in _FILTERS})
    made.globals.update(tables=tables, data=data)  # what makes a table of a part of the metrics
    return made


def _threshold(params: Params, main: tables.Metric) -> float | None:
    """The minimum that a gate asks of the adapter's main metric."""
    wanted = main.path.removeprefix("classification.").removeprefix("text.").replace(".", "_")
    gates = (gate for gate in params.gates.values() if (gate.model, gate.metric) == ("adapter", wanted))
    return next((gate.minimum for gate in gates if not gate.against and not gate.of and gate.minimum is not None), None)
