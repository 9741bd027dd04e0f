"""Answers to prompts and the perplexity of the reference answers, in batches sorted by length."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from stages.chat import Chat
from stages.errors import Refusal
from stages.params import Generation
from stages.progress import track
from stages.records import Record

_LARGEST_MEAN = 700.0  # nats; exp of more is no float


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said: its text, how many tokens, and whether the stop token ended it."""

    output: str
    tokens: int
    stopped: bool


def answer_rows(
    model: Any, chat: Chat, records: Sequence[Record], generation: Generation, what: str
) -> list[dict[str, Any]]:
    """One row for each record, in the order given: the record's reference beside the model's answer."""
    answers = answer(model, chat, records, generation, what)
    return [
        {
            "id": record.id,
            "prompt": record.prompt,
            "completion": record.completion,
            "label": record.label,
            "output": said.output,
            "tokens": said.tokens,
            "stopped": said.stopped,
        }
        for record, said in zip(records, answers, strict=True)
    ]


def answer(model: Any, chat: Chat, records: Sequence[Record], generation: Generation, what: str) -> list[Answer]:
    """Greedy answers in the order of `records`."""
    encoded = [chat.prompt_ids(record) for record in records]
    # Greedy, said in full: a model's generation_config.json may ask for sampling.
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=generation.max_new_tokens,
        eos_token_id=chat.stop_id,
        pad_token_id=chat.stop_id,
        bos_token_id=chat.tokenizer.bos_token_id,
        use_cache=True,
    )
    answers: dict[int, Answer] = {}
    batches = list(_by_length([len(ids) for ids in encoded], generation.batch_size))
    for batch in track(batches, len(batches), what):
        ids, mask = _padded([encoded[i] for i in batch], chat.stop_id, left=True)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
            )
        for index, row in zip(batch, out[:, ids.shape[1] :].tolist(), strict=True):
            answers[index] = _cut_at_stop(row, chat)
    return [answers[index] for index in range(len(records))]


def perplexity(model: Any, chat: Chat, records: Sequence[Record], batch_size: int) -> float:
    """exp of the mean negative log-likelihood, in nats, of a reference token, stop tokens included.

    Raises:
        Refusal: when the model gives no finite likelihood, as broken weights or a broken kernel do.
    """
    encoded = [(chat.prompt_ids(r), chat.completion_ids(r.completion)) for r in records]
    total, count = 0.0, 0
    for batch in _by_length([len(p) + len(c) for p, c in encoded], batch_size):
        ids, mask = _padded([encoded[i][0] + encoded[i][1] for i in batch], chat.stop_id, left=False)
        with torch.inference_mode():
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
        for row, index in enumerate(batch):
            start, end = len(encoded[index][0]), len(encoded[index][0]) + len(encoded[index][1])
            target = ids[row, start:end].to(logits.device)
            log_likelihood = logits[row, start - 1 : end - 1].float().log_softmax(-1)
            total -= log_likelihood.gather(1, target[:, None]).double().sum().item()
            count += end - start
    mean = total / count
    if not mean < _LARGEST_MEAN:
        raise Refusal(f"the model gives the reference answers a mean loss of {mean} nats; it must not be used")
    return math.exp(mean)


def _by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first, so that memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _padded(rows: Sequence[list[int]], pad: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both rows x longest row."""
    width = max(len(row) for row in rows)
    blanks = [width - len(row) for row in rows]
    if left:
        ids = [[pad] * blank + row for blank, row in zip(blanks, rows, strict=True)]
        mask = [[0] * blank + [1] * len(row) for blank, row in zip(blanks, rows, strict=True)]
    else:
        ids = [row + [pad] * blank for blank, row in zip(blanks, rows, strict=True)]
        mask = [[1] * len(row) + [0] * blank for blank, row in zip(blanks, rows, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


def _cut_at_stop(ids: list[int], chat: Chat) -> Answer:
    stopped = chat.stop_id in ids
    spoken = ids[: ids.index(chat.stop_id)] if stopped else ids
    return Answer(chat.text(spoken), len(spoken) + stopped, stopped)
