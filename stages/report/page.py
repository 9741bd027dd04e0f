"""The page and the short version for a pull request, from the inputs."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.completions import Schema
from stages.params import Params
from stages.report import tables, trail, wording
from stages.report.charts import interval_chart, loss_chart
from stages.report.examples import Answers, example_groups
from stages.report.inputs import Inputs
from stages.scoring import score_row


def view(inputs: Inputs, params: Params, schema: Schema) -> dict[str, Any]:
    """Everything that the templates show, in their order."""
    metrics, manifest, scores = inputs.metrics, inputs.manifest, inputs.scores()
    artefacts = metrics["quantize"]["artefacts"]
    answers = {
        name: Answers(name, rows, [score_row(row, schema) for row in rows]) for name, rows in inputs.generations.items()
    }
    return {
        "confidence": f"{params.scoring.confidence * 100:.4g} %",
        "instruction": params.task.instruction,
        "label_field": params.task.label_field,
        "verdict": tables.verdict(metrics["gates"], metrics["quantize"]),
        "gates": tables.gate_rows(metrics["gates"], metrics["quantize"]),
        "interval_chart": interval_chart(scores, _threshold(params), params.scoring.confidence),
        "models": list(scores),
        "metrics": tables.metric_rows(scores, artefacts),
        "fields": tables.field_rows(scores),
        "labels": tables.label_rows(scores),
        "changes": tables.change_rows(metrics["evaluate"]["against_baseline"], artefacts),
        "confusion": tables.confusion(inputs.confusion),
        "groups": example_groups(answers, schema, params.report.examples),
        "train": metrics["train"],
        "loss_chart": loss_chart(inputs.curves, metrics["train"].get("best_step")),
        "validation": inputs.curves["validation"],
        "samples": inputs.samples,
        "flags": trail.flags(metrics, inputs.generations),
        "funnel": trail.funnel(metrics),
        "cleaned": trail.changes(metrics),
        "rejected": trail.rejected_lines(inputs.rejected["clean"]),
        "duplicates": trail.set_aside(inputs.rejected["duplicates"]),
        "quarantined": trail.set_aside(inputs.rejected["quarantine"]),
        "base": manifest["base"],
        "libraries": manifest["libraries"],
        "hashes": {
            "Files of the release": trail.hashed_files(manifest["files"]),
            "Adapter": trail.hashed_files(manifest["adapter"]),
            "Data": trail.hashed_files(manifest["data"]),
            "Base model": trail.hashed_files(manifest["base"]["files"]),
            "Metrics": trail.hashed_files(manifest["metrics"]),
            "Code": trail.hashed_files(manifest["code"]),
        },
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
    made.filters.update(
        {name: getattr(wording, name) for name in ("excerpt", "markdown_code", "number", "percent", "plural", "whole")}
    )
    return made


def _threshold(params: Params) -> float | None:
    """The minimum that a gate asks of the adapter's exact match."""
    asked = (gate.minimum for gate in params.evaluate.gates.values() if gate.metric == "evaluate.adapter.exact_match")
    return next((minimum for minimum in asked if minimum is not None), None)
