"""What a language model as judge and what people said of the answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.report.formats import number, percent, percents, plural, whole

_RIVALS = {"against_baseline": "base", "against_previous": "previous"}


@dataclass(frozen=True)
class Contest:
    """The tuned model against another: `parts` are (kind, words, count), for the picture."""

    title: str
    parts: list[tuple[str, str, int]]
    sentence: str
    notes: list[str]


@dataclass(frozen=True)
class Opinions:
    """`off` says why there is none."""

    title: str
    off: str
    contests: list[Contest]
    notes: list[str]


def judge(metrics: Mapping[str, Any]) -> Opinions:
    """metrics/judge.json, as stages.measure.judge.summary describes it."""
    if not metrics["enabled"]:
        return Opinions("Judged by a language model", "The judge is off (judge.enabled).", [], [])
    replies, cost = metrics["replies"], metrics["cost"]
    return Opinions(
        title="Judged by a language model",
        off="",
        contests=[
            _contest(rival, metrics[key], "rows", _judge_notes) for key, rival in _RIVALS.items() if key in metrics
        ],
        notes=[
            f"{plural(replies['count'], 'reply', 'replies')}, {whole(replies['unreadable'])} of them no choice",
            f"{whole(cost['input_tokens'])} tokens read, {whole(cost['output_tokens'])} written, "
            f"price {number(cost['price'])}"
            + (
                f" without {plural(cost['uncounted'], 'reply', 'replies')} of unknown length"
                if cost["uncounted"]
                else ""
            ),
        ],
    )


def review(metrics: Mapping[str, Any]) -> Opinions:
    """metrics/review.json, as stages.measure.review.summary describes it."""
    title, counts = "Reviewed by people", metrics["reviews"]
    if not metrics.get("reviewers"):
        return Opinions(title, "Nobody has reviewed these answers (tunetrail review).", [], [])
    who = [
        f"{name}: {plural(one['counted'], 'answer')}, {whole(one['left'])} to go"
        + (f", {whole(one['stale'])} about other answers and not counted" if one["stale"] else "")
        for name, one in metrics["reviewers"].items()
    ]
    drawn = f"{plural(metrics['rows'], 'row')} drawn, on {whole(metrics['identical'])} all models say the same"
    notes = [drawn, *who, *([plural(counts["comments"], "comment")] if counts["comments"] else [])]
    contests = [
        _contest(rival, metrics[key], "answers", _review_notes) for key, rival in _RIVALS.items() if key in metrics
    ]
    return Opinions(title, "", contests, notes)


def _contest(rival: str, one: Mapping[str, Any], unit: str, notes: Any) -> Contest:
    delta = one["delta"]
    shown = "better" if delta["low"] > 0 else "worse" if delta["high"] < 0 else "no difference shown"
    return Contest(
        title=f"{rival} to adapter",
        parts=[
            ("won", "won by the tuned model", one["wins"]),
            ("right", "ties", one["ties"]),
            ("lost", "lost", one["losses"]),
        ],
        sentence=f"Mean {_mean(delta['value'])} ({_mean(delta['low'])} to {_mean(delta['high'])}) "
        f"on a scale from −1 to +1: {shown}.",
        notes=list(notes(one)),
    )


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
    return f"{percent(one['value'])} ({percents(one['low'], one['high'])} of {whole(one['of'])})"
