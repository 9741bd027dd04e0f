"""What changed between two models that answered the same rows."""

from collections.abc import Iterable, Sequence

import numpy as np

from stages.params.evaluate import Scoring
from stages.scoring import corpora
from stages.scoring.intervals import Corpus, bootstrap, mcnemar, paired, paired_difference
from stages.scoring.metrics import Change, ClassComparison, Comparison, F1Shift, Ratio, Shift, TextComparison
from stages.scoring.rows import RowScore
from stages.scoring.summary import by_task, measured_perplexity


def compare(before: Sequence[RowScore], after: Sequence[RowScore], scoring: Scoring) -> Comparison:
    """What changed from `before` to `after` on the same rows, in any order.

    Raises:
        ValueError: when the two are not scores of the same rows, each row once.
    """
    old = {score.id: score for score in before}
    new = {score.id: score for score in after}
    if not old or old.keys() != new.keys() or not len(old) == len(before) == len(after):
        raise ValueError("the two sets of scores are not of the same rows")
    keys = sorted(old)
    return _compare([old[key] for key in keys], [new[key] for key in keys], scoring)


def change(pairs: Iterable[tuple[bool, bool]], scoring: Scoring) -> Change:
    """The change of a proportion on paired rows (before, after).

    Where McNemar's test does not reject, Newcombe's interval is widened to hold 0, so that the two never disagree
    about whether anything changed.
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
    return Change((won - lost) / (both + won + lost + neither), low, high, won, lost, p_value)


def shift(before: Corpus, after: Corpus, scoring: Scoring) -> Shift:
    """The change of a metric that is no proportion, with its paired bootstrap interval."""
    found = bootstrap(paired(before, after, np.subtract), scoring.confidence, scoring.resamples, scoring.seed)
    return Shift(found.value, found.low, found.high)


def ratio(before: Corpus, after: Corpus, scoring: Scoring) -> Ratio:
    """after / before, with its paired bootstrap interval."""
    found = bootstrap(paired(before, after, np.divide), scoring.confidence, scoring.resamples, scoring.seed)
    return Ratio(found.value, found.low, found.high)


def _compare(old: list[RowScore], new: list[RowScore], scoring: Scoring) -> Comparison:
    pairs = list(zip(old, new, strict=True))
    of_json = [(a, b) for a, b in pairs if a.kind == "json"]
    classes = [(a, b) for a, b in pairs if a.kind == "classification"]
    texts = [(a, b) for a, b in pairs if a.kind == "text"]
    fields = [corpora.of_json([pair[side] for pair in of_json]) for side in (0, 1)]
    told = [(a.label_right, b.label_right) for a, b in pairs if a.label_right is not None and b.label_right is not None]
    earlier, later = measured_perplexity(old), measured_perplexity(new)
    tags, now = by_task(old), by_task(new)
    return Comparison(
        rows=len(old),
        exact_match=change(((a.exact_match, b.exact_match) for a, b in pairs), scoring),
        schema_valid=change(((a.valid, b.valid) for a, b in of_json), scoring) if of_json else None,
        field_match=shift(fields[0]["field_match"], fields[1]["field_match"], scoring) if fields[0] else None,
        label_accuracy=change(told, scoring) if told else None,
        perplexity=ratio(earlier, later, scoring) if earlier and later else None,
        classification=_classes(classes, scoring) if classes else None,
        text=_text(texts, scoring) if texts else None,
        tasks={tag: _compare(tags[tag], now[tag], scoring) for tag in tags} if len(tags) > 1 else {},
    )


Pairs = Sequence[tuple[RowScore, RowScore]]


def _classes(pairs: Pairs, scoring: Scoring) -> ClassComparison:
    earlier, later = (corpora.of_classes([pair[side] for pair in pairs]) for side in (0, 1))
    return ClassComparison(*(F1Shift(shift(earlier[mean, "f1"], later[mean, "f1"], scoring)) for mean in corpora.MEANS))


def _text(pairs: Pairs, scoring: Scoring) -> TextComparison:
    earlier, later = (corpora.of_text([pair[side] for pair in pairs]) for side in (0, 1))
    return TextComparison(*(shift(earlier[name], later[name], scoring) for name in ("rougeL", "bleu", "chrf")))
