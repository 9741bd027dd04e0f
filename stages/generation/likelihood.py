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
    """Negative log-likelihood of one record's reference answer, in nats, stop token included; how many tokens."""

    nats: float
    tokens: int


def perplexity(model: Any, chat: Chat, records: Sequence[Record]) -> float:
    """exp of the mean negative log-likelihood of a reference token.

    Raises:
        Refusal: when the model gives no finite likelihood, as broken weights or a broken kernel do.
    """
    found = likelihoods(model, chat, records)
    mean = math.fsum(each.nats for each in found) / sum(each.tokens for each in found)
    if not mean < _LARGEST_MEAN:
        raise Refusal(f"the model gives the reference answers a mean loss of {mean} nats; it must not be used")
    return math.exp(mean)


def likelihoods(model: Any, chat: Chat, records: Sequence[Record]) -> list[Likelihood]:
    """One for each record, in the order given, by a loaded model or by `Weights`, which are asked only once.

    Raises:
        Refusal: when a likelihood is not finite.
    """
    pairs = [(chat.prompt_ids(record), chat.completion_ids(record.completion)) for record in records]
    order = sorted(range(len(pairs)), key=lambda i: (-len(pairs[i][0]) - len(pairs[i][1]), pairs[i]))
    asked = [pairs[i] for i in order]
    if isinstance(model, Weights):
        weights = model
        request = {"likelihoods": asked, "weights": weights.identity}
        nats, _ = remember(request, lambda: _nats(causal_of(weights.model), asked, chat.stop_id))
    else:
        nats = _nats(causal_of(model), asked, chat.stop_id)
    by_record = dict(zip(order, nats, strict=True))
    return [Likelihood(by_record[i], len(pairs[i][1])) for i in range(len(pairs))]


@torch.inference_mode()
def _nats(causal: Any, pairs: Sequence[tuple[list[int], list[int]]], pad: int) -> list[float]:
    """The likelihoods of (prompt, completion) pairs, longest first."""
    result = []
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
        losses = _losses(head, chosen, targets, causal.config.get_text_config().vocab_size)
        result += [part.sum().item() for part in torch.split(losses, [len(c) for _, c in rows])]
    if not all(map(math.isfinite, result)):
        raise Refusal("the model gives the reference answers a likelihood that is no number; it must not be used")
    return result


def _losses(head: Any, states: torch.Tensor, targets: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Cross-entropy of each position, in float64, with few positions' logits in memory at once."""
    at_once = max(1, _LOGITS_AT_ONCE // vocabulary)
    parts = zip(torch.split(states, at_once), torch.split(targets, at_once), strict=True)
    losses = [torch.nn.functional.cross_entropy(head(part).float(), want, reduction="none") for part, want in parts]
    return torch.cat(losses).double()


def _batches(
    pairs: Sequence[tuple[list[int], list[int]]], tokens: int
) -> Iterator[Sequence[tuple[list[int], list[int]]]]:
    """Pairs of like length, padding included at most `tokens` tokens, one pair at least."""
    start = 0
    while start < len(pairs):
        rows = max(1, tokens // (len(pairs[start][0]) + len(pairs[start][1])))
        yield pairs[start : start + rows]
        start += rows
