"""What one model's answers are worth, and what changed between two models that answered the same rows."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from stages.core.errors import UserError
from stages.params.evaluate import Scoring
from stages.scoring import corpora
from stages.scoring.intervals import Corpus, bootstrap, mcnemar, paired, paired_difference, share
from stages.scoring.metrics import (
    Change,
    ClassComparison,
    Classification,
    ClassMeans,
    Comparison,
    F1Shift,
    LabelScores,
    Ratio,
    Scores,
    Share,
    Shift,
    TextComparison,
    TextQuality,
)
from stages.scoring.rows import RowScore

UNTAGGED = "untagged"
KINDS = ("json", "classification", "text")


def summarise(scores: Sequence[RowScore], scoring: Scoring) -> Scores:
    """What one model's outputs are worth. Raises UserError when there are no rows."""
    if not scores:
        raise UserError(
            "the hold-out has no rows, so there is nothing to measure; draw it with `tunetrail holdout draw`"
        )

    def proportion(answers: Iterable[bool]) -> Share:
        return share(answers, scoring.confidence)

    of_json, classes, texts = (_of_kind(kind, scores) for kind in KINDS)
    surprise, fields, parts = _perplexity(scores), corpora.field_match(of_json), by_task(scores)
    told = [score.label_right for score in scores if score.label_right is not None]
    return Scores(
        rows=len(scores),
        exact_match=proportion(score.exact_match for score in scores),
        valid=proportion(score.valid for score in scores),
        output_tokens=sum(score.tokens for score in scores) / len(scores),
        json_valid=proportion(score.json_valid for score in of_json) if of_json else None,
        schema_valid=proportion(score.valid for score in of_json) if of_json else None,
        field_match=bootstrap(fields, scoring) if fields else None,
        label_accuracy=proportion(told) if told else None,
        perplexity=bootstrap(surprise, scoring) if surprise else None,
        classification=_classification(classes, scoring) if classes else None,
        text=_text(texts, scoring) if texts else None,
        fields={
            name: proportion(score.fields[name] for score in of_json if name in score.fields)
            for name in sorted({name for score in of_json for name in score.fields})
        },
        labels={
            label: LabelScores(proportion(score.exact_match for score in scores if score.label == label))
            for label in sorted({score.label for score in scores if score.label is not None})
        },
        tasks={tag: summarise(part, scoring) for tag, part in parts.items()} if len(parts) > 1 else {},
    )


def compare(before: Sequence[RowScore], after: Sequence[RowScore], scoring: Scoring) -> Comparison:
    """What changed from `before` to `after` on the same rows, in any order.

    Raises:
        ValueError: when the two are not scores of the same rows, each row once.
    """
    old, new = (sorted(scores, key=lambda score: score.id) for scores in (before, after))
    ids = [score.id for score in old]
    if not ids or ids != [score.id for score in new] or len(set(ids)) < len(ids):
        raise ValueError("the two sets of scores are not of the same rows")
    of_json, classes, texts = ([_of_kind(kind, side) for side in (old, new)] for kind in KINDS)
    told = [(a.label_right, b.label_right) for a, b in zip(old, new, strict=True)]
    labels = [(a, b) for a, b in told if a is not None and b is not None]
    schema = [(a.valid, b.valid) for a, b in zip(*of_json, strict=True)]
    had, has = (corpora.field_match(side) for side in of_json)
    earlier, later = _perplexity(old), _perplexity(new)
    tags, now = by_task(old), by_task(new)
    return Comparison(
        rows=len(old),
        exact_match=change(((a.exact_match, b.exact_match) for a, b in zip(old, new, strict=True)), scoring),
        schema_valid=change(schema, scoring) if schema else None,
        field_match=shift(had, has, scoring) if had and has else None,
        label_accuracy=change(labels, scoring) if labels else None,
        perplexity=ratio(earlier, later, scoring) if earlier and later else None,
        classification=_class_changes(classes[0], classes[1], scoring) if classes[0] else None,
        text=_text_changes(texts[0], texts[1], scoring) if texts[0] else None,
        tasks={tag: compare(tags[tag], now[tag], scoring) for tag in tags} if len(tags) > 1 else {},
    )


def change(pairs: Iterable[tuple[bool, bool]], scoring: Scoring) -> Change:
    """The change of a proportion on paired rows (before, after).

    Where McNemar's test does not reject, Newcombe's interval is widened to hold 0, so that the two never disagree
    about whether anything changed.
    """
    counts = Counter(pairs)
    both, won, lost, neither = (counts[pair] for pair in ((True, True), (False, True), (True, False), (False, False)))
    low, high = paired_difference(both, won, lost, neither, scoring.confidence)
    p_value = mcnemar(won, lost)
    if p_value > 1 - scoring.confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    return Change((won - lost) / (both + won + lost + neither), low, high, won, lost, p_value)


def shift(before: Corpus, after: Corpus, scoring: Scoring) -> Shift:
    """The change of a metric that is no proportion, with its paired bootstrap interval."""
    found = bootstrap(paired(before, after, np.subtract), scoring)
    return Shift(found.value, found.low, found.high)


def ratio(before: Corpus, after: Corpus, scoring: Scoring) -> Ratio:
    """after / before, with its paired bootstrap interval."""
    found = bootstrap(paired(before, after, np.divide), scoring)
    return Ratio(found.value, found.low, found.high)


def by_task(scores: Iterable[RowScore]) -> dict[str, list[RowScore]]:
    """The scores by the tag of their task, in the order of the tags."""
    parts: dict[str, list[RowScore]] = {}
    for score in scores:
        parts.setdefault(score.task or UNTAGGED, []).append(score)
    return dict(sorted(parts.items()))


def _of_kind(kind: str, scores: Iterable[RowScore]) -> list[RowScore]:
    return [score for score in scores if score.kind == kind]


def _perplexity(scores: Sequence[RowScore]) -> Corpus | None:
    """The perplexity of the references, or None when a row lacks its likelihood."""
    nats = [score.nats for score in scores if score.nats is not None]
    return corpora.perplexity(nats, [s.reference_tokens for s in scores]) if len(nats) == len(scores) else None


def _classification(scores: Sequence[RowScore], scoring: Scoring) -> Classification:
    found = {key: bootstrap(corpus, scoring) for key, corpus in corpora.of_classes(scores).items()}
    means = (ClassMeans(**{name: found[mean, name] for name in corpora.CLASS_METRICS}) for mean in corpora.MEANS)
    return Classification(share((score.exact_match for score in scores), scoring.confidence), *means)


def _text(scores: Sequence[RowScore], scoring: Scoring) -> TextQuality:
    return TextQuality(
        **{name: bootstrap(corpus, scoring) for name, corpus in corpora.of_text(scores).items()},
        words=sum(len(score.output.split()) for score in scores) / len(scores),
        rules={
            rule: share((score.rules[rule] for score in scores if rule in score.rules), scoring.confidence)
            for rule in sorted({rule for score in scores for rule in score.rules})
        },
    )


def _class_changes(before: Sequence[RowScore], after: Sequence[RowScore], scoring: Scoring) -> ClassComparison:
    old, new = corpora.of_classes(before), corpora.of_classes(after)
    return ClassComparison(*(F1Shift(shift(old[mean, "f1"], new[mean, "f1"], scoring)) for mean in corpora.MEANS))


def _text_changes(before: Sequence[RowScore], after: Sequence[RowScore], scoring: Scoring) -> TextComparison:
    old, new = corpora.of_text(before), corpora.of_text(after)
    return TextComparison(*(shift(old[name], new[name], scoring) for name in ("rougeL", "bleu", "chrf")))
