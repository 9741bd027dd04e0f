"""How likely a model holds the reference answers to be."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stages.chat import Chat
from stages.errors import Refusal
from stages.generation.memory import remember
from stages.generation.slots import TOKENS_AT_ONCE
from stages.generation.weights import Weights
from stages.models import causal_of, head_is_plain
from stages.records import Record

_LARGEST_MEAN = 700.0  # nats; exp of more is no float
_LOGITS_AT_ONCE = 1 << 25


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
def _measure(causal: Any, pairs: Sequence[tuple[list[int], list[int]]], pad: int) -> list[list[Any]]:
    """[nats, agreed] of each of the (prompt, completion) pairs, longest first."""
    result: list[list[Any]] = []
    for rows in _batches(pairs, TOKENS_AT_ONCE[causal.device.type]):
        width = len(rows[0][0]) + len(rows[0][1])
        ids = torch.tensor([p + c + [pad] * (width - len(p) - len(c)) for p, c in rows], device=causal.device)
        seen = torch.tensor([len(p) + len(c) for p, c in rows], device=causal.device)[:, None]
        mask = (torch.arange(width, device=causal.device) < seen).long()
        # Each position predicts the next; those that predict prompts and padding never reach the vocabulary.
        asks = [(row, len(p) - 1, len(p) + len(c) - 1) for row, (p, c) in enumerate(rows)]
        targets = torch.tensor([token for _, c in rows for token in c], device=causal.device)
        if head_is_plain(causal):
            states = causal.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            head = causal.get_output_embeddings()
        else:
            states, head = causal(input_ids=ids, attention_mask=mask, use_cache=False).logits, torch.nn.Identity()
        chosen = torch.cat([states[row, start:end] for row, start, end in asks])
        losses, agreed = _losses(head, chosen, targets, causal.config.get_text_config().vocab_size)
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


def _batches(
    pairs: Sequence[tuple[list[int], list[int]]], tokens: int
) -> Iterator[Sequence[tuple[list[int], list[int]]]]:
    """Pairs of like length, padding included at most `tokens` tokens, one pair at least."""
    start = 0
    while start < len(pairs):
        rows = max(1, tokens // (len(pairs[start][0]) + len(pairs[start][1])))
        yield pairs[start : start + rows]
        start += rows
