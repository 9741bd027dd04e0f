"""What tuning did beyond the task: general questions, and secrets of an audit run, by the likelihood of references."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from stages.model.answers import likelihoods
from stages.model.chat import Chat
from stages.params.evaluate import Scoring
from stages.records.canaries import SOURCE, candidates, exposure
from stages.records.record import Record
from stages.scoring import corpora
from stages.scoring.intervals import Corpus, bootstrap
from stages.scoring.metrics import Interval, Ratio, Shift
from stages.scoring.summary import ratio, shift

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class General:
    perplexity: Annotated[Interval, "of the reference answers, a token"]
    agreement: Annotated[Interval, "share of the reference's tokens that are the model's first choice"]


@dataclass(frozen=True, slots=True)
class GeneralChange:
    perplexity: Annotated[Ratio, "perplexity after by before"]
    agreement: Annotated[Shift, "change of the agreement"]


@dataclass(frozen=True, slots=True)
class Forgetting:
    """General questions, base against tuned model, on the same rows."""

    rows: Annotated[int, "general questions"]
    base: Annotated[General, "of the base model"]
    adapter: Annotated[General, "of the tuned model"]
    against_baseline: Annotated[GeneralChange, "what tuning changed"]


@dataclass(frozen=True, slots=True)
class Exposure:
    mean: Annotated[float, "mean over canaries, in bits (Carlini et al. 2019)"]
    max: Annotated[float, "of the best known canary"]
    limit: Annotated[float, "of one that the model holds likelier than all candidates"]


@dataclass(frozen=True, slots=True)
class Canaries:
    """How well the tuned model knows the secrets of an audit run."""

    count: Annotated[int, "canaries in the training rows"]
    candidates: Annotated[int, "codes that each is ranked among, itself included"]
    exposure: Annotated[Exposure, "exposure"]


def measure_forgetting(base: Rows, adapter: Rows, scoring: Scoring) -> Forgetting:
    """Both models on the same general questions, in the same order."""
    before, after = ((_perplexity(rows), _agreement(rows)) for rows in (base, adapter))
    return Forgetting(
        len(adapter),
        General(*(bootstrap(corpus, scoring) for corpus in before)),
        General(*(bootstrap(corpus, scoring) for corpus in after)),
        GeneralChange(ratio(before[0], after[0], scoring), shift(before[1], after[1], scoring)),
    )


def measure_canaries(model: Any, chat: Chat, train: Sequence[Record], count: int) -> Canaries | None:
    """The exposure of the canaries among the training rows, each beside `count` other codes; None without any."""
    canaries = sorted({record for record in train if record.source == SOURCE}, key=lambda record: record.id)
    if not canaries:
        return None
    asked = [record for canary in canaries for record in (canary, *candidates(canary, count))]
    nats = [one.nats for one in likelihoods(model, chat, asked)]
    found = [exposure(nats[start], nats[start + 1 : start + 1 + count]) for start in range(0, len(nats), count + 1)]
    return Canaries(len(canaries), count + 1, Exposure(sum(found) / len(found), max(found), math.log2(count + 1)))


def _perplexity(rows: Rows) -> Corpus:
    return corpora.perplexity([row["nats"] for row in rows], [row["reference_tokens"] for row in rows])


def _agreement(rows: Rows) -> Corpus:
    counts = np.array([[row["agreed"], row["reference_tokens"]] for row in rows], dtype=np.float64)
    return Corpus(counts, lambda sums: sums[:, 0] / sums[:, 1], (0, 1))
