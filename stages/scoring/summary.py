"""What one model's answers are worth, and what changed between two models that answered the same rows."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from stages.core.errors import UserError
from stages.params.measure import Scoring
from stages.records.record import grouped
from stages.scoring.intervals import Array, Corpus, bootstrap, mcnemar, mean_of, paired, paired_difference, share
from stages.scoring.metrics import (
    Change,
    ClassComparison,
    Classification,
    ClassMeans,
    Comparison,
    F1Shift,
    Interval,
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
MEANS, CLASS_METRICS = ("macro", "weighted"), ("precision", "recall", "f1")
_ENDS = ".!?…。！？"  # of a sentence


def summarise(scores: Sequence[RowScore], scoring: Scoring) -> Scores:
    """What one model's outputs are worth. Raises UserError when there are no rows."""
    if not scores:
        raise UserError(
            "the hold-out has no rows, so there is nothing to measure; draw it with `tunetrail holdout draw`"
        )

    def proportion(answers: Iterable[bool]) -> Share:
        return share(answers, scoring.confidence)

    of_json, classes, texts = (_of_kind(kind, scores) for kind in KINDS)
    surprise, fields, parts = _perplexity(scores), field_match(of_json), by_task(scores)
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
        custom=_custom(scores, scoring),
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

    Raises ValueError when the two are not scores of the same rows, each row once.
    """
    old, new = (sorted(scores, key=lambda score: score.id) for scores in (before, after))
    ids = [score.id for score in old]
    if not ids or ids != [score.id for score in new] or len(set(ids)) < len(ids):
        raise ValueError("the two sets of scores are not of the same rows")
    of_json, classes, texts = ([_of_kind(kind, side) for side in (old, new)] for kind in KINDS)
    told = [(a.label_right, b.label_right) for a, b in zip(old, new, strict=True)]
    labels = [(a, b) for a, b in told if a is not None and b is not None]
    schema = [(a.valid, b.valid) for a, b in zip(*of_json, strict=True)]
    had, has = (field_match(side) for side in of_json)
    earlier, later = _perplexity(old), _perplexity(new)
    tags, now = by_task(old), by_task(new)
    return Comparison(
        rows=len(old),
        exact_match=change(((a.exact_match, b.exact_match) for a, b in zip(old, new, strict=True)), scoring),
        schema_valid=change(schema, scoring) if schema else None,
        field_match=shift(had, has, scoring) if had and has else None,
        label_accuracy=change(labels, scoring) if labels else None,
        perplexity=ratio(earlier, later, scoring) if earlier and later else None,
        custom=_custom_change(old, new, scoring),
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
    return dict(sorted(grouped(scores, lambda score: score.task or UNTAGGED).items()))


def _of_kind(kind: str, scores: Iterable[RowScore]) -> list[RowScore]:
    return [score for score in scores if score.kind == kind]


def _perplexity(scores: Sequence[RowScore]) -> Corpus | None:
    """The perplexity of the references, or None when a row lacks its likelihood."""
    nats = [score.nats for score in scores if score.nats is not None]
    return perplexity(nats, [s.reference_tokens for s in scores]) if len(nats) == len(scores) else None


def _custom(scores: Sequence[RowScore], scoring: Scoring) -> Share | Interval | None:
    """A share where the user's function said true or false of every row, else a mean; None where there is none."""
    own = [score.own for score in scores if score.own is not None]
    if len(own) < len(scores):
        return None
    truths = [one for one in own if isinstance(one, bool)]
    return share(truths, scoring.confidence) if len(truths) == len(own) else bootstrap(mean_of(own, (0, 1)), scoring)


def _custom_change(before: Sequence[RowScore], after: Sequence[RowScore], scoring: Scoring) -> Change | Shift | None:
    pairs = [(a.own, b.own) for a, b in zip(before, after, strict=True) if a.own is not None and b.own is not None]
    if len(pairs) < len(before):
        return None
    truths = [(a, b) for a, b in pairs if isinstance(a, bool) and isinstance(b, bool)]
    if len(truths) == len(pairs):
        return change(truths, scoring)
    earlier, later = (mean_of(side, (0, 1)) for side in zip(*pairs, strict=True))
    return shift(earlier, later, scoring)


def _classification(scores: Sequence[RowScore], scoring: Scoring) -> Classification:
    found = {key: bootstrap(corpus, scoring) for key, corpus in of_classes(scores).items()}
    means = (ClassMeans(**{name: found[mean, name] for name in CLASS_METRICS}) for mean in MEANS)
    return Classification(share((score.exact_match for score in scores), scoring.confidence), *means)


def _text(scores: Sequence[RowScore], scoring: Scoring) -> TextQuality:
    return TextQuality(
        **{name: bootstrap(corpus, scoring) for name, corpus in of_text(scores).items()},
        words=sum(len(score.output.split()) for score in scores) / len(scores),
        rules={
            rule: share((score.rules[rule] for score in scores if rule in score.rules), scoring.confidence)
            for rule in sorted({rule for score in scores for rule in score.rules})
        },
    )


def _class_changes(before: Sequence[RowScore], after: Sequence[RowScore], scoring: Scoring) -> ClassComparison:
    old, new = of_classes(before), of_classes(after)
    return ClassComparison(*(F1Shift(shift(old[mean, "f1"], new[mean, "f1"], scoring)) for mean in MEANS))


def _text_changes(before: Sequence[RowScore], after: Sequence[RowScore], scoring: Scoring) -> TextComparison:
    old, new = of_text(before), of_text(after)
    return TextComparison(*(shift(old[name], new[name], scoring) for name in ("rougeL", "bleu", "chrf")))


# Metrics of many rows as sums over them, so that one bootstrap serves them all.


def perplexity(nats: Sequence[float], tokens: Sequence[int]) -> Corpus:
    """exp of the mean negative log-likelihood of a reference token."""
    return Corpus(np.column_stack([nats, tokens]).astype(np.float64), lambda sums: np.exp(sums[:, 0] / sums[:, 1]))


def field_match(scores: Sequence[RowScore]) -> Corpus | None:
    """The mean share of a reference's fields that the output has right; None without such references."""
    shares = [sum(score.fields.values()) / len(score.fields) for score in scores if score.fields]
    return mean_of(shares, (0, 1)) if shares else None


def of_classes(scores: Sequence[RowScore]) -> dict[tuple[str, str], Corpus]:
    """Precision, recall and F1 over the labels of the references: their plain mean, and weighted by rows.

    As scikit-learn has it with zero_division=0. A resample without any row of a label leaves that label out.
    """
    labels = {label: column for column, label in enumerate(sorted({score.reference for score in scores}))}
    rows = np.zeros((len(scores), 3, len(labels)))  # right, predicted, actual
    for row, score in enumerate(scores):
        actual, predicted = labels[score.reference], labels.get(score.output)
        rows[row, 2, actual] = 1
        if predicted is not None:
            rows[row, 1, predicted] = 1
            rows[row, 0, predicted] = predicted == actual
    flat = rows.reshape(len(scores), -1)
    return {
        (mean, name): Corpus(flat, _class_metric(name, mean == "weighted"), (0, 1))
        for mean in MEANS
        for name in CLASS_METRICS
    }


def _class_metric(name: str, weighted: bool) -> Callable[[Array], Array]:
    def value(sums: Array) -> Array:
        right, predicted, actual = np.moveaxis(sums.reshape(len(sums), 3, -1), 1, 0)
        below = {"precision": predicted, "recall": actual, "f1": (predicted + actual) / 2}[name]
        each = np.divide(right, below, out=np.zeros_like(right), where=below > 0)
        weight = actual if weighted else (actual > 0).astype(np.float64)
        mean: Array = (each * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1)
        return mean

    return value


def of_text(scores: Sequence[RowScore]) -> dict[str, Corpus]:
    """ROUGE F-measures (0 to 1), BLEU and chrF (0 to 100, as sacreBLEU has them) and the readability of the outputs."""
    return {**_rouge(scores), **_sacrebleu(scores), "readability": _readability(scores)}


def _rouge(scores: Sequence[RowScore]) -> dict[str, Corpus]:
    from rouge_score.rouge_scorer import RougeScorer  # brings NLTK: two seconds

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names)
    found = [scorer.score(score.reference, score.output) for score in scores]
    return {name: mean_of((one[name].fmeasure for one in found), (0, 1)) for name in names}


def _sacrebleu(scores: Sequence[RowScore]) -> dict[str, Corpus]:
    """sacreBLEU's own statistics of a row, and its own score of their sums, as its significance tests use them."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    outputs, references = [score.output for score in scores], [[score.reference for score in scores]]
    made = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        rows = np.array(metric._extract_corpus_statistics(outputs, references), dtype=np.float64)

        def value(sums: Array, metric: BLEU | CHRF = metric) -> Array:
            counts = np.rint(sums).astype(int).tolist()
            return np.array([metric._compute_score_from_stats(one).score for one in counts])

        made[name] = Corpus(rows, value, (0, 100))
    return made


def _readability(scores: Sequence[RowScore]) -> Corpus:
    """The school grade (United States) that the outputs ask of a reader of English.

    Coleman & Liau, "A computer readability formula designed for machine scoring", Journal of Applied
    Psychology 60 (1975), 283-284: it counts letters, words and sentences, and needs no syllables.
    """
    rows = np.array([_letters_words_sentences(score.output) for score in scores], dtype=np.float64)

    def value(sums: Array) -> Array:
        letters, words, sentences = sums.T
        grade: Array = (5.88 * letters - 29.6 * sentences) / np.maximum(words, 1) - 15.8
        return grade

    return Corpus(rows, value)


def _letters_words_sentences(text: str) -> tuple[int, int, int]:
    words = [word for word in text.split() if any(map(str.isalnum, word))]
    ends = sum(here in _ENDS and there.isspace() for here, there in pairwise(f"{text} "))
    return sum(map(str.isalnum, text)), len(words), max(ends, 1) if words else 0
