"""How likely a model holds the references of records, and how far one model's next tokens are from another's."""

import copy
import inspect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from stages.core.errors import Refusal
from stages.model.chat import Chat
from stages.model.labels import label_likelihoods, labels_of
from stages.model.loading import Weights, causal_of, head_is_plain, remember
from stages.records.record import Record

_LARGEST_MEAN = 700.0  # nats; exp of more is no float
# Tokens of references that go through the model at once, and logits: memory for activations against speed.
_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}
_LOGITS_AT_ONCE = 1 << 25

Pair = tuple[list[int], list[int]]


class Prefix:
    """The `length` tokens that all `rows` begin with, in a cache of the causal model `causal`; 0 where none helps.

    `gap` tells that padding will stand after the prefix. That is right only in models that are told the position of
    each token and attend to all tokens before it: a window, or a bias by distance, would count the padding.
    """

    def __init__(self, causal: Any, rows: Sequence[list[int]], gap: bool) -> None:
        self.length, self._cache = 0, None
        # In the order of lists, all rows lie between these two. Each keeps at least one token of its own.
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(rows), max(rows), strict=False))
        length = min(len(list(same)), min(map(len, rows)) - 1) if len(rows) > 1 else 0
        if not length or (gap and "position_ids" not in inspect.signature(causal.forward).parameters):
            return
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        ids = torch.tensor([rows[0][:length]], device=causal.device)
        cache = causal.base_model(input_ids=ids, use_cache=True).past_key_values
        kinds = {type(layer) for layer in getattr(cache, "layers", [None])}
        if kinds <= ({DynamicLayer} if gap else {DynamicLayer, DynamicSlidingWindowLayer}):
            self.length, self._cache = length, cache

    def cache(self, rows: int) -> Any:
        """A cache of its own for a batch of so many rows; None where there is no prefix."""
        if self._cache is None:
            return None
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(rows)
        return cache


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of one record's reference answer, its stop token included.

    `nats` is the negative log-likelihood of its `tokens`; `agreed` of them are the model's first choice. Greedy
    decoding gives exactly the reference when all are.
    """

    nats: float
    tokens: int
    agreed: int


def likelihoods(model: Any, chat: Chat, records: Sequence[Record]) -> list[Likelihood]:
    """One for each record, in the order given, by a loaded model or by `Weights`, which are asked only once.

    Raises:
        Refusal: when a likelihood is not finite, or a token's mean loss is, but no perplexity can be, as broken
            weights or a broken kernel give.
    """
    pairs = [(chat.prompt_ids(record), chat.completion_ids(record.completion)) for record in records]
    order = sorted(range(len(pairs)), key=lambda i: (-len(pairs[i][0]) - len(pairs[i][1]), pairs[i]))
    asked = [pairs[i] for i in order]
    if isinstance(model, Weights):
        request = {"likelihoods": asked, "weights": model.identity}
        measured, _ = remember(request, lambda: _measure(causal_of(model.model), asked, chat))
    else:
        measured = _measure(causal_of(model), asked, chat)
    for (nats, _), (_, completion) in zip(measured, asked, strict=True):
        if not nats < _LARGEST_MEAN * len(completion):
            raise Refusal(f"the model gives a reference answer a loss of {nats} nats; it must not be used")
    by_record = dict(zip(order, measured, strict=True))
    return [Likelihood(by_record[i][0], len(pairs[i][1]), by_record[i][1]) for i in range(len(pairs))]


def with_likelihood(rows: Sequence[dict[str, Any]], found: Sequence[Likelihood]) -> list[dict[str, Any]]:
    """Generation rows, each with the likelihood of its reference."""
    return [{**row, "nats": one.nats, "reference_tokens": one.tokens} for row, one in zip(rows, found, strict=True)]


@torch.inference_mode()
def divergence(before: Any, after: Any, chat: Chat, records: Sequence[Record]) -> float:
    """How far the second loaded model's next tokens are from the first's: in nats a token of the references.

    The Kullback-Leibler divergence of the whole distribution at each token, the first model's being the truth; of
    models with a classification head, of their labels after each prompt.
    """
    total, tokens, models = 0.0, 0, (causal_of(before), causal_of(after))
    pairs = [(chat.prompt_ids(record), chat.completion_ids(record.completion)) for record in records]
    pairs.sort(key=lambda pair: -len(pair[0]) - len(pair[1]))
    both: list[Iterable[torch.Tensor]]
    if labels_of(models[0]):
        both = [[label_likelihoods(causal, [prompt for prompt, _ in pairs])] for causal in models]
    else:
        both = [_log_probabilities(causal, pairs) for causal in models]
    for ours, theirs in zip(*both, strict=True):
        total += (ours.exp() * (ours - theirs)).sum().item()
        tokens += len(ours)
    if not math.isfinite(total):
        raise Refusal("the model's logits are no numbers; it must not be used")
    return max(total / max(1, tokens), 0.0)


def _log_probabilities(causal: Any, pairs: Sequence[Pair]) -> Iterator[torch.Tensor]:
    """[tokens of its completion, vocabulary] of each pair; in float32, sums err by as much as a merge rounds."""
    for _, states, head in _predicting(causal, pairs):
        for one in states:
            yield head(one).double().log_softmax(-1)


@torch.inference_mode()
def _measure(causal: Any, pairs: Sequence[Pair], chat: Chat) -> list[list[Any]]:
    """[nats, agreed] of each of the (prompt, completion) pairs, longest first."""
    if labels := labels_of(causal):
        return _measure_labels(causal, pairs, [chat.completion_ids(label) for label in labels])
    result: list[list[Any]] = []
    for rows, asked, head in _predicting(causal, pairs):
        targets = torch.tensor([token for _, c in rows for token in c], device=causal.device)
        losses, agreed = _losses(head, torch.cat(asked), targets, causal.config.get_text_config().vocab_size)
        lengths = [len(c) for _, c in rows]
        parts = zip(torch.split(losses, lengths), torch.split(agreed, lengths), strict=True)
        result += [[nats.sum().item(), int(same.sum())] for nats, same in parts]
    if not all(math.isfinite(nats) for nats, _ in result):
        raise Refusal("the model gives the reference answers a likelihood that is no number; it must not be used")
    return result


def _predicting(causal: Any, pairs: Sequence[Pair]) -> Iterator[tuple[Sequence[Pair], list[torch.Tensor], Any]]:
    """(some of the pairs, for each the states that predict its completion, what makes logits of states), in order.

    What all prompts begin with runs through the model once; positions that predict prompts and padding never reach the
    vocabulary.
    """
    if not pairs:
        return
    prefix = Prefix(causal, [prompt for prompt, _ in pairs], gap=False)
    begun = prefix.length
    for rows in _batches(pairs, begun, _TOKENS_AT_ONCE[causal.device.type]):
        # The filler stands on the right, where no token that counts sees it.
        ids = pad_sequence([torch.tensor((p + c)[begun:]) for p, c in rows], batch_first=True).to(causal.device)
        cache = prefix.cache(len(rows))
        options = {"input_ids": ids, "past_key_values": cache, "use_cache": cache is not None}
        if head_is_plain(causal):
            states, head = causal.base_model(**options).last_hidden_state, causal.get_output_embeddings()
        else:
            states, head = causal(**options).logits, torch.nn.Identity()
        # Each position predicts the next.
        yield rows, [states[i, len(p) - 1 - begun : len(p) + len(c) - 1 - begun] for i, (p, c) in enumerate(rows)], head


def _measure_labels(causal: Any, pairs: Sequence[Pair], labels: list[list[int]]) -> list[list[Any]]:
    """What `_measure` does, by a classification head: all tokens of its likeliest label are its first choice."""
    if not all(completion in labels for _, completion in pairs):
        raise Refusal(
            "a reference is none of the labels that the model was trained with, so it has no likelihood: a row of the "
            "hold-out has a label without a training row; add rows, or train with train.head: completion"
        )
    found = label_likelihoods(causal, [prompt for prompt, _ in pairs])
    wanted = [labels.index(completion) for _, completion in pairs]
    rows = zip(found.tolist(), found.argmax(-1).tolist(), wanted, pairs, strict=True)
    return [[-row[at], len(pair[1]) if best == at else 0] for row, best, at, pair in rows]


def _losses(
    head: Any, states: torch.Tensor, targets: torch.Tensor, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each position, in float64, and whether its target is the first choice.

    The logits of few positions are in memory at once.
    """
    at_once = max(1, _LOGITS_AT_ONCE // vocabulary)
    losses, agreed = [], []
    for part, want in zip(torch.split(states, at_once), torch.split(targets, at_once), strict=True):
        logits = head(part).float()
        losses.append(torch.nn.functional.cross_entropy(logits, want, reduction="none"))
        agreed.append(logits.argmax(-1) == want)
    return torch.cat(losses).double(), torch.cat(agreed)


def _batches(pairs: Sequence[Pair], begun: int, tokens: int) -> Iterator[Sequence[Pair]]:
    """Pairs of like length, at most `tokens` tokens after the `begun` ones with padding, one pair at least."""
    start = 0
    while start < len(pairs):
        rows = max(1, tokens // (len(pairs[start][0]) + len(pairs[start][1]) - begun))
        yield pairs[start : start + rows]
        start += rows
