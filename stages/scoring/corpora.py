"""The metrics of many rows as sums over them, so that one bootstrap serves them all."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from stages.scoring.intervals import Array, Corpus, mean_of
from stages.scoring.rows import RowScore

MEANS, CLASS_METRICS = ("macro", "weighted"), ("precision", "recall", "f1")
_ENDS = ".!?…。！？"  # of a sentence


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
