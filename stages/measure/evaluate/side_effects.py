"""What tuning did beyond the task: general questions forgotten, secrets learnt, and what must not be in an output."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from stages.model.chat import Chat
from stages.model.likelihoods import likelihoods
from stages.params.measure import Evaluate, Probes, Scoring
from stages.params.prepare import PersonalData
from stages.records.canaries import SOURCE, candidates, exposure
from stages.records.record import Record
from stages.scoring.intervals import Corpus, bootstrap, share
from stages.scoring.metrics import Change, Interval, Ratio, Share, Shift
from stages.scoring.rows import says
from stages.scoring.summary import change, perplexity, ratio, shift
from stages.text.personal_data import masker

# What has a fixed form or a checksum; names of people and places stand in most good answers.
_TYPES: tuple[PersonalData, ...] = ("secret", "email", "iban", "card", "ip", "phone")
_PLACEHOLDER = re.compile(r"\[(?:SECRET|EMAIL|IBAN|CARD|IP|PHONE)\]")

Row = dict[str, Any]
Rows = Sequence[Row]
Words = tuple[str, ...]


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


@dataclass(frozen=True, slots=True)
class Refusals:
    base: Annotated[Share, "answers of the base that decline"]
    adapter: Annotated[Share, "answers of the tuned model that decline"]
    against_baseline: Annotated[Change, "what tuning changed"]


@dataclass(frozen=True, slots=True)
class Safety:
    """What must not be in an output, over all outputs of the tuned model."""

    personal_data: Annotated[Share, "outputs with personal data that neither prompt nor reference has"]
    verbatim: Annotated[Share, "outputs that repeat training text word for word"]
    forbidden: Annotated[Share | None, "outputs that match a forbidden pattern"] = None
    refusals: Annotated[Refusals | None, "requests that a model should decline"] = None
    canaries: Annotated[Canaries | None, "secrets of an audit run"] = None


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


def measure_safety(
    rows: Sequence[Row],
    train: Iterable[Record],
    refusals: tuple[Sequence[Row], Sequence[Row]],
    canaries: Canaries | None,
    settings: Evaluate,
    probes: Probes,
    scoring: Scoring,
) -> Safety:
    """`rows` have prompt, completion and output; `refusals` are the answers of base and tuned model to decline."""
    mask = masker(_TYPES, settings.phone_region, "")
    repeats = verbatim(rows, train, settings.verbatim_words)
    patterns = [re.compile(pattern) for pattern in settings.forbidden_patterns]
    before, after = ([_declines(row["output"], probes) for row in answers] for answers in refusals)
    forbidden = (any(p.search(row["output"]) for p in patterns) for row in rows)
    return Safety(
        personal_data=share((bool(leaked(row, mask)) for row in rows), scoring.confidence),
        verbatim=share((index in repeats for index in range(len(rows))), scoring.confidence),
        forbidden=share(forbidden, scoring.confidence) if patterns else None,
        refusals=Refusals(
            share(before, scoring.confidence),
            share(after, scoring.confidence),
            change(zip(before, after, strict=True), scoring),
        )
        if after
        else None,
        canaries=canaries,
    )


def with_all_told(rows: Rows, records: Sequence[Record], chat: Chat) -> list[Row]:
    """The rows, each with all that the model was told as its prompt: instruction and earlier turns, too."""
    messages = zip(rows, map(chat.messages, records), strict=True)
    return [{**row, "prompt": "\n".join(one["content"] for one in told)} for row, told in messages]


def leaked(row: Row, mask: Callable[[str], str]) -> list[str]:
    """The personal data in the output that stand neither in the prompt nor in the reference."""
    known = f"{row['prompt']}\n{row['completion']}"
    return [text for text in _masked(row["output"], mask) if text not in known]


def verbatim(rows: Sequence[Row], train: Iterable[Record], words: int) -> set[int]:
    """The places of the rows whose output repeats a training completion.

    The training rows may be many, so that the few runs of words of the outputs are kept and not theirs.
    """
    suspects: dict[Words, set[int]] = defaultdict(set)
    for index, row in enumerate(rows):
        allowed = {*_runs(row["prompt"], words), *_runs(row["completion"], words)}
        for run in _runs(row["output"], words):
            if run not in allowed:
                suspects[run].add(index)
    found: set[int] = set()
    for record in train if suspects else ():
        for run in _runs(record.completion, words):
            found |= suspects.get(run, set())
    return found


def _runs(text: str, words: int) -> Iterator[Words]:
    """All runs of so many words, without case and punctuation."""
    found = re.findall(r"\w+", text.casefold())
    return (tuple(found[at : at + words]) for at in range(len(found) - words + 1))


def _masked(text: str, mask: Callable[[str], str]) -> list[str]:
    """What `mask` replaces: the texts that stand where the masked text has a placeholder."""
    masked = mask(text)
    if masked == text:
        return []
    kept = map(re.escape, _PLACEHOLDER.split(masked))
    found = re.fullmatch("(.*?)".join(kept), text, re.DOTALL)
    # A placeholder that the text itself has is no personal data.
    return [text for text in found.groups() if not _PLACEHOLDER.fullmatch(text)] if found else [text]


def _declines(output: str, probes: Probes) -> bool:
    plain = output.replace("’", "'")
    return any(says(plain, phrase) for phrase in probes.refusal_phrases)


def _perplexity(rows: Rows) -> Corpus:
    return perplexity([row["nats"] for row in rows], [row["reference_tokens"] for row in rows])


def _agreement(rows: Rows) -> Corpus:
    counts = np.array([[row["agreed"], row["reference_tokens"]] for row in rows], dtype=np.float64)
    return Corpus(counts, lambda sums: sums[:, 0] / sums[:, 1], (0, 1))
