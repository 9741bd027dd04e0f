"""What a model says to the prompts of records."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stages.core.progress import track
from stages.model.chat import Chat
from stages.model.generation import lockstep, vllm_engine
from stages.model.generation.answer_cache import remember
from stages.model.generation.greedy import Greedy
from stages.model.generation.slots import fits
from stages.model.generation.weights import Weights
from stages.model.loading import causal_of
from stages.params import Generation
from stages.records.record import Record


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
            **({"task": record.task} if record.task is not None else {}),
        }
        for record, said in zip(records, answers, strict=True)
    ]


def answer(model: Any, chat: Chat, records: Sequence[Record], generation: Generation, what: str) -> list[Answer]:
    """Greedy answers in the order of `records`, by a loaded model or by `Weights`, which are asked only once.

    A loaded model is always asked with transformers: what it holds lies in no file.
    """
    encoded = [tuple(chat.prompt_ids(record)) for record in records]
    # Each prompt once, the longest first, whatever the order of the records: memory runs out at once or never.
    prompts = [list(ids) for ids in sorted(set(encoded), key=lambda ids: (-len(ids), ids))]
    if isinstance(model, Weights):
        said = _remembered(model, prompts, chat.stop_id, generation, what)
    else:
        said = _ask(model, prompts, chat.stop_id, generation, what)
    by_prompt = {tuple(ids): _cut_at_stop(row, chat) for ids, row in zip(prompts, said, strict=True)}
    return [by_prompt[ids] for ids in encoded]


def _remembered(
    weights: Weights, prompts: list[list[int]], stop_id: int, generation: Generation, what: str
) -> list[list[int]]:
    request: dict[str, Any] = {
        "answers": prompts,
        "stop": stop_id,
        "parameters": generation.model_dump(),
        "weights": weights.identity,
    }
    start = time.perf_counter()
    if generation.engine == "vllm":
        request["vllm"] = vllm_engine.version()
        said, known = remember(request, lambda: vllm_engine.ask(weights, prompts, stop_id, generation.max_new_tokens))
    else:
        said, known = remember(request, lambda: _ask(weights.model, prompts, stop_id, generation, what))
    seconds = time.perf_counter() - start
    tokens = sum(map(len, said))
    weights.spent[what] = {"prompts": len(prompts), "tokens": tokens, "remembered": known}
    if not known:
        weights.spent[what] |= {
            "seconds_loading_included": round(seconds, 2),
            "seconds_an_answer": round(seconds / max(1, len(prompts)), 4),
            "tokens_per_second": round(tokens / seconds, 1),
        }
    return said


def _ask(model: Any, prompts: list[list[int]], stop_id: int, generation: Generation, what: str) -> list[list[int]]:
    """Token ids of the answers, in the order of `prompts`, with the stop token where one came."""
    said = dict(track(_as_they_end(causal_of(model), prompts, stop_id, generation), len(prompts), what))
    return [said[index] for index in range(len(prompts))]


def _as_they_end(
    causal: Any, prompts: list[list[int]], stop_id: int, generation: Generation
) -> Iterator[tuple[int, list[int]]]:
    if not prompts:
        return iter(())
    if fits(causal):
        return Greedy(causal, prompts, stop_id, generation.max_new_tokens, generation.batch_tokens).answers()
    return lockstep.answers(causal, prompts, stop_id, generation.max_new_tokens)


def _cut_at_stop(ids: list[int], chat: Chat) -> Answer:
    stopped = chat.stop_id in ids
    spoken = ids[: ids.index(chat.stop_id)] if stopped else ids
    return Answer(chat.text(spoken), len(spoken) + stopped, stopped)
