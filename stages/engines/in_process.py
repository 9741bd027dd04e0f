"""What transformers answers in this process, freely or held to a contract; and what loading and answering take."""

import gc
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.core.errors import UserError
from stages.core.files import tree_digest
from stages.model.answers import Answer, answer, as_rows, rows_with_likelihood
from stages.model.chat import Chat
from stages.model.likelihoods import likelihoods, with_likelihood
from stages.model.loading import Weights, remember
from stages.params.model import Generation
from stages.records.record import Record

# Each label costs one pass over the prompt; beyond so many, a grammar of the labels is decoded, as servers do.
MOST_LABELS = 50
_PROBE = '{"a b":\n["é 1", -2.5, null]}'  # an answer's kinds of characters
_TIMED = 8  # rows of the hold-out that are answered against the clock, at once

Contracts = Sequence[Mapping[str, Any] | None]


def in_process_rows(
    weights: Weights, chat: Chat, records: Sequence[Record], generation: Generation, held: Contracts, what: str
) -> list[dict[str, Any]]:
    """The rows of `rows_with_likelihood`; each answer is held to what `held_to` says of its record.

    Of at most `MOST_LABELS` labels the likeliest as a whole completion, the stop token included, is the answer; of
    equally likely ones the first. More labels and a JSON Schema are decoded by a grammar of llguidance.

    Raises:
        UserError: when llguidance is needed and not installed, or cannot read the schema.
    """
    if not any(held):
        return rows_with_likelihood(weights, chat, records, generation, what)
    rows = as_rows(records, _answers(weights, chat, records, generation, held, what))
    return with_likelihood(rows, likelihoods(weights, chat, records))


def _answers(
    model: Any, chat: Chat, records: Sequence[Record], generation: Generation, held: Contracts, what: str
) -> list[Answer]:
    groups: dict[str, list[Record]] = {}
    for record, one in zip(records, held, strict=True):
        groups.setdefault(json.dumps(one), []).append(record)
    said: dict[str, Answer] = {}
    for text, members in groups.items():
        contract = json.loads(text)
        if contract and 0 < len(contract.get("labels", ())) <= MOST_LABELS:
            answers = _likeliest(model, chat, members, contract["labels"])
        else:
            answers = answer(model, chat, members, generation, what, Grammar(contract, chat) if contract else None)
        said |= {record.id: one for record, one in zip(members, answers, strict=True)}
    return [said[record.id] for record in records]


def _likeliest(model: Any, chat: Chat, records: Sequence[Record], labels: Sequence[str]) -> list[Answer]:
    """The labels of all records are measured in one pass, which shares what all prompts begin with."""
    asked = [replace(record, completion=label) for record in records for label in labels]
    nats = np.array([one.nats for one in likelihoods(model, chat, asked)]).reshape(len(records), len(labels))
    return [Answer(labels[one], len(chat.completion_ids(labels[one])), True) for one in nats.argmin(axis=1)]


class Grammar:
    """A logits processor that lets each row of a batch go on only as its contract allows, by llguidance."""

    def __init__(self, contract: Mapping[str, Any], chat: Chat) -> None:
        if not find_spec("llguidance"):
            raise UserError("generation.enforce: needs a package: pip install 'tunetrail[enforce]'; or set it to none")
        import llguidance
        import llguidance.hf

        self.contract: Mapping[str, Any] = {**contract, "by": [llguidance.__version__, tree_digest(Path(__file__))]}
        (asked,) = map(json.dumps, contract.values())
        grammar = llguidance.grammar_from("choice" if "labels" in contract else "json_schema", asked)
        tokenizer = llguidance.hf.from_tokenizer(chat.tokenizer, eos_token=chat.stop_id)
        ids = chat.completion_ids(_PROBE)[:-1]
        if tokenizer.decode_str(ids).strip() != chat.text(ids).strip():  # it would allow what breaks the contract
            raise UserError(
                "generation.enforce: llguidance reads the tokens of this tokenizer as other text; set it to none, or "
                "serve by llama.cpp or vllm"
            )
        self._first = llguidance.LLMatcher(tokenizer, grammar)
        if self._first.is_error():
            raise UserError(f"generation.enforce: llguidance cannot hold answers to it: {self._first.get_error()}")

    def begin(self, rows: int) -> None:
        self._rows, self._begun = [self._first.deep_copy() for _ in range(rows)], False

    def keep(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[row] for row in rows]

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` (rows, vocabulary) after the tokens `ids`, minus infinity where the contract is left."""
        allowed = np.zeros(scores.shape, bool)
        for row, (matcher, last) in enumerate(zip(self._rows, ids[:, -1].tolist(), strict=True)):
            if self._begun and not matcher.is_stopped():
                matcher.consume_token(last)
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            width = min(len(bits), scores.shape[1])
            allowed[row, :width] = bits[:width]
        self._begun = True
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), -torch.inf)


def cost(
    weights: Weights, chat: Chat, records: Sequence[Record], generation: Generation, held: Contracts
) -> dict[str, Any]:
    """What the artefact takes: seconds to load it, tokens a second of its answers to the first rows, memory.

    The memory is the most that this process held meanwhile, its libraries included, as a server's process has them;
    on a card also what torch held there. Measured once for the same files on the same kind of machine.
    """
    rows, held = records[:_TIMED], held[:_TIMED]

    def measure() -> list[Any]:
        gc.collect()  # the model before this one
        with suppress(OSError):  # a kernel that cannot start the count again
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        model = weights.model
        loaded = time.perf_counter()
        tokens = sum(one.tokens for one in _answers(model, chat, rows, generation, held, "timed"))
        speed = tokens / (time.perf_counter() - loaded)
        took = {"seconds_to_load": round(loaded - start, 2), "tokens": tokens, "tokens_per_second": round(speed, 1)}
        card = {"peak_card_memory_mib": torch.cuda.max_memory_allocated() >> 20} if torch.cuda.is_available() else {}
        return [{**took, "at_once": len(rows), "peak_memory_mib": peak_memory_mib("self"), **card}]

    asked = {"cost": [chat.prompt_ids(record) for record in rows], "held": held, "weights": weights.identity}
    parameters = {"tokens": generation.max_new_tokens, "threads": torch.get_num_threads()}
    found, known = remember({**asked, **parameters}, measure)
    return {"engine": "transformers", **found[0], "remembered": known}


def peak_memory_mib(process: int | str) -> int | None:
    """MiB that a process, by its number or "self", held at most; None where the system does not tell."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:")), None)
