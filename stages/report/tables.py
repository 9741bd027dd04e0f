"""The tables of the report: metrics, gates, confusions."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.gates import FAIL, MARGINAL, PASS, worst
from stages.report.wording import excerpt, number, p_value, percent, percents, plural, points, size

_ALL_CLASSES = 12  # up to this many, the confusion table shows every value


@dataclass(frozen=True)
class Verdict:
    """The verdict of all gates: a word, a sentence, and the gates that do not pass."""

    state: str
    sentence: str
    open: list["GateRow"]


@dataclass(frozen=True)
class GateRow:
    name: str
    subject: str
    state: str
    asked: str
    required: bool
    reason: str


@dataclass(frozen=True)
class MetricCell:
    """A number, and in smaller print what belongs to it."""

    value: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class MetricRow:
    name: str
    cells: list[MetricCell]


@dataclass(frozen=True)
class Confusion:
    """Counts by actual value (rows) and predicted value (columns); values without a mistake may be left out."""

    values: list[str]
    counts: list[list[int]]
    rows: int
    right: int
    left_out: int


def gate_rows(gates: Mapping[str, Any], quantize: Mapping[str, Any]) -> list[GateRow]:
    """All gates: those on the adapter, then those on the files that ship."""
    return [
        GateRow(
            name=name,
            subject=subject,
            state=gate["state"],
            asked=f"{'at least' if gate['kind'] == 'minimum' else 'at most'} {gate['threshold']:g}",
            required=gate["required"],
            reason=gate["reason"],
        )
        for subject, checked in (("adapter", gates), ("shipped files", quantize))
        for name, gate in checked["gates"].items()
    ]


def verdict(gates: Mapping[str, Any], quantize: Mapping[str, Any]) -> Verdict:
    """The worse of the two verdicts, in words."""
    rows = gate_rows(gates, quantize)
    state = worst([gates["verdict"], quantize["verdict"]])
    failed = sum(row.required and row.state == FAIL for row in rows)
    unsure = any(row.required and row.state == MARGINAL for row in rows)
    not_passed = [row for row in rows if row.state != PASS]
    if not rows:
        sentence = "No gates are set."
    elif failed:
        sentence = f"{plural(failed, 'required gate')} of {len(rows)} {'fails' if failed == 1 else 'fail'}."
    elif unsure:
        sentence = "No required gate fails, but these rows do not show that all of them hold."
    elif state == MARGINAL:
        sentence = "All required gates hold, but an advisory one fails."
    else:
        sentence = "All required gates hold." if not_passed else "All gates hold."
    return Verdict(state, sentence, not_passed)


def metric_rows(scores: Mapping[str, Any], artefacts: Mapping[str, Any]) -> list[MetricRow]:
    """The metrics of all models, a cell for each."""
    sizes = [MetricCell(size(artefacts[name]["bytes"])) if name in artefacts else MetricCell("–") for name in scores]
    return [
        _proportions("Exact match", scores, lambda score: score["exact_match"]),
        _proportions("Fits the schema", scores, lambda score: score["schema_valid"]),
        _proportions("Valid JSON", scores, lambda score: score["json_valid"]),
        MetricRow("Perplexity", [MetricCell(number(score["perplexity"])) for score in scores.values()]),
        MetricRow("Mean tokens an answer", [MetricCell(number(score["output_tokens"])) for score in scores.values()]),
        MetricRow("Size of the files", sizes),
    ]


def field_rows(scores: Mapping[str, Any]) -> list[MetricRow]:
    """How often each field is right."""
    return [
        _proportions(excerpt(field, 80), scores, lambda score, field=field: score["fields"].get(field))  # type: ignore[misc]
        for field in scores["adapter"]["fields"]
    ]


def label_rows(scores: Mapping[str, Any]) -> list[MetricRow]:
    """Exact match by label."""
    return [
        _proportions(excerpt(label, 80), scores, lambda s, label=label: s["labels"].get(label, {}).get("exact_match"))  # type: ignore[misc]
        for label in scores["adapter"]["labels"]
    ]


def change_rows(against_baseline: Mapping[str, Any], artefacts: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What changed from model to model: name, then difference, won, lost and p-value of two metrics."""
    changes = [("base to adapter", against_baseline)]
    changes += [(f"adapter to {name}", artefact["against_adapter"]) for name, artefact in artefacts.items()]
    return [
        (name, [text for metric in ("exact_match", "schema_valid") for text in _change(change[metric])])
        for name, change in changes
    ]


def confusion(pairs: Sequence[tuple[str, str]]) -> Confusion | None:
    """Count (actual, predicted) pairs; None when there are none. Large tables keep the mistaken values alone."""
    if not pairs:
        return None
    counts = Counter(pairs)
    every = sorted({value for pair in pairs for value in pair})
    mistaken = {value for pair in pairs if pair[0] != pair[1] for value in pair}
    shown = every if len(every) <= _ALL_CLASSES else [value for value in every if value in mistaken]
    return Confusion(
        values=[excerpt(value, 40) if value else "(empty)" for value in shown],
        counts=[[counts[actual, predicted] for predicted in shown] for actual in shown],
        rows=len(pairs),
        right=sum(actual == predicted for actual, predicted in pairs),
        left_out=len(every) - len(shown),
    )


def _proportions(name: str, scores: Mapping[str, Any], pick: Callable[[Any], Any]) -> MetricRow:
    return MetricRow(name, [_proportion(pick(score)) for score in scores.values()])


def _proportion(metric: Mapping[str, Any] | None) -> MetricCell:
    if metric is None:
        return MetricCell("–")
    interval = percents(metric["low"], metric["high"])
    return MetricCell(percent(metric["value"]), (interval, f"{metric['count']} of {metric['of']}"))


def _change(change: Mapping[str, Any]) -> list[str]:
    return [points(change["difference"]), str(change["won"]), str(change["lost"]), p_value(change["p_value"])]
