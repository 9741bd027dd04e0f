"""What a model says to the prompts of records, and how likely it holds their references; never computed twice.

Answers come from transformers' `generate` in batches. What the same weights, code and libraries computed for a whole
request is remembered outside DVC's outputs, so that it outlives a stage that runs again for another reason.
"""

import copy
import hashlib
import inspect
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from stages.core import paths
from stages.core.errors import Refusal
from stages.core.files import atomic, tree_digest
from stages.core.machine import machine_settings
from stages.core.run_notes import library_versions, track
from stages.model.chat import Chat
from stages.model.labels import label_likelihoods, labels_of
from stages.model.loading import Weights, bytes_a_token, causal_of, head_is_plain
from stages.params.model import Generation
from stages.records.record import Record

# Tokens of prompts and answers in memory at once. More gain little on a CPU; on a card they are a fixed share of its
# memory, never of what is free: a number that changed from run to run would change how sums are rounded.
_CPU_TOKENS, _GPU_TOKENS, _MEMORY_SHARE = 4096, 131072, 4
# Tokens between two looks at which answers have ended; those that have leave the batch. A look costs a card more.
_LEG = {"cpu": 8, "cuda": 24}
_LARGEST_MEAN = 700.0  # nats; exp of more is no float
# Tokens of references that go through the model at once, and logits: memory for activations against speed.
_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}
_COMPARED_AT_ONCE = 512  # tokens, whose logits two models have in full
_LOGITS_AT_ONCE = 1 << 25
# Whatever of this folder decides which numbers come out.
_CODE = [Path(__file__).with_name(f"{name}.py") for name in ("answers", "labels", "loading")]

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
    for rows in _batches(pairs, 0, _COMPARED_AT_ONCE):
        if labels_of(models[0]):
            said = iter([tuple(label_likelihoods(causal, [prompt for prompt, _ in rows]) for causal in models)])
        else:
            ids = _filled_up([p + c for p, c in rows], chat.stop_id, models[0].device)
            first, second = (causal(input_ids=ids).logits for causal in models)
            places = [(i, slice(len(p) - 1, len(p) + len(c) - 1)) for i, (p, c) in enumerate(rows)]
            # Sums over a vocabulary in float32 err by as much as a merge rounds.
            said = (tuple(one[place].double().log_softmax(-1) for one in (first, second)) for place in places)
        for ours, theirs in said:
            total += (ours.exp() * (ours - theirs)).sum().item()
            tokens += len(ours)
    if not math.isfinite(total):
        raise Refusal("the model's logits are no numbers; it must not be used")
    return max(total / max(1, tokens), 0.0)


@torch.inference_mode()
def _measure(causal: Any, pairs: Sequence[Pair], chat: Chat) -> list[list[Any]]:
    """[nats, agreed] of each of the (prompt, completion) pairs, longest first."""
    if labels := labels_of(causal):
        return _measure_labels(causal, pairs, [chat.completion_ids(label) for label in labels])
    result: list[list[Any]] = []
    if not pairs:
        return result
    prefix = Prefix(causal, [prompt for prompt, _ in pairs], gap=False)
    begun = prefix.length
    for rows in _batches(pairs, begun, _TOKENS_AT_ONCE[causal.device.type]):
        ids = _filled_up([(p + c)[begun:] for p, c in rows], chat.stop_id, causal.device)
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


def _filled_up(rows: Sequence[list[int]], pad: int, device: Any) -> torch.Tensor:
    """Token ids [rows, the longest]; the filler stands on the right, where no token that counts sees it."""
    width = max(map(len, rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)


def _batches(pairs: Sequence[Pair], begun: int, tokens: int) -> Iterator[Sequence[Pair]]:
    """Pairs of like length, at most `tokens` tokens after the `begun` ones with padding, one pair at least."""
    start = 0
    while start < len(pairs):
        rows = max(1, tokens // (len(pairs[start][0]) + len(pairs[start][1]) - begun))
        yield pairs[start : start + rows]
        start += rows


def remember(request: dict[str, Any], compute: Callable[[], list[Any]]) -> tuple[list[Any], bool]:
    """What `compute` returns for this request, and whether it was known. Both are JSON values, `request` in full.

    A killed process leaves no half file under a name that is read, and processes with the same request do not
    disturb each other.
    """
    made_of = {**request, "code": [tree_digest(path) for path in _CODE], "libraries": library_versions()}
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    path = paths.of_checkout(paths.GENERATIONS_MEMORY) / f"{key}.json"
    with suppress(FileNotFoundError, ValueError):
        if isinstance(known := json.loads(path.read_bytes()), list):
            return known, True
    result = compute()
    with atomic(path) as partial:
        partial.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    return result, False
