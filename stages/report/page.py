"""The page and the short version for a pull request, from the inputs."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.params import Params
from stages.records.contract import Tasks
from stages.report import beyond, checks, cleaning, flags, formats, holdout, opinions, rows, tables, trail, verdict
from stages.report.charts import interval_chart, loss_chart
from stages.report.comparisons import Comparison
from stages.report.confusion import confusion
from stages.report.examples import Answers, failures, flips, shared
from stages.report.funnel import funnel
from stages.report.inputs import Inputs
from stages.report.measured import Measured, measured
from stages.report.metrics import Metric
from stages.scoring import score_row


def view(inputs: Inputs, params: Params, tasks: Tasks) -> dict[str, Any]:
    """Everything that the templates show, section by section."""
    confidence = params.scoring.confidence
    found = measured(inputs.metrics, inputs.scores(), confidence)
    said = verdict.verdict(inputs.metrics, confidence)
    return {
        "confidence": f"{confidence * 100:.4g} %",
        "verdict": said,
        "answers": verdict.answers(said, inputs.metrics, found),
        **_measured(inputs, params, found),
        **_examples(inputs, params, tasks, found[0].compared),
        "opinions": [opinions.judge(inputs.metrics["judge"]), opinions.review(inputs.metrics["review"])],
        **_beyond(inputs.metrics["evaluate"], confidence),
        **_training(inputs),
        **_data(inputs),
        **_trail(inputs.manifest),
    }


def _measured(inputs: Inputs, params: Params, found: list[Measured]) -> dict[str, Any]:
    scores, main, confidence = found[0].scores, found[0].main, params.scoring.confidence
    return {
        "main": main,
        "models": list(scores),
        "previous": inputs.metrics["evaluate"].get("previous"),
        "interval_chart": interval_chart(scores, main, _threshold(params, main), confidence),
        "metrics": tables.metric_groups(found[0], shared=len(found) > 1),
        "sizes": tables.size_row(scores, inputs.metrics["quantize"]["artefacts"]),
        "fields": tables.part_rows(scores, "fields"),
        "labels": tables.part_rows(scores, "labels", "exact_match"),
        "compared": found[0].compared,
        "changes": found[0].changes,
        "tasks": [(part, tables.metric_groups(part)) for part in found[1:]],
        "one_in": round(1 / (1 - confidence)),
        "confusion": confusion(inputs.confusion),
        "label_field": params.task.label_field,
    }


def _examples(inputs: Inputs, params: Params, tasks: Tasks, compared: list[Comparison]) -> dict[str, Any]:
    limit = params.report.examples
    given = {**inputs.generations, "previous": inputs.previous}
    answers = {name: Answers(name, rows, [score_row(row, tasks) for row in rows]) for name, rows in given.items()}
    pairs = [shared(answers[one.before], answers[one.after]) for one in compared]
    return {
        "instruction": params.task.instruction,
        "flips": [one for before, after in pairs for one in flips(before, after, tasks, limit)],
        "failures": failures(answers["adapter"], tasks, limit),
        "in_git": params.report.pull_request_examples,
    }


def _beyond(evaluate: dict[str, Any], confidence: float) -> dict[str, Any]:
    return {
        "forgetting": beyond.forgetting(evaluate, confidence),
        "robustness": beyond.robustness(evaluate),
        "safety": beyond.safety(evaluate, confidence),
        "slices": beyond.slices(evaluate),
    }


def _training(inputs: Inputs) -> dict[str, Any]:
    train = inputs.metrics["train"]
    return {
        "train": train,
        "loss_chart": loss_chart(inputs.curves, train.get("best_step")),
        "validation": inputs.curves["validation"],
        "samples": inputs.samples,
    }


def _data(inputs: Inputs) -> dict[str, Any]:
    return {
        "flags": flags.flags(inputs.metrics, inputs.generations),
        "funnel": funnel(inputs.metrics),
        "holdout_facts": holdout.holdout_facts(inputs.metrics["split"]),
        "label_rows": holdout.label_rows(inputs.metrics["split"]),
        "changed": cleaning.changed(inputs.metrics["clean"], inputs.cleaning),
        "masked": cleaning.masked(inputs.metrics["clean"]),
        "rejected": cleaning.rejected(inputs.metrics["clean"], inputs.cleaning),
        "sources": cleaning.sources(inputs.metrics["clean"]),
        "check_facts": checks.check_facts(inputs.metrics["checks"]),
        "triggers": checks.triggers(inputs.checks["triggers"]),
        "ties": checks.ties(inputs.checks["tied"]),
        "conflicts": checks.conflicts(inputs.checks["conflicts"]),
        "source_rows": checks.source_rows(inputs.metrics["checks"]),
        "duplicate_facts": rows.duplicate_facts(inputs.metrics["dedup"]),
        "duplicates": rows.set_aside(inputs.rejected["duplicates"]),
        "quarantined": rows.set_aside(inputs.rejected["quarantine"]),
    }


def _trail(manifest: dict[str, Any]) -> dict[str, Any]:
    return {
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
    filters = ("excerpt", "markdown_code", "markdown_text", "number", "percent", "plural", "whole", "words")
    made.filters.update({name: getattr(formats, name) for name in filters})
    return made


def _threshold(params: Params, main: Metric) -> float | None:
    """The minimum that a gate asks of the adapter's main metric."""
    wanted = f"evaluate.adapter.{main.path}"
    asked = (gate.minimum for gate in params.gates.values() if gate.metric == wanted and gate.comparison == "absolute")
    return next((minimum for minimum in asked if minimum is not None), None)
