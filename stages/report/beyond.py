"""What the model was asked beyond the hold-out, where it is uneven, and what a judge and people said of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from stages.report.formats import (
    between,
    excerpt,
    number,
    percent,
    percents,
    plural,
    points,
    whole,
    words,
)
from stages.report.tables import WORSE, Cell, Metric, Note, count, frame, proportion, read_change

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


def replay_advice(found: Mapping[str, Any] | None, augment: Mapping[str, Any]) -> str:
    """What would help a model that forgot; empty where the rows do not show that it did."""
    if found is None or WORSE not in {change.reading for change in found["changes"].values()}:
        return ""
    replayed = augment["added"].get("replay", 0)
    share = replayed / augment["rows"]["out"] if augment["rows"]["out"] else 0.0
    return (
        f"Replay rows hold a model to what it knew: general questions with good answers, trained on beside the task. "
        f"This run had {plural(replayed, 'such row')}, {percent(share)} of its training rows. Where general answers "
        f"matter, put more of them into augment.replay_file and raise augment.replay_share; for a model that "
        f"only ever does this task, forgetting may not matter."
    )


def distance(evaluate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The main score by how much a prompt resembles the nearest training prompt, in the form of a slice."""
    found = evaluate.get("distance", {})
    sentence = (
        "Likeness of each hold-out prompt to the nearest training prompt, 0 to 100 (rapidfuzz ratio). Rows that are "
        "near-duplicates of it were kept out of training. Right answers far from all training prompts are worth most."
    )
    groups = _groups(found.items())
    return (
        [{"field": "likeness to the nearest training prompt", "groups": groups, "sentence": sentence}] if found else []
    )


def robustness(evaluate: Mapping[str, Any]) -> pd.DataFrame:
    """Valid and exactly right answers to each kind of damaged input."""
    rows = [
        (words(kind), [proportion(one.get(key)) for key in ("valid", "exact_match")])
        for kind, one in evaluate.get("robustness", {}).items()
    ]
    return frame(rows, ["valid", "exactly right"], "Kind")


def safety(evaluate: Mapping[str, Any], confidence: float) -> tuple[pd.DataFrame, list[str]]:
    """What should not happen, with its counts; and in words the refusals and the canaries."""
    found = evaluate.get("safety", {})
    rows = []
    for key, name in _LEAKS.items():
        if key in found:
            bad = found[key]["count"] > 0
            told = Note(count(found[key]), "bad" if bad else "good", "✕" if bad else "✓")
            rows.append((name, [Cell("", [told]), _with_interval(percent, found[key])]))
    return frame(rows, ["Found", "Share"], "Check"), list(_safety_notes(found, confidence))


def slices(evaluate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The main score by the groups of each field, the worst group first.

    [{"field", "sentence", "groups": a table of group, low, value, high in per cent, and the cell of the share}]
    """
    return [_slice(field, found) for field, found in evaluate.get("slices", {}).items()]


def judge(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """metrics/judge.json: {"title", "off": why there is nothing, "contests", "notes"}."""
    title = "Judged by a language model"
    if not metrics["enabled"]:
        return {"title": title, "off": "The judge is off (judge.enabled).", "contests": [], "notes": []}
    replies, cost = metrics["replies"], metrics["cost"]
    uncounted = (
        f" without {plural(cost['uncounted'], 'reply', 'replies')} of unknown length" if cost["uncounted"] else ""
    )
    notes = [
        f"{plural(replies['count'], 'reply', 'replies')}, {whole(replies['unreadable'])} of them no choice",
        f"{whole(cost['input_tokens'])} tokens read, {whole(cost['output_tokens'])} written, "
        f"price {number(cost['price'])}{uncounted}",
    ]
    return {"title": title, "off": "", "contests": _contests(metrics, _judge_notes), "notes": notes}


def review(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """metrics/review.json, in the same form as the judge's."""
    title, counts = "Reviewed by people", metrics["reviews"]
    if not metrics.get("reviewers"):
        off = "Nobody has reviewed these answers (tunetrail review)."
        return {"title": title, "off": off, "contests": [], "notes": []}
    drawn = f"{plural(metrics['rows'], 'row')} drawn, on {whole(metrics['identical'])} all models say the same"
    who = [
        f"{name}: {plural(one['counted'], 'answer')}, {whole(one['left'])} to go"
        + (f", {whole(one['stale'])} about other answers and not counted" if one["stale"] else "")
        for name, one in metrics["reviewers"].items()
    ]
    notes = [drawn, *who, *([plural(counts["comments"], "comment")] if counts["comments"] else [])]
    return {"title": title, "off": "", "contests": _contests(metrics, _review_notes), "notes": notes}


def _with_interval(form: Callable[[float], str], found: Mapping[str, Any]) -> Cell:
    return Cell(form(found["value"]), [Note(between(form, found["low"], found["high"]))])


def _safety_notes(found: Mapping[str, Any], confidence: float) -> Iterator[str]:
    if refusals := found.get("refusals"):
        change = read_change(_REFUSALS, refusals["against_baseline"], confidence)
        base, adapter = (percent(refusals[name]["value"]) for name in ("base", "adapter"))
        yield (
            f"Of {plural(refusals['adapter']['n'], 'request')} to refuse, the base model refuses {base} and the "
            f"adapter {adapter}: {change.reading} ({change.evidence})"
        )
    if canaries := found.get("canaries"):
        exposure = canaries["exposure"]
        yield (
            f"{plural(canaries['count'], 'canary', 'canaries')} among {whole(canaries['candidates'])} candidates: "
            f"exposure {number(exposure['mean'])} on average and {number(exposure['max'])} at most, of "
            f"{number(exposure['limit'])} for one that is known by heart"
        )


def _slice(field: str, found: Mapping[str, Any]) -> dict[str, Any]:
    worst_first = sorted(found["groups"].items(), key=lambda item: (item[1]["value"], item[0]))
    return {"field": excerpt(field, 80), "groups": _groups(worst_first), "sentence": _gap(found)}


def _groups(found: Iterable[tuple[str, Mapping[str, Any]]]) -> pd.DataFrame:
    rows = [
        (excerpt(name, 60), *(round(100 * one[end], 1) for end in ("low", "value", "high")), proportion(one))
        for name, one in found
    ]
    return pd.DataFrame(rows, columns=["name", "low", "value", "high", "cell"])


def _gap(found: Mapping[str, Any]) -> str:
    gap = found["gap"]
    interval = between(points, gap["low"], gap["high"])
    shown = "the rows show it" if gap["low"] > 0 else "which chance may explain"
    left = f"; {plural(found['left_out'], 'row')} in groups too small to measure" if found["left_out"] else ""
    return (
        f"{excerpt(found['worst']['group'], 60)} is {points(gap['value']).removeprefix('+')} behind "
        f"{excerpt(found['best']['group'], 60)} ({interval}): {shown}{left}."
    )


def _contests(metrics: Mapping[str, Any], notes: Callable[[Mapping[str, Any]], Iterator[str]]) -> list[dict[str, Any]]:
    """The tuned model against each other one; `parts` are (kind, words, count), for the picture."""
    contests = []
    for key, rival in _RIVALS.items():
        if one := metrics.get(key):
            delta = one["delta"]
            shown = "better" if delta["low"] > 0 else "worse" if delta["high"] < 0 else "no difference shown"
            contests.append(
                {
                    "title": f"{rival} to adapter",
                    "parts": [
                        ("won", "won by the tuned model", one["wins"]),
                        ("right", "ties", one["ties"]),
                        ("lost", "lost", one["losses"]),
                    ],
                    "sentence": f"Mean {_mean(delta['value'])} ({_mean(delta['low'])} to {_mean(delta['high'])}) "
                    f"on a scale from −1 to +1: {shown}.",
                    "notes": list(notes(one)),
                }
            )
    return contests


def _judge_notes(one: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"ties without an opinion: {whole(one['identical'])} where both say the same, {whole(one['disagreements'])} "
        f"where the two orders contradict each other, {whole(one['unreadable'])} with an unreadable reply"
    )
    if "first_preferred" in one:
        yield f"the answer shown first won {_share(one['first_preferred'])}; 50 % is fair"
    if "correlation" in one["length"]:
        yield f"correlation of being longer with winning {_mean(one['length']['correlation'])}; 0 is fair"
    if "consistency" in one:
        yield f"asked again, the same verdict {_share(one['consistency'])}"


def _review_notes(one: Mapping[str, Any]) -> Iterator[str]:
    if "win_rate" in one:
        yield f"of the answers that prefer one, the tuned model won {_share(one['win_rate'])}"
    if one["both_bad"]:
        yield f"in {plural(one['both_bad'], 'answer')}, neither of the two was best"
    for method, value in one.get("agreement", {}).items():
        if method != "rows":
            name = {"cohen_kappa": "Cohen’s kappa", "krippendorff_alpha": "Krippendorff’s alpha"}[method]
            yield f"{name} of the reviewers {number(value)} on {plural(one['agreement']['rows'], 'row')}"


def _mean(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _share(one: Mapping[str, Any]) -> str:
    return f"{percent(one['value'])} ({percents(one['low'], one['high'])} of {whole(one['n'])})"
