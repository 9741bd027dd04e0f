"""What changed between two models that answered the same rows."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from stages.params import Scoring
from stages.scoring import corpora
from stages.scoring.intervals import Array, Corpus, bootstrap, mcnemar, paired, paired_difference
from stages.scoring.rows import RowScore
from stages.scoring.summary import by_task, measured_perplexity


def compare(before: Sequence[RowScore], after: Sequence[RowScore], scoring: Scoring) -> dict[str, Any]:
    """COMPARISON: what changed from `before` to `after` on the same rows, in any order.

    D is the change of a proportion: {difference, low, high, won, lost, p_value}, see `change`; B the change of
    another metric with its paired bootstrap interval: {difference, low, high}.

        rows, exact_match: D
        perplexity: {ratio, low, high}, after / before, where both were measured
        schema_valid: D, field_match: B                           of json tasks
        classification: {macro: {f1: B}, weighted: {f1: B}}
        text: {rougeL, bleu, chrf: B}
        tasks: {TAG: COMPARISON}    where the rows have more than one task

    Raises:
        ValueError: when the two are not scores of the same rows, each row once.
    """
    old = {score.id: score for score in before}
    new = {score.id: score for score in after}
    if not old or old.keys() != new.keys() or not len(old) == len(before) == len(after):
        raise ValueError("the two sets of scores are not of the same rows")
    keys = sorted(old)
    return _compare([old[key] for key in keys], [new[key] for key in keys], scoring)


def change(pairs: Iterable[tuple[bool, bool]], scoring: Scoring) -> dict[str, float | int]:
    """The change of a proportion on paired rows (before, after).

    `won` counts rows that are right only after, `lost` rows that were right only before; `p_value` is the exact
    McNemar test, `low` and `high` are Newcombe's interval of the difference. Where the test does not reject, the
    interval is widened to hold 0, so that the two never disagree about whether anything changed.
    """
    counts = {True: {True: 0, False: 0}, False: {True: 0, False: 0}}
    for earlier, later in pairs:
        counts[earlier][later] += 1
    both, lost = counts[True][True], counts[True][False]
    won, neither = counts[False][True], counts[False][False]
    low, high = paired_difference(both, won, lost, neither, scoring.confidence)
    p_value = mcnemar(won, lost)
    if p_value > 1 - scoring.confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    difference = (won - lost) / (both + won + lost + neither)
    return {"difference": difference, "low": low, "high": high, "won": won, "lost": lost, "p_value": p_value}


def shift(before: Corpus, after: Corpus, scoring: Scoring) -> dict[str, float]:
    """The change of a metric that is no proportion, with its paired bootstrap interval."""
    return _bootstrapped("difference", before, after, np.subtract, scoring)


def ratio(before: Corpus, after: Corpus, scoring: Scoring) -> dict[str, float]:
    """after / before, with its paired bootstrap interval."""
    return _bootstrapped("ratio", before, after, np.divide, scoring)


def _bootstrapped(
    name: str, before: Corpus, after: Corpus, how: Callable[[Array, Array], Array], scoring: Scoring
) -> dict[str, float]:
    value, low, high = bootstrap(paired(before, after, how), scoring.confidence, scoring.resamples, scoring.seed)
    return {name: value, "low": low, "high": high}


def _compare(old: list[RowScore], new: list[RowScore], scoring: Scoring) -> dict[str, Any]:
    result: dict[str, Any] = {
        "rows": len(old),
        "exact_match": change(((a.exact_match, b.exact_match) for a, b in zip(old, new, strict=True)), scoring),
    }
    for kind, compare_kind in _KINDS.items():
        if at := [index for index, score in enumerate(old) if score.kind == kind]:
            result |= compare_kind([old[i] for i in at], [new[i] for i in at], scoring)
    earlier, later = measured_perplexity(old), measured_perplexity(new)
    if earlier and later:
        result["perplexity"] = ratio(earlier, later, scoring)
    tags = by_task(old)
    if len(tags) > 1:
        now = by_task(new)
        result["tasks"] = {tag: _compare(tags[tag], now[tag], scoring) for tag in tags}
    return result


def _compare_json(old: list[RowScore], new: list[RowScore], scoring: Scoring) -> dict[str, Any]:
    earlier, later = corpora.of_json(old), corpora.of_json(new)
    return {
        "schema_valid": change(((a.valid, b.valid) for a, b in zip(old, new, strict=True)), scoring),
        **{name: shift(earlier[name], later[name], scoring) for name in earlier},
    }


def _compare_classes(old: list[RowScore], new: list[RowScore], scoring: Scoring) -> dict[str, Any]:
    earlier, later = corpora.of_classes(old), corpora.of_classes(new)
    means = ("macro", "weighted")
    found = {mean: {"f1": shift(earlier[f"{mean}.f1"], later[f"{mean}.f1"], scoring)} for mean in means}
    return {"classification": found}


def _compare_text(old: list[RowScore], new: list[RowScore], scoring: Scoring) -> dict[str, Any]:
    earlier, later = corpora.of_text(old), corpora.of_text(new)
    return {"text": {name: shift(earlier[name], later[name], scoring) for name in ("rougeL", "bleu", "chrf")}}


_KINDS = {"json": _compare_json, "classification": _compare_classes, "text": _compare_text}
