"""The hold-out asked of an artefact through the HTTP server that will serve it."""

import importlib.metadata
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from stages.core.errors import Refusal, UserError
from stages.core.files import tree_digest
from stages.engines import engine_server, llama_server
from stages.engines.engine_server import Messages, Reply, Server, ask, held_to, prompt_ids, serving
from stages.engines.in_process import peak_memory_mib
from stages.model.answers import as_rows
from stages.model.chat import Chat
from stages.model.loading import remember
from stages.params.loader import Params
from stages.records.record import Record

_SLOTS_OF_A_CARD = 32
_CODE = [Path(str(one.__file__)) for one in (engine_server, llama_server)]  # how the engine is started and asked


def served_rows(
    artefact: Path, engine: str, chat: Chat, records: Sequence[Record], params: Params, enforce: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of `answer_rows`, said by `engine`; and what that took, for metrics/env/.

    What the same file, engine and requests gave is remembered, as `generate`'s answers are, where the engine is a
    package of this environment: which one answers elsewhere, only asking tells. Raises Refusal when the engine shows
    the model other tokens than training did; UserError when the engine cannot be had, or cannot hold answers to the
    contract.
    """
    conversations, held = [chat.messages(record) for record in records], contracts(records, params, enforce)
    prompts = [chat.prompt_ids(record) for record in records]
    longest = max(map(len, prompts)) + params.generation.max_new_tokens
    notes: dict[str, Any] = {"engine": engine, "prompts": len(records)}

    def answers() -> list[Any]:
        with _server(artefact, engine, params, -(-(longest + 8) // 256) * 256) as server:
            refuse_other_tokens(server, chat, records, conversations)
            start = time.perf_counter()
            said = ask(server, conversations, params.generation, held, artefact.name)
            seconds, tokens = time.perf_counter() - start, sum(one.tokens for one in said)
            notes.update(seconds_to_load=round(server.seconds_to_start, 2), tokens=tokens, at_once=server.slots)
            notes.update(tokens_per_second=round(tokens / seconds, 1), peak_memory_mib=_peak_memory_mib(server))
        return [notes, [[one.output, one.tokens, one.stopped] for one in said]]

    if engine != "llama.cpp" or _elsewhere(engine, params):
        return as_rows(records, [Reply(*one) for one in answers()[1]]), notes
    request = {
        "served": [conversations, prompts],
        "held": held,
        "parameters": params.generation.model_dump(),
        "artefact": tree_digest(artefact),
        "engine": [engine, importlib.metadata.version("xllamacpp"), *map(tree_digest, _CODE)],
    }
    (notes, said), known = remember(request, answers)
    return as_rows(records, [Reply(*one) for one in said]), {**notes, "remembered": known}


def contracts(records: Sequence[Record], params: Params, enforce: str) -> list[dict[str, Any] | None]:
    """What the answer to each record is held to. Raises UserError where `enforce` holds none of them to anything."""
    held = [held_to(enforce, params.task, record.task) for record in records]
    if enforce != "none" and not any(held):
        raise UserError(
            f"generation.enforce: no row of the hold-out has a contract of the kind {enforce}; set it to none"
        )
    return held


def _elsewhere(engine: str, params: Params) -> str | None:
    return params.engine.url if engine == params.engine.name else None


@contextmanager
def _server(artefact: Path, engine: str, params: Params, context: int) -> Iterator[Server]:
    """The one that runs elsewhere where engine.url names it, else one that is started here."""
    if url := _elsewhere(engine, params):
        key = os.environ.get(params.engine.key_variable or "")
        yield Server(url, params.engine.model or artefact.name, engine, key, _SLOTS_OF_A_CARD)
        return
    slots = 1 if engine == "llama.cpp" else _SLOTS_OF_A_CARD
    with serving(artefact, engine, slots=slots, context=context) as server:
        yield server


def refuse_other_tokens(
    server: Server, chat: Chat, records: Sequence[Record], conversations: Sequence[Messages]
) -> None:
    """Raises Refusal when the engine's template and tokenizer make other ids of a prompt than those trained on.

    Rows that have the text of a special token are left out: engines take it for the token, and training did not.
    """
    for record, messages in zip(records, conversations, strict=True):
        if chat.has_special_texts(record):
            continue
        theirs, ours = prompt_ids(server, messages), chat.prompt_ids(record)
        if theirs != ours:
            at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), len(min(theirs, ours)))
            raise Refusal(
                f"{server.engine} shows the model another prompt than training did: row {record.id} has {len(theirs)} "
                f"tokens there and {len(ours)} here, and differs from token {at}; so it answers something else"
            )


def _peak_memory_mib(server: Server) -> int | None:
    """Of the process that has the model: the server's, or the largest of those that it started."""
    if server.process is None:
        return None
    own = psutil.Process(server.process.pid)
    return max(peak_memory_mib(one.pid) or 0 for one in (own, *own.children(recursive=True)))
