"""The metrics of one model on a set of rows."""

from collections.abc import Iterable, Sequence

from stages.core.errors import UserError
from stages.params.evaluate import Scoring
from stages.scoring import corpora
from stages.scoring.intervals import Corpus, bootstrap, share
from stages.scoring.metrics import Classification, ClassMeans, Interval, LabelScores, Scores, Share, TextQuality
from stages.scoring.rows import RowScore

UNTAGGED = "untagged"


def summarise(scores: Sequence[RowScore], scoring: Scoring) -> Scores:
    """What one model's outputs are worth. Raises UserError when there are no rows."""
    if not scores:
        raise UserError(
            "the hold-out has no rows, so there is nothing to measure; draw it with `tunetrail holdout draw`"
        )

    def proportion(answers: Iterable[bool]) -> Share:
        return share(answers, scoring.confidence)

    of_json = [score for score in scores if score.kind == "json"]
    classes = [score for score in scores if score.kind == "classification"]
    texts = [score for score in scores if score.kind == "text"]
    surprise, parts = measured_perplexity(scores), by_task(scores)
    shares = corpora.of_json(of_json)
    told = [score.label_right for score in scores if score.label_right is not None]
    return Scores(
        rows=len(scores),
        exact_match=proportion(score.exact_match for score in scores),
        valid=proportion(score.valid for score in scores),
        output_tokens=sum(score.tokens for score in scores) / len(scores),
        json_valid=proportion(score.json_valid for score in of_json) if of_json else None,
        schema_valid=proportion(score.valid for score in of_json) if of_json else None,
        field_match=interval(shares["field_match"], scoring) if shares else None,
        label_accuracy=proportion(told) if told else None,
        perplexity=interval(surprise, scoring) if surprise else None,
        classification=_classes(classes, scoring) if classes else None,
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


def by_task(scores: Iterable[RowScore]) -> dict[str, list[RowScore]]:
    """The scores by the tag of their task, in the order of the tags."""
    parts: dict[str, list[RowScore]] = {}
    for score in scores:
        parts.setdefault(score.task or UNTAGGED, []).append(score)
    return dict(sorted(parts.items()))


def interval(corpus: Corpus, scoring: Scoring) -> Interval:
    """A metric of the rows with its bootstrap interval, as the parameters want it."""
    return bootstrap(corpus, scoring.confidence, scoring.resamples, scoring.seed)


def measured_perplexity(scores: Sequence[RowScore]) -> Corpus | None:
    """The perplexity of the references, or None when a row lacks its likelihood."""
    nats = [score.nats for score in scores if score.nats is not None]
    return corpora.perplexity(nats, [s.reference_tokens for s in scores]) if len(nats) == len(scores) else None


def _classes(scores: Sequence[RowScore], scoring: Scoring) -> Classification:
    found = {key: interval(corpus, scoring) for key, corpus in corpora.of_classes(scores).items()}
    means = (ClassMeans(**{name: found[mean, name] for name in corpora.CLASS_METRICS}) for mean in corpora.MEANS)
    return Classification(share((score.exact_match for score in scores), scoring.confidence), *means)


def _text(scores: Sequence[RowScore], scoring: Scoring) -> TextQuality:
    return TextQuality(
        **{name: interval(corpus, scoring) for name, corpus in corpora.of_text(scores).items()},
        words=sum(len(score.output.split()) for score in scores) / len(scores),
        rules={
            rule: share((score.rules[rule] for score in scores if rule in score.rules), scoring.confidence)
            for rule in sorted({rule for score in scores for rule in score.rules})
        },
    )
