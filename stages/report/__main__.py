"""report: one page that says whether this model may ship, and shows what that rests on."""

import math
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from rapidfuzz import fuzz, process

from stages.core import paths
from stages.core.errors import UserError, run
from stages.core.files import read_json, write_text
from stages.params.loader import Params, load_params
from stages.records.prompt import asked
from stages.records.record import Record, read_records, read_rows
from stages.report import findings, tables, verdict
from stages.report.changed_examples import Answer, Row, failures, flips
from stages.report.charts import Points, interval_chart, loss_chart
from stages.report.formats import number, render
from stages.scoring.catalogue import comparisons, models
from stages.scoring.paired_answers import read_previous
from stages.scoring.rows import score_row
from stages.text.json_schema import Tasks

SPENT = paths.ENVIRONMENT / "spent.html"
_CHECKS = ("triggers", "tied", "conflicts")


def main() -> None:
    params = load_params("gates", "report", "scoring", "task")
    shown = view(params, Tasks(params.task))
    write_text(paths.REPORT_HTML, render("report.html.j2", shown))
    write_text(paths.REPORT_MARKDOWN, render("report.md.j2", shown))
    write_spent(shown["metrics"]["train"].get("steps", 0))
    print(f"{shown['verdict'].state}: {shown['verdict'].sentence} See {paths.REPORT_HTML}")


def view(params: Params, tasks: Tasks) -> dict[str, Any]:
    """Everything that the templates show; `metrics` are those of the stages by name, which they read themselves.

    Raises UserError naming the file of another stage that is missing or broken.
    """
    metrics = {**_json(paths.DETAILS), "gates": _json(paths.GATES)}
    confidence, limit = params.scoring.confidence, params.report.examples
    scores, artefacts = models(metrics), metrics["quantize"]["artefacts"]
    found = tables.measured(scores, comparisons(metrics), confidence)
    generations = _generations(artefacts)
    curves = {name: _points(name) for name in ("train", "validation")}
    cleaning = list(read_rows(paths.CLEAN_EXAMPLES)) if limit else []
    return {
        "confidence": f"{confidence * 100:.4g} %",
        "one_in": round(1 / (1 - confidence)),
        "metrics": metrics,
        "tables": tables,  # they make a table of a part of the metrics
        "findings": findings,
        "manifest": _json(paths.MANIFEST),
        "verdict": verdict.verdict(metrics["gates"], confidence),
        "answers": verdict.answers(metrics, found),
        "found": found,
        "main": found[0].main,
        "models": list(scores),
        "interval_chart": interval_chart(scores, found[0].main, _threshold(params, found[0].main), confidence),
        "brief": tables.brief_table(found),
        "seeds": findings.seeds([_json(path) for path in sorted((paths.METRICS / "seeds").glob("*.json"))], found[0]),
        "confusion": tables.confusion_table(_table(paths.CONFUSION, ",")),
        "label_field": params.task.label_field,
        "instruction": params.task.instruction,
        **_examples(generations, tasks, limit, found[0].compared),
        "in_git": params.report.pull_request_examples,
        "opinions": {name: findings.contests(metrics[name]) for name in ("judge", "review")},
        "forgetting": findings.forgetting(metrics["evaluate"], confidence),
        "robustness": findings.robustness(metrics["evaluate"]),
        "safety": findings.safety(metrics["evaluate"]),
        "refusals": findings.refusals(metrics["evaluate"], confidence),
        "slices": findings.slices(metrics["evaluate"]),
        "loss_chart": loss_chart(curves, metrics["train"].get("best_step")),
        "validation": curves["validation"],
        "samples": {
            "What the model answered while it learned": list(read_rows(paths.TRAINING_SAMPLES)),
            "What it answered while it learned from preferences": list(read_rows(paths.PREFERENCE_SAMPLES)),
        },
        "flags": findings.flags(metrics, generations),
        "funnel": findings.funnel(metrics),
        "cleaning": {
            kind: findings.reasons(kind, metrics["clean"][kind], cleaning) for kind in ("changed", "rejected")
        },
        "rejected": {path.stem: _some(path, limit) for path in (paths.DUPLICATES, paths.QUARANTINE)},
        "checks": {name: list(islice(read_rows(paths.CHECKS / f"{name}.jsonl"), limit)) for name in _CHECKS},
        "tried": _json(paths.TRIED_TRIGGERS),  # the suspected triggers that the tuned model was asked about
    }


def _examples(
    generations: dict[str, list[Row]], tasks: Tasks, limit: int, compared: list[tables.Comparison]
) -> dict[str, Any]:
    given = {**generations, "previous": sorted(read_previous(), key=lambda row: row["id"])}
    answers = {name: {row["id"]: Answer(row, score_row(row, tasks)) for row in rows} for name, rows in given.items()}
    pairs = [(one.before, one.after) for one in compared if one.before in answers and one.after in answers]
    wrong = failures("adapter", answers["adapter"], tasks, limit)
    return {
        "flips": [one for pair in pairs for one in flips(pair, answers[pair[0]], answers[pair[1]], tasks, limit)],
        "failures": wrong,
        "taught_by": _nearest([answers["adapter"][one.id].row for one in wrong.examples]),
    }


def _nearest(wrong: list[Row]) -> dict[str, list[tuple[Record, float]]]:
    """For each row, by its id, the three training rows of the most alike prompts, and how alike (`fuzz.ratio`)."""
    train = list({row.id: row for row in read_records(paths.TRAIN)}.values()) if wrong else []
    texts = [asked(row) for row in train]
    near = {row["id"]: process.extract(row["prompt"], texts, scorer=fuzz.ratio, limit=3) for row in wrong}
    return {name: [(train[at], score) for _, score, at in found] for name, found in near.items()}


def _threshold(params: Params, main: tables.Metric) -> float | None:
    """The minimum that a gate asks of the adapter's main metric."""
    wanted = main.path.removeprefix("classification.").removeprefix("text.").replace(".", "_")
    gates = (gate for gate in params.gates.values() if (gate.model, gate.metric) == ("adapter", wanted))
    return next((gate.minimum for gate in gates if not gate.against and not gate.of and gate.minimum is not None), None)


def _json(path: Path) -> Any:
    try:
        return read_json(_there(path))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); run `dvc repro` to make it anew") from None


def _table(path: Path, separator: str) -> pd.DataFrame:
    """A table of text as it stands: a label may be "null" or empty, or hold a carriage return."""
    return pd.read_csv(_there(path), sep=separator, dtype=str, keep_default_na=False, lineterminator="\n")


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


def _generations(artefacts: Iterable[str]) -> dict[str, list[Row]]:
    """The rows of base, adapter and artefacts in one order. Raises UserError when the files differ in rows."""
    files = {"base": paths.BASE_GENERATIONS, "adapter": paths.ADAPTER_GENERATIONS}
    files |= {name: paths.ARTEFACT_GENERATIONS / f"{name}.jsonl" for name in artefacts}
    rows = {name: sorted(read_rows(path), key=lambda row: row["id"]) for name, path in files.items()}
    ids = {name: [row["id"] for row in found] for name, found in rows.items()}
    for name, path in files.items():
        if ids[name] != ids["base"]:
            raise UserError(f"{path} and {files['base']} answer different rows; run `dvc repro` to make both anew")
    return rows


def write_spent(steps: int) -> None:
    """What each stage took when it last ran on this machine, beside what an estimate of as many `steps` said.

    A page of its own, outside the trail: the report is the same bytes for the same inputs, which seconds are not.
    """
    notes: dict[str, Any] = {}
    for file in sorted(paths.ENVIRONMENT.glob("*.json")):
        with suppress(ValueError):
            notes[file.stem] = read_json(file)
    said = notes.pop("estimate", {})
    took = {name: note for name, note in notes.items() if isinstance(note, dict) and "seconds" in note}
    fits = isinstance(said, dict) and "train" in took and said.get("steps") == steps
    rows = []
    for name, note in sorted(took.items(), key=lambda item: -item[1]["seconds"]):
        guessed = (said["training"], said["energy_kwh"]) if fits and name == "train" else (None, None)
        values = (note["seconds"], note.get("peak_memory_mib"), note.get("energy_kwh"), *guessed)
        rows.append((name, *(tables.ABSENT if value is None else number(value) for value in values)))
    columns = ["Seconds", "Memory, MiB", "Energy, kWh", "Seconds estimated", "Energy estimated, kWh"]
    lines = [f"{number(sum(note['seconds'] for note in took.values()))} seconds in all."]
    lines += ["`tunetrail estimate` before a run says what its training will take."] if not fits else []
    shown = tables.frame(rows, columns, "Stage")
    write_text(SPENT, tables.table_page(shown, lines, "What the last run took", "By stage"))


if __name__ == "__main__":
    run(main)
