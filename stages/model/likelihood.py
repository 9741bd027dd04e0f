"""How likely a model holds the reference answers to be."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stages.core.errors import Refusal
from stages.model.answer_cache import remember
from stages.model.chat import Chat
from stages.model.loading import Weights, causal_of, head_is_plain
from stages.model.prefix import Prefix
from stages.records.record import Record

_LARGEST_MEAN = 700.0  # nats; exp of more is no float
# Tokens that go through the model at once, and logits: memory for activations against speed.
_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}
_LOGITS_AT_ONCE = 1 << 25

Pair = tuple[list[int], list[int]]


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
        weights = model
        request = {"likelihoods": asked, "weights": weights.identity}
        measured, _ = remember(request, lambda: _measure(causal_of(weights.model), asked, chat.stop_id))
    else:
        measured = _measure(causal_of(model), asked, chat.stop_id)
    for (nats, _), (_, completion) in zip(measured, asked, strict=True):
        if not nats < _LARGEST_MEAN * len(completion):
            raise Refusal(f"the model gives a reference answer a loss of {nats} nats; it must not be used")
    by_record = dict(zip(order, measured, strict=True))
    return [Likelihood(by_record[i][0], len(pairs[i][1]), by_record[i][1]) for i in range(len(pairs))]


def with_likelihood(rows: Sequence[dict[str, Any]], found: Sequence[Likelihood]) -> list[dict[str, Any]]:
    """Generation rows, each with the likelihood of its reference."""
    return [{**row, "nats": one.nats, "reference_tokens": one.tokens} for row, one in zip(rows, found, strict=True)]


@torch.inference_mode()
def _measure(causal: Any, pairs: Sequence[Pair], pad: int) -> list[list[Any]]:
    """[nats, agreed] of each of the (prompt, completion) pairs, longest first."""
    result: list[list[Any]] = []
    if not pairs:
        return result
    prefix = Prefix(causal, [prompt for prompt, _ in pairs], gap=False)
    begun = prefix.length
    for rows in _batches(pairs, begun, _TOKENS_AT_ONCE[causal.device.type]):
        # Padding stands on the right, where no token that counts sees it.
        width = max(len(p) + len(c) for p, c in rows)
        ids = torch.tensor([(p + c + [pad] * (width - len(p) - len(c)))[begun:] for p, c in rows], device=causal.device)
        cache = prefix.cache(len(rows))
        options = {"input_ids": ids, "past_key_values": cache, "use_cache": cache is not None}
        if head_is_plain(causal):
            states, head = causal.base_model(**options).last_hidden_state, causal.get_output_embeddings()
        else:
            states, head = causal(**options).logits, torch.nn.Identity()
        # Each position predicts the next; those that predict prompts and padding never reach the vocabulary.
        asked = [states[i, len(p) - 1 - begun : len(p) + len(c) - 1 - begun] for i, (p, c) in enumerate(rows)]
        targets = torch.tensor([token for _, c in rows for token in c], device=causal.device)
        losses, agreed = _losses(head, torch.cat(asked), targets, causal.config.get_text_config().vocab_size)
        lengths = [len(c) for _, c in rows]
        parts = zip(torch.split(losses, lengths), torch.split(agreed, lengths), strict=True)
        result += [[nats.sum().item(), int(same.sum())] for nats, same in parts]
    if not all(math.isfinite(nats) for nats, _ in result):
        raise Refusal("the model gives the reference answers a likelihood that is no number; it must not be used")
    return result


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
