"""From the columns of a raw row to a pair: the shapes in which instruction data come.

    prompt_completion   prompt, completion; context (a list of role and content) may come before
    alpaca              instruction, input (may be empty), output; system and history (pairs) may come before
    sharegpt            conversations: a list of from and value; system may come before
    messages            messages: a list of role and content, as OpenAI has it

The last answer of a conversation is the completion, the turn before it the prompt, and all before that the
context. In every shape a row may also have label, source, task and id (which is not believed).
"""

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from stages.params.clean import Shape
from stages.prepare.clean.rejected_rows import Rejected, kind
from stages.records.record import Message
from stages.text.strict_json import BrokenContract, parse_json

_COMMON = ("label", "source", "task", "id")
_COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt_completion": ("prompt", "completion", "context"),
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "sharegpt": ("conversations", "system"),
    "messages": ("messages",),
}
SHAPES = tuple(shape for shape in get_args(Shape) if shape != "auto")
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
_CALLS = ("tool_calls", "function_call", "audio")
ALL = "*"


@dataclass(frozen=True, slots=True)
class Pair:
    """What a raw row says. `left_out` are its columns that are neither known nor kept."""

    shape: str
    prompt: str
    completion: str
    context: Sequence[Message] = ()
    label: str | None = None
    source: str | None = None
    task: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def read_pair(row: Mapping[str, Any], shape: str, keep: Collection[str], ignore: Collection[str]) -> Pair:
    """Read the columns of one row; `shape` is "auto" or fixed.

    Raises:
        Rejected: unknown_column, missing_field, wrong_type, unknown_role, bad_turns or no_answer.
    """
    shape = detect(row) if shape == "auto" else shape
    known = {*_COLUMNS[shape], *_COMMON, *keep}
    left_out = tuple(column for column in row if column not in known)
    for column in left_out:
        if column not in ignore and ALL not in ignore:
            raise Rejected("unknown_column", _unknown(column, (*_COLUMNS[shape], *_COMMON)))
    prompt, completion, context = _READERS[shape](row)
    return Pair(
        shape=shape,
        prompt=prompt,
        completion=completion,
        context=context,
        label=_label(row),
        source=_optional_text(row, "source"),
        task=_optional_text(row, "task"),
        fields={column: _as_text(row[column]) for column in keep if row.get(column) not in (None, "")},
        left_out=left_out,
    )


def detect(row: Mapping[str, Any]) -> str:
    """The shape of a row by its columns, so that no other row and no order matters."""
    if row.get("messages") is not None:
        return "messages"
    if row.get("conversations") is not None:
        return "sharegpt"
    if "prompt" not in row and "completion" not in row and ("instruction" in row or "output" in row):
        return "alpaca"
    return "prompt_completion"


def _prompt_completion(row: Mapping[str, Any]) -> tuple[str, str, list[Message]]:
    prompt, completion = _text(row, "prompt"), _text(row, "completion")
    if not row.get("context"):
        return prompt, completion, []
    last = [Message("user", prompt), Message("assistant", completion)]
    return _last_pair([*_turns(row["context"], "context", "role", "content"), *last])


def _alpaca(row: Mapping[str, Any]) -> tuple[str, str, list[Message]]:
    """The input, where there is one, follows the instruction after an empty line."""
    instruction, answer = _text(row, "instruction"), _text(row, "output")
    given = _optional_text(row, "input")
    system = _optional_text(row, "system")
    turns = [Message("system", system)] if system else []
    for pair in _list(row.get("history") or [], "history"):
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise Rejected("wrong_type", "'history' must be a list of pairs of strings")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    prompt = f"{instruction}\n\n{given}" if given and given.strip() else instruction
    return _last_pair([*turns, Message("user", prompt), Message("assistant", answer)])


def _sharegpt(row: Mapping[str, Any]) -> tuple[str, str, list[Message]]:
    turns = _turns(_present(row, "conversations"), "conversations", "from", "value")
    system = _optional_text(row, "system")
    return _last_pair([Message("system", system), *turns] if system else turns)


def _messages(row: Mapping[str, Any]) -> tuple[str, str, list[Message]]:
    return _last_pair(_turns(_present(row, "messages"), "messages", "role", "content"))


_READERS = {"prompt_completion": _prompt_completion, "alpaca": _alpaca, "sharegpt": _sharegpt, "messages": _messages}


def _turns(value: Any, column: str, role_key: str, text_key: str) -> list[Message]:
    turns = []
    for number, turn in enumerate(_list(value, column), start=1):
        if not isinstance(turn, dict):
            raise Rejected("wrong_type", f"turn {number} of {column!r} must be an object, found {kind(turn)}")
        calls = [key for key in _CALLS if turn.get(key)]
        if calls:
            raise Rejected("unknown_role", f"turn {number} of {column!r} has {calls[0]}, which no record can hold")
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in _ROLES:
            raise Rejected(
                "unknown_role",
                f"turn {number} of {column!r} has the {role_key} {role!r}; known are {', '.join(_ROLES)}",
            )
        turns.append(Message(_ROLES[role], _content(turn.get(text_key), number, column, text_key)))
    return turns


def _content(value: Any, number: int, column: str, key: str) -> str:
    """A turn's text, also where it comes as a list of text parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        texts = [part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if len(texts) == len(value):
            return "".join(texts)
        raise Rejected("wrong_type", f"turn {number} of {column!r} has parts that are no text")
    raise Rejected("wrong_type", f"turn {number} of {column!r}: {key!r} must be a string, found {kind(value)}")


def _last_pair(turns: list[Message]) -> tuple[str, str, list[Message]]:
    """Prompt, completion and context of a conversation: a system message or none, then user and assistant in turn."""
    head = [turn for turn in turns[:1] if turn.role == "system"]
    talk = turns[len(head) :]
    if talk and talk[-1].role != "assistant":
        raise Rejected("no_answer", f"the last turn is the {talk[-1].role}'s; there is no answer to learn")
    roles = [turn.role for turn in talk]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        said = ", ".join(turn.role for turn in turns[:6]) or "no turns"
        raise Rejected("bad_turns", f"expected a system message or none, then user and assistant in turn; found {said}")
    *before, prompt, answer = talk
    context = [*head, *before] if head and head[0].content.strip() else before
    return prompt.content, answer.content, context


def _list(value: Any, column: str) -> list[Any]:
    if isinstance(value, str):  # CSV has no lists, and some exports have JSON in a text
        try:
            value = parse_json(value)
        except BrokenContract as error:
            raise Rejected("wrong_type", f"{column!r} must be a list, found text that is no JSON ({error})") from None
    if not isinstance(value, list):
        raise Rejected("wrong_type", f"{column!r} must be a list, found {kind(value)}")
    return value


def _present(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise Rejected("missing_field", f"{column!r} is missing; the row has {', '.join(map(repr, row)) or 'nothing'}")
    return row[column]


def _text(row: Mapping[str, Any], column: str) -> str:
    value = _present(row, column)
    if isinstance(value, str):
        return value
    hint = "; write the JSON into a string, as json.dumps does" if isinstance(value, dict | list) else ""
    raise Rejected("wrong_type", f"{column!r} must be a string, found {kind(value)}{hint}")


def _optional_text(row: Mapping[str, Any], column: str) -> str | None:
    return None if row.get(column) is None else _text(row, column)


def _label(row: Mapping[str, Any]) -> str | None:
    """Classes are often numbered; a number is the name of its class."""
    value = row.get("label")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _optional_text(row, "label")


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _unknown(column: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(column.lower(), known, n=1, cutoff=0.7)
    meant = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)};"
    return (
        f"column {column!r} is unknown; {meant} To leave it out, name it in clean.ignore_columns ({ALL!r} for all); "
        "to keep it for slices, in clean.keep_columns"
    )
