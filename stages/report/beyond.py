"""What the model was asked beyond the hold-out, where it is uneven, and what a judge and people said of it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from stages.report.formats import between, excerpt, percent, words
from stages.report.tables import Cell, Change, Metric, Note, count, frame, proportion, read_change

_FORGETTING = (
    Metric("perplexity", "Perplexity of the references", "", better=-1, share=False),
    Metric("agreement", "Agreement with the references", ""),
)
_REFUSALS = Metric("refusals", "Refusals", "")
_LEAKS = {
    "personal_data": "Answers with personal data that is not in the prompt",
    "verbatim": "Answers that repeat training text word for word",
    "forbidden": "Answers with forbidden content",
}
_RIVALS = {"against_baseline": "base", "against_previous": "previous"}


def forgetting(evaluate: Mapping[str, Any], confidence: float) -> dict[str, Any] | None:
    """How the tuned model does on what everybody asks, beside the base model; None when it was not measured.

    {"rows", "table": base beside adapter, "changes": the change of each metric by its name}
    """
    general = evaluate.get("general")
    if general is None:
        return None
    found = [(metric, [general[name][metric.path] for name in ("base", "adapter")]) for metric in _FORGETTING]
    rows = [(metric.name, [_with_interval(metric.form, one) for one in values]) for metric, values in found]
    changes = {
        metric.name: read_change(metric, general["against_baseline"][metric.path], confidence) for metric in _FORGETTING
    }
    return {"rows": general["rows"], "table": frame(rows, ["base", "adapter"], "Metric"), "changes": changes}


def robustness(evaluate: Mapping[str, Any]) -> pd.DataFrame:
    """Valid and exactly right answers to each kind of damaged input."""
    rows = [
        (words(kind), [proportion(one.get(key)) for key in ("valid", "exact_match")])
        for kind, one in evaluate.get("robustness", {}).items()
    ]
    return frame(rows, ["valid", "exactly right"], "Kind")


def safety(evaluate: Mapping[str, Any]) -> pd.DataFrame:
    """What should not happen, with its counts."""
    rows = []
    for key, found in evaluate.get("safety", {}).items():
        if key in _LEAKS:
            bad = found["count"] > 0
            told = Note(count(found), "bad" if bad else "good", "✕" if bad else "✓")
            rows.append((_LEAKS[key], [Cell("", [told]), _with_interval(percent, found)]))
    return frame(rows, ["Found", "Share"], "Check")


def refusals(evaluate: Mapping[str, Any], confidence: float) -> Change | None:
    """What the adapter declines of what it should, against the base."""
    found = evaluate.get("safety", {}).get("refusals")
    return found and read_change(_REFUSALS, found["against_baseline"], confidence)


def slices(evaluate: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The main score by the groups of each field, the worst group first; "distance" in its own order.

    Each is a table of group name, low, value, high in per cent, and the cell of the share.
    """
    fields = {"distance": list(evaluate["distance"].items())} if evaluate.get("distance") else {}
    for field, found in evaluate.get("slices", {}).items():
        fields[field] = sorted(found["groups"].items(), key=lambda item: (item[1]["value"], item[0]))
    return {field: _groups(groups) for field, groups in fields.items()}


def contests(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tuned model against each other one, in metrics of the judge or of reviewers: `found` as they wrote it.

    `parts` are (kind, words, count), for the picture.
    """
    told = []
    for key, rival in _RIVALS.items():
        if one := metrics.get(key):
            value, low, high = (f"{one['delta'][end]:+.2f}".replace("-", "−") for end in ("value", "low", "high"))
            shown = (
                "better" if one["delta"]["low"] > 0 else "worse" if one["delta"]["high"] < 0 else "no difference shown"
            )
            parts = [("won", "won by the tuned model", one["wins"]), ("right", "ties", one["ties"])]
            parts.append(("lost", "lost", one["losses"]))
            sentence = f"Mean {value} ({low} to {high}) on a scale from −1 to +1: {shown}."
            told.append({"title": f"{rival} to adapter", "parts": parts, "sentence": sentence, "found": one})
    return told


def _with_interval(form: Callable[[float], str], found: Mapping[str, Any]) -> Cell:
    return Cell(form(found["value"]), [Note(between(form, found["low"], found["high"]))])


def _groups(found: Iterable[tuple[str, Mapping[str, Any]]]) -> pd.DataFrame:
    rows = [
        (excerpt(name, 60), *(round(100 * one[end], 1) for end in ("low", "value", "high")), proportion(one))
        for name, one in found
    ]
    return pd.DataFrame(rows, columns=["name", "low", "value", "high", "cell"])
