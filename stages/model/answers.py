"""What a model says to the prompts of records: greedy answers by transformers' `generate`, in batches.

What the same weights, code and libraries computed for a whole request is remembered outside DVC's outputs (`remember`),
so that it outlives a stage that runs again for another reason.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from stages.core.machine import machine_settings
from stages.core.run_notes import track
from stages.model.chat import Chat
from stages.model.labels import label_likelihoods, labels_of
from stages.model.likelihoods import Prefix, likelihoods, with_likelihood
from stages.model.loading import Weights, bytes_a_token, causal_of, remember
from stages.params.model import Generation
from stages.records.record import Record

# Tokens of prompts and answers in memory at once. More gain little on a CPU; on a card they are a fixed share of its
# memory, never of what is free: a number that changed from run to run would change how sums are rounded.
_CPU_TOKENS, _GPU_TOKENS, _MEMORY_SHARE = 4096, 131072, 4
# Tokens between two looks at which answers have ended; those that have leave the batch. A look costs a card more.
_LEG = {"cpu": 8, "cuda": 24}


class Held(Protocol):
    """What answers are held to as they are decoded: a logits processor of `generate` that knows a batch's rows."""

    contract: Mapping[str, Any]  # a JSON value that says all of it

    def begin(self, rows: int) -> None: ...

    def keep(self, rows: Sequence[int]) -> None: ...

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor: ...


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
    return as_rows(records, answer(model, chat, records, generation, what))


def as_rows(records: Sequence[Record], answers: Sequence[Any]) -> list[dict[str, Any]]:
    """What the generation files hold; an answer is whatever has an `Answer`'s attributes."""
    return [
        {
            "id": record.id,
            "prompt": record.prompt,
            "completion": record.completion,
            "label": record.label,
            "output": said.output,
            "tokens": said.tokens,
            "stopped": said.stopped,
            **({"task": record.task} if record.task is not None else {}),
        }
        for record, said in zip(records, answers, strict=True)
    ]


def rows_with_likelihood(
    model: Any, chat: Chat, records: Sequence[Record], generation: Generation, what: str
) -> list[dict[str, Any]]:
    """The rows of `answer_rows`, each with "nats" and "reference_tokens": how likely the model holds the reference.

    Where each token of a reference, the stop token included, is the model's first choice after those before it, greedy
    decoding says the reference. The one pass that measures the likelihood shows that, so nothing is generated there:
    a finished model answers most of a hold-out that way. The two ways can differ where two tokens are equally likely
    up to rounding, as two sizes of a batch can.
    """
    found = likelihoods(model, chat, records)
    open_ = [one.agreed < one.tokens or one.tokens > generation.max_new_tokens for one in found]
    said = iter(answer(model, chat, [r for r, ask in zip(records, open_, strict=True) if ask], generation, what))
    answers = [
        next(said) if ask else cut_at_stop(chat.completion_ids(record.completion), chat)
        for record, ask in zip(records, open_, strict=True)
    ]
    return with_likelihood(as_rows(records, answers), found)


def answer(
    model: Any, chat: Chat, records: Sequence[Record], generation: Generation, what: str, held: Held | None = None
) -> list[Answer]:
    """Greedy answers in the order of `records`, by a loaded model or by `Weights`, which are asked only once.

    A model with a classification head answers with the completion that its likeliest label is.

    A loaded model is always asked: what it holds lies in no file. `held` says what every answer is held to.
    """
    encoded = [tuple(chat.prompt_ids(record)) for record in records]
    # Each prompt once, the longest first, whatever the order of the records: memory runs out at once or never.
    prompts = [list(ids) for ids in sorted(set(encoded), key=lambda ids: (-len(ids), ids))]
    said = _ask(model, prompts, chat, generation, what, held)
    by_prompt = {tuple(ids): cut_at_stop(row, chat) for ids, row in zip(prompts, said, strict=True)}
    return [by_prompt[ids] for ids in encoded]


def _ask(
    model: Any, prompts: list[list[int]], chat: Chat, generation: Generation, what: str, held: Held | None
) -> list[list[int]]:
    """Token ids of the answers, in the order of `prompts`, with the stop token where one came."""
    setting = machine_settings().generation_tokens

    def generate(loaded: Any) -> list[list[int]]:
        causal = causal_of(loaded)
        if labels := labels_of(causal):
            best = label_likelihoods(causal, prompts).argmax(-1).tolist()
            return [chat.completion_ids(labels[index]) for index in best]
        tokens = tokens_at_once(causal) if setting == "auto" else setting
        found = in_batches(causal, prompts, chat.stop_id, generation.max_new_tokens, tokens, held)
        said = dict(track(found, len(prompts), what))
        return [said[index] for index in range(len(prompts))]

    if not isinstance(model, Weights):
        return generate(model)
    request = {
        "answers": prompts,
        "stop": chat.stop_id,
        "parameters": generation.model_dump(),
        "held": held.contract if held else None,
        "tokens_at_once": setting,
        "weights": model.identity,
    }
    start = time.perf_counter()
    said, known = remember(request, lambda: generate(model.model))
    seconds, tokens = time.perf_counter() - start, sum(map(len, said))
    model.spent[what] = {"prompts": len(prompts), "tokens": tokens, "remembered": known}
    if not known:
        model.spent[what] |= {
            "seconds_loading_included": round(seconds, 2),
            "seconds_an_answer": round(seconds / max(1, len(prompts)), 4),
            "tokens_per_second": round(tokens / seconds, 1),
        }
    return said


@torch.inference_mode()
def in_batches(
    causal: Any, prompts: Sequence[list[int]], stop_id: int, limit: int, tokens: int, held: Held | None = None
) -> Iterator[tuple[int, list[int]]]:
    """(index of the prompt, its greedy answer's token ids with the stop token); `prompts` has the longest first.

    An answer ends with `stop_id` or has `limit` tokens. A batch has at most `tokens` tokens, one prompt at least; it
    is halved when memory runs out.
    """
    if not prompts:
        return
    with _greedy_alone(causal):
        prefix = Prefix(causal, prompts, gap=True)
        start, rows = 0, max(1, tokens // (len(prompts[0]) + limit))
        while start < len(prompts):
            batch = prompts[start : start + rows]
            try:
                said = _one_batch(causal, batch, prefix, stop_id, limit, held)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                rows, said = len(batch) // 2, []
            yield from enumerate(said, start)
            start += len(said)


def _one_batch(
    causal: Any, prompts: Sequence[list[int]], prefix: Prefix, stop_id: int, limit: int, held: Held | None
) -> list[list[int]]:
    """The answers to prompts of one batch; what pads them stands on the left, after the prefix."""
    from transformers import GenerationConfig

    if held:
        held.begin(len(prompts))
    width, begun = max(map(len, prompts)), prefix.length
    pads = [width - len(prompt) for prompt in prompts]
    rows = [p[:begun] + [stop_id] * n + p[begun:] for p, n in zip(prompts, pads, strict=True)]
    ids = torch.tensor(rows, device=causal.device)
    seen = torch.ones_like(ids)
    for row, n in enumerate(pads):
        seen[row, begun : begun + n] = 0
    cache = prefix.cache(len(prompts))
    said: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))
    while running:
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            max_new_tokens=min(_LEG[causal.device.type], limit - len(said[running[0]])),
            eos_token_id=stop_id,
            pad_token_id=stop_id,
        )
        options = {"input_ids": ids, "attention_mask": seen, "past_key_values": cache, "generation_config": config}
        out = causal.generate(**options, logits_processor=[held] if held else None)
        for row, new in zip(running, out.sequences[:, ids.shape[1] :].tolist(), strict=True):
            said[row] += new[: new.index(stop_id) + 1] if stop_id in new else new
        ids, cache = out.sequences, out.past_key_values
        seen = torch.nn.functional.pad(seen, (0, ids.shape[1] - seen.shape[1]), value=1)
        going = [i for i, row in enumerate(running) if said[row][-1] != stop_id and len(said[row]) < limit]
        running = [running[i] for i in going]
        if running and len(running) < len(seen):
            kept = torch.tensor(going, device=ids.device)
            cache.reorder_cache(kept)  # the one way to choose rows that all kinds of layers have
            ids, seen = ids[kept], seen[kept]
            if held:
                held.keep(going)
    return said


@contextmanager
def _greedy_alone(causal: Any) -> Iterator[None]:
    """In this block, the model's own generation_config.json, which may sample or punish repetition, says nothing."""
    from transformers import GenerationConfig

    own, causal.generation_config = causal.generation_config, GenerationConfig()
    try:
        yield
    finally:
        causal.generation_config = own


def tokens_at_once(causal: Any) -> int:
    """Of prompts and answers, in a batch on the model's device."""
    if causal.device.type == "cpu":
        return _CPU_TOKENS
    memory = torch.cuda.get_device_properties(causal.device).total_memory
    return min(_GPU_TOKENS, memory // _MEMORY_SHARE // bytes_a_token(causal))


def cut_at_stop(ids: list[int], chat: Chat) -> Answer:
    """What these ids of an answer say, up to the stop token if there is one."""
    stopped = chat.stop_id in ids
    spoken = ids[: ids.index(chat.stop_id)] if stopped else ids
    return Answer(chat.text(spoken), len(spoken) + stopped, stopped)
