"""The metrics of one model on a set of rows."""

from collections.abc import Iterable, Sequence
from typing import Any

from stages.core.errors import UserError
from stages.params import Scoring
from stages.scoring import corpora
from stages.scoring.intervals import Corpus, bootstrap, clopper_pearson
from stages.scoring.rows import RowScore

UNTAGGED = "untagged"


def summarise(scores: Sequence[RowScore], scoring: Scoring) -> dict[str, Any]:
    """SCORES: what one model's outputs are worth.

    P is a proportion {value, low, high, count, of} with its Clopper-Pearson interval, I an interval {value, low,
    high} of the bootstrap. What has no rows is left out; DVC would leave out an empty mapping too.

        of all rows: rows, exact_match: P, valid: P (keeps the contract of its task), output_tokens: mean,
            labels: {LABEL: {exact_match: P}}, perplexity: I of the references, where it was measured
        of json tasks: json_valid: P, schema_valid: P, fields: {FIELD: P of the rows that have it}, field_match: I
        classification: {accuracy: P, macro: {precision, recall, f1: I}, weighted: the same}
        text: {rouge1, rouge2, rougeL, bleu, chrf, readability: I, words: mean, rules: {RULE: P that keep it}}
        tasks: {TAG: SCORES}, where the rows have more than one task

    Raises:
        UserError: when there are no rows.
    """
    if not scores:
        raise UserError(
            "the hold-out has no rows, so there is nothing to measure; draw it with `tunetrail holdout draw`"
        )
    summary: dict[str, Any] = {
        "rows": len(scores),
        "exact_match": proportion((score.exact_match for score in scores), scoring),
        "valid": proportion((score.valid for score in scores), scoring),
    }
    for kind, describe in _KINDS.items():
        if part := [score for score in scores if score.kind == kind]:
            summary |= describe(part, scoring)
    if labels := sorted({score.label for score in scores if score.label is not None}):
        summary["labels"] = {
            label: {"exact_match": proportion((s.exact_match for s in scores if s.label == label), scoring)}
            for label in labels
        }
    if surprise := measured_perplexity(scores):
        summary["perplexity"] = interval(surprise, scoring)
    summary["output_tokens"] = sum(score.tokens for score in scores) / len(scores)
    if len(parts := by_task(scores)) > 1:
        summary["tasks"] = {tag: summarise(part, scoring) for tag, part in parts.items()}
    return summary


def by_task(scores: Iterable[RowScore]) -> dict[str, list[RowScore]]:
    """The scores by the tag of their task, in the order of the tags."""
    parts: dict[str, list[RowScore]] = {}
    for score in scores:
        parts.setdefault(score.task or UNTAGGED, []).append(score)
    return dict(sorted(parts.items()))


def proportion(answers: Iterable[bool], scoring: Scoring) -> dict[str, float | int]:
    right = list(answers)
    count, of = sum(right), len(right)
    low, high = clopper_pearson(count, of, scoring.confidence)
    return {"value": count / of, "low": low, "high": high, "count": count, "of": of}


def interval(corpus: Corpus, scoring: Scoring) -> dict[str, float]:
    value, low, high = bootstrap(corpus, scoring.confidence, scoring.resamples, scoring.seed)
    return {"value": value, "low": low, "high": high}


def measured_perplexity(scores: Sequence[RowScore]) -> Corpus | None:
    """The perplexity of the references, or None when a row lacks its likelihood."""
    nats = [score.nats for score in scores if score.nats is not None]
    return corpora.perplexity(nats, [s.reference_tokens for s in scores]) if len(nats) == len(scores) else None


def _describe_json(scores: Sequence[RowScore], scoring: Scoring) -> dict[str, Any]:
    found: dict[str, Any] = {
        "json_valid": proportion((score.json_valid for score in scores), scoring),
        "schema_valid": proportion((score.valid for score in scores), scoring),
    }
    if fields := sorted({field for score in scores for field in score.fields}):
        found["fields"] = {
            field: proportion((s.fields[field] for s in scores if field in s.fields), scoring) for field in fields
        }
    return found | {name: interval(corpus, scoring) for name, corpus in corpora.of_json(scores).items()}


def _describe_classes(scores: Sequence[RowScore], scoring: Scoring) -> dict[str, Any]:
    found: dict[str, Any] = {
        "accuracy": proportion((score.exact_match for score in scores), scoring),
        "macro": {},
        "weighted": {},
    }
    for name, corpus in corpora.of_classes(scores).items():
        mean, _, metric = name.partition(".")
        found[mean][metric] = interval(corpus, scoring)
    return {"classification": found}


def _describe_text(scores: Sequence[RowScore], scoring: Scoring) -> dict[str, Any]:
    found: dict[str, Any] = {name: interval(corpus, scoring) for name, corpus in corpora.of_text(scores).items()}
    found["words"] = sum(len(score.output.split()) for score in scores) / len(scores)
    if rules := sorted({rule for score in scores for rule in score.rules}):
        found["rules"] = {
            rule: proportion((s.rules[rule] for s in scores if rule in s.rules), scoring) for rule in rules
        }
    return {"text": found}


_KINDS = {"json": _describe_json, "classification": _describe_classes, "text": _describe_text}
