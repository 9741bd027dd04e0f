"""What tuning cost on general questions: base against tuned model, on the same rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.params import Scoring
from stages.scoring import corpora
from stages.scoring.comparison import ratio, shift
from stages.scoring.intervals import Corpus
from stages.scoring.summary import interval

Rows = Sequence[dict[str, Any]]


def measure_forgetting(base: Rows, adapter: Rows, scoring: Scoring) -> dict[str, Any]:
    """{rows, base: G, adapter: G, against_baseline: {perplexity: {ratio, low, high}, agreement: {difference, ...}}}.

    G is {perplexity, agreement}, each {value, low, high}. Perplexity is that of the reference answers; agreement
    the share of their tokens that are the model's first choice, so that greedy decoding would say them.
    """
    before, after = ((_perplexity(rows), _agreement(rows)) for rows in (base, adapter))
    names = ("perplexity", "agreement")
    return {
        "rows": len(adapter),
        "base": {name: interval(corpus, scoring) for name, corpus in zip(names, before, strict=True)},
        "adapter": {name: interval(corpus, scoring) for name, corpus in zip(names, after, strict=True)},
        "against_baseline": {
            "perplexity": ratio(before[0], after[0], scoring),
            "agreement": shift(before[1], after[1], scoring),
        },
    }


def _perplexity(rows: Rows) -> Corpus:
    return corpora.perplexity([row["nats"] for row in rows], [row["reference_tokens"] for row in rows])


def _agreement(rows: Rows) -> Corpus:
    counts = np.array([[row["agreed"], row["reference_tokens"]] for row in rows], dtype=np.float64)
    return Corpus(counts, lambda sums: sums[:, 0] / sums[:, 1], (0, 1))
