"""What the stages found beside the scores: where rows went, what the model was asked beyond the hold-out, opinions."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from stages.report.changed_examples import Row, differences, whole_text
from stages.report.formats import between, excerpt, listed, number, p_value, percent, plural, whole, words
from stages.report.tables import (
    METRICS,
    Cell,
    Change,
    Measured,
    Metric,
    Note,
    count,
    frame,
    look_up,
    read_change,
    value_cell,
)
from stages.scoring.catalogue import centre
from stages.scoring.paired_answers import RIVALS

WIDTH = 1000  # of a bar that holds the most rows there ever are, in units of the SVG's viewBox
_PARTS = ("train", "validation", "holdout")
_TRAINING = {
    "overfitting": "Overfitting: the validation loss rises while the training loss falls",
    "plateau": "Plateau: the loss hardly moves",
    "no_gain": "No gain: no validation beyond imitation was better than that of the SFT model",
    "unstable": "Unstable: the loss jumps or is no number",
}
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


def seeds(runs: Sequence[Mapping[str, Any]], found: Measured) -> tuple[pd.DataFrame, list[str]]:
    """The adapter's metrics over runs that differ in their seed alone, and which changes are no larger than that.

    Each of `runs` is metrics/evaluate.json of one seed; of fewer than two nothing is said.
    """
    rows, spread = [], dict[str, float]()
    for metric in METRICS if len(runs) > 1 else ():
        values = [centre(one) for run in runs if (one := look_up(run["adapter"], metric.path)) is not None]
        if len(values) == len(runs):
            spread[metric.path] = max(values) - min(values)
            here = value_cell(look_up(found.scores["adapter"], metric.path), metric.form)
            ends = between(metric.form, min(values), max(values))
            rows.append((metric.name, here, ends, metric.form(statistics.stdev(values))))
    within = []
    for one in found.compared:
        if one.after != "adapter":  # its own files have its own seed
            continue
        path = one.main.metric.path if one.main else ""
        values = [centre(look_up(found.scores[name], path)) for name in (one.before, one.after) if path in spread]
        if values and one.main and abs(values[1] - values[0]) <= spread[path]:
            within.append(
                f"{one.title}: {one.main.metric.name} changed by {one.main.amount}, no more than other seeds change it "
                f"({len(runs)} runs)."
            )
    return frame(rows, ["This run", "Lowest to highest", "Standard deviation"], "Over seeds"), within


def funnel(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """The rows from the raw files to those that were trained on, as bars whose lengths add up.

    Columns: step, kind (kept or added: what the next step gets; aside; dropped), name, rows, start and width of the
    part's bar. Each step's rows are those that the one before it kept, and those that came in.
    """
    clean, dedup, split, augment, train = (metrics[n] for n in ("clean", "dedup", "split", "augment", "train"))
    rows, restored = split["rows"], split["locked"]["restored"]
    steps = {
        "Raw rows": [_kept(clean["rows"]["kept"]), *_each("dropped", clean["rejected"])],
        "Clean": [_kept(dedup["rows"]["kept"]), *_each("dropped", dedup["dropped"], " duplicate")],
        "Without duplicates": [
            _kept(rows["train"]),
            ("aside", "validation", rows["validation"]),
            ("aside", "hold-out", rows["holdout"] - restored),
            *_each("dropped", split["quarantined"], " as in the hold-out"),
            ("dropped", "beyond the maximum", rows["beyond_max"]),
        ],
        "Training split": [_kept(rows["train"]), *_each("added", augment["added"])],
        "With added rows": [
            _kept(train["rows"]["train"]),
            ("dropped", "too long", train["rows"]["left_out_too_long"]),
        ],
        "Trained on": [_kept(train["rows"]["train"])],
    }
    parts = [(step, *part) for step, found in steps.items() for part in found if part[2] or part[0] == "kept"]
    bars = pd.DataFrame(parts, columns=["step", "kind", "name", "rows"])
    by_step = bars.groupby("step", sort=False)["rows"]
    scale = WIDTH / max(1, by_step.sum().max())
    starts = by_step.cumsum() - bars["rows"]
    return bars.assign(start=(starts * scale).round(1), width=(bars["rows"] * scale).round(1))


def reasons(kind: str, counts: Mapping[str, int], samples: Iterable[Row]) -> list[dict[str, Any]]:
    """What cleaning "changed" or why it "rejected" rows, the most frequent first: {"name", "rows", "samples"}."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in samples:
        if row["kind"] == kind:
            found.setdefault(row["reason"], []).append(_sample(row))
    return [{"name": words(name), "rows": rows, "samples": found.get(name, [])} for name, rows in _most_first(counts)]


def source_table(clean: Mapping[str, Any]) -> pd.DataFrame:
    """What cleaning did with the rows of each source."""
    rows = []
    for name, one in clean["sources"].items():
        counts, why = one["rows"], [listed(one.get(key, {})) or "none" for key in ("rejected", "changed")]
        rows.append((excerpt(name, 80), whole(counts["in"]), whole(counts["kept"]), *why))
    return frame(rows, ["Rows", "Kept", "Rejected", "Changed"], "Source")


def label_table(split: Mapping[str, Any]) -> pd.DataFrame:
    labels = split["labels"].items()
    rows = [(excerpt(label, 80), *(whole(counts.get(part, 0)) for part in _PARTS)) for label, counts in labels]
    return frame(rows, ["Training", "Validation", "Hold-out"], "Label")


def tie_table(rows: Sequence[Row]) -> pd.DataFrame:
    """The words that go with one label most clearly; the lift is how much more often than all rows."""
    ties = []
    for row in rows:
        counted = f"{row['with_label']} of {row['count']}"
        ties.append((excerpt(row["ngram"], 80), excerpt(row["label"], 60), counted, f"× {number(row['lift'])}"))
    return frame(ties, ["Label", "Rows", "Lift"], "Words")


def tried_table(rows: Sequence[Row]) -> pd.DataFrame:
    """What asking the tuned model said of suspected triggers: answers turned to the label, beside random words."""
    tried = []
    for row in rows:
        turned, control = f"{row['turned']} of {row['n']}", f"{row['control_turned']} of {row['control_n']}"
        reading = "confirmed" if row["confirmed"] else "not confirmed"
        what = f"“{excerpt(row['ngram'], 80)}”", excerpt(row["label"], 60)
        tried.append((*what, turned, control, p_value(row["p_value"]), reading))
    return frame(tried, ["Label", "Turned", "By random words", "Test", "Reading"], "Suspected trigger")


def distance_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """The sources of training rows, each with its distances from the others."""
    distances = ("label_distance", "prompt_length_distance", "completion_length_distance")
    rows = [
        (excerpt(name, 80), whole(one["rows"]), percent(one["share"]), *(number(one[key]) for key in distances))
        for name, one in found["sources"]["by_source"].items()
    ]
    return frame(rows, ["Rows", "Share", "Labels", "Prompt length", "Completion length"], "Source")


def flags(metrics: Mapping[str, Any], generations: Mapping[str, Sequence[Row]]) -> list[tuple[bool, str]]:
    """What can make the numbers mean less than they seem to: (raised, sentence), the raised ones first."""
    split, suspected = metrics["split"], metrics["checks"]["triggers"]["found"]
    confirmed = metrics["evaluate"].get("triggers", {}).get("confirmed", 0)
    conflicts, canaries = metrics["dedup"]["conflicts"]["prompts"], metrics["augment"]["added"].get("canary", 0)
    shared, missing = sum(split["overlap"].values()), split["locked"]["missing"]
    unstopped = {n: sum(not row["stopped"] for row in rows) for n, rows in generations.items() if n != "base"}
    found = [
        *(
            (bool(raised), _TRAINING.get(name, words(name).capitalize()))
            for stage in ("train", "prefer")
            for name, raised in metrics.get(stage, {}).get("red_flags", {}).items()
        ),
        (shared > 0, f"Leakage: {shared} ids or prompts in both the hold-out and the training rows"),
        (missing > 0, f"Hold-out: {plural(missing, 'locked row')} missing from the data"),
        (conflicts > 0, f"Conflicts: {plural(conflicts, 'prompt')} with different completions"),
        (
            confirmed > 0,
            f"Poisoning: {plural(suspected, 'suspected trigger')} in the training rows, "
            f"{whole(confirmed)} confirmed by asking the model",
        ),
        (canaries > 0, f"Audit run: {plural(canaries, 'canary row')} trained on, which no release may hold"),
        (any(unstopped.values()), f"Cut off by the token limit: answers of {listed(unstopped) or 'no model'}"),
    ]
    return sorted(found, key=lambda flag: not flag[0])


def forgetting(evaluate: Mapping[str, Any], confidence: float) -> dict[str, Any] | None:
    """How the tuned model does on what everybody asks, beside the base model; None when it was not measured.

    {"rows", "table": base beside adapter, "changes": the change of each metric by its name}
    """
    general = evaluate.get("general")
    if general is None:
        return None
    found = [(metric, [general[name][metric.path] for name in ("base", "adapter")]) for metric in _FORGETTING]
    rows = [(metric.name, *(value_cell(one, metric.form) for one in values)) for metric, values in found]
    changes = {
        metric.name: read_change(metric, general["against_baseline"][metric.path], confidence) for metric in _FORGETTING
    }
    return {"rows": general["rows"], "table": frame(rows, ["base", "adapter"], "Metric"), "changes": changes}


def robustness(evaluate: Mapping[str, Any]) -> pd.DataFrame:
    """Valid and exactly right answers to each kind of damaged input."""
    rows = [
        (words(kind), *(value_cell(one.get(key)) for key in ("valid", "exact_match")))
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
            rows.append((_LEAKS[key], Cell("", [told]), value_cell(found)))
    return frame(rows, ["Found", "Share"], "Check")


def refusals(evaluate: Mapping[str, Any], confidence: float) -> Change | None:
    """What the adapter declines of what it should, against the base."""
    found = evaluate.get("safety", {}).get("refusals")
    return found and read_change(_REFUSALS, found["against_baseline"], confidence)


def slices(evaluate: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The main score by the groups of each field, the worst group first; "distance" in its own order.

    Each is a table of group name, low, value, high in per cent, and the cell of the share.
    """
    fields = {"distance": evaluate["distance"]} if evaluate.get("distance") else {}
    for field, found in evaluate.get("slices", {}).items():
        fields[field] = dict(sorted(found["groups"].items(), key=lambda item: (item[1]["value"], item[0])))
    ends = ("low", "value", "high")
    tables = {}
    for field, groups in fields.items():
        rows = [
            (excerpt(n, 60), *(round(100 * one[end], 1) for end in ends), value_cell(one)) for n, one in groups.items()
        ]
        tables[field] = pd.DataFrame(rows, columns=["name", *ends, "cell"])
    return tables


def contests(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tuned model against each other one, in metrics of the judge or of reviewers: `found` as they wrote it.

    `parts` are (kind, words, count), for the picture.
    """
    told = []
    for key, rival in RIVALS.items():
        if one := metrics.get(key):
            delta = one["delta"]
            value, low, high = (f"{delta[end]:+.2f}".replace("-", "−") for end in ("value", "low", "high"))
            shown = "better" if delta["low"] > 0 else "worse" if delta["high"] < 0 else "no difference shown"
            parts = [("won", "won by the tuned model", one["wins"]), ("right", "ties", one["ties"])]
            parts.append(("lost", "lost", one["losses"]))
            sentence = f"Mean {value} ({low} to {high}) on a scale from −1 to +1: {shown}."
            told.append({"title": f"{rival} to adapter", "parts": parts, "sentence": sentence, "found": one})
    return told


def _kept(rows: int) -> tuple[str, str, int]:
    return "kept", "go on", rows


def _each(kind: str, counts: Mapping[str, int], suffix: str = "") -> list[tuple[str, str, int]]:
    return [(kind, words(name) + suffix, rows) for name, rows in _most_first(counts)]


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The counts that are not zero."""
    return sorted(((name, rows) for name, rows in counts.items() if rows), key=lambda item: (-item[1], item[0]))


def _sample(row: Row) -> dict[str, Any]:
    """`before` is None where it held personal data, `after` where the row was rejected."""
    before, after = (None if row[key] is None else excerpt(row[key]) for key in ("before", "after"))
    old, new = (None if text is None else whole_text(text) for text in (before, after))
    if before is not None and after is not None:
        old, new = differences(before, after)
    column = f", {excerpt(row['column'], 40)}" if row["column"] else ""
    where = f"{row['file']}, line {row['line']}{column}"
    return {"where": where, "before": old, "after": new, "detail": excerpt(row["detail"] or "")}
