"""From the columns of a raw row to a pair: the shapes in which instruction data come.

    prompt_completion   prompt, completion; context (a list of role and content) may come before
    alpaca              instruction, input (may be empty), output; system and history (pairs) may come before
    sharegpt            conversations: a list of from and value; system may come before
    messages            messages: a list of role and content, as OpenAI has it

The last answer of a conversation is the completion, the turn before it the prompt, and all before that the
context. In every shape a row may also have label, source, task, annotator (who wrote the answer; records keep it, for
slices), provenance (where the row came from, for people; records do not have it) and id (which is not believed).

Null, an empty text, list or object says nothing, in a column as in a key of a turn; where the pair itself should stand,
the row is rejected for it. 0 and false are values. A column that is not known is unknown whatever it holds.

Rows and turns may say `weight: 0`, `train: false` or the like: an answer of that mark is none to learn, so a
conversation ends with its last answer that is. A key of a turn that is not known is as a column that is not known.
"""

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from stages.params.prepare import Shape
from stages.prepare.clean.rejected_rows import Rejected, kind
from stages.records.record import Message
from stages.text.strict_json import EMPTY, BrokenContract, parse_json, written

_COMMON = ("label", "source", "task", "id", "annotator", "provenance")
_PAIR = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
_BESIDE = {"prompt_completion": ("context",), "alpaca": ("input", "system", "history"), "sharegpt": ("system",)}
SHAPES = tuple(shape for shape in get_args(Shape) if shape != "auto")
_NAMES = {"system": ("system", "developer"), "user": ("user", "human"), "assistant": ("assistant", "gpt", "model")}
_ROLES = {name: role for role, names in _NAMES.items() for name in names}
_CALLS = ("tool_calls", "function_call", "audio", "image", "images", "video", "videos")
# Whether to train on an answer, as OpenAI and Mistral, Axolotl, ms-swift and XTuner say it.
_MARKS = ("weight", "train", "training", "trainable", "loss", "output_with_loss")
_YES, _NO = (1, "1", "true"), (0, "0", "false")

Unknown = Callable[..., None]


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
    """Read the columns of one row; `shape` is "auto" or fixed. Raises Rejected."""
    shape = detect(row) if shape == "auto" else shape
    left_out: dict[str, None] = {}

    def unknown(column: str, known: Sequence[str], key: str = "") -> None:
        name = f"{column}.{key}" if key else column
        if not {"*", name, key or name} & {*ignore}:
            raise Rejected("unknown_column", _unknown(name, key or column, known))
        left_out[name] = None

    known = (*_PAIR[shape], *_BESIDE.get(shape, ()), *_COMMON)
    for column in row:
        if column not in (*known, *keep, *_MARKS):
            unknown(column, known)
        elif column in _MARKS and column not in keep and not _is_trained(row, column, "the row"):
            raise Rejected("not_to_train", f"{column!r} says that this row is not to be trained on")
    row = {column: value for column, value in row.items() if column in _PAIR[shape] or value not in EMPTY}
    prompt, completion, context = _READERS[shape](row, unknown)
    return Pair(
        shape=shape,
        prompt=prompt,
        completion=completion,
        context=context,
        label=_label(row),
        source=_optional_text(row, "source"),
        task=_optional_text(row, "task"),
        fields={
            column: value if isinstance(value := row[column], str) else written(value)  # 1.10 is not 1.1
            for column in (*keep, "annotator")
            if column in row
        },
        left_out=tuple(left_out),
    )


def detect(row: Mapping[str, Any]) -> str:
    """The shape of a row by its columns that say something, then by any, so that no other row and no order matters."""
    for columns in ({column for column in row if row[column] not in EMPTY}, row.keys()):
        for shape, pair in _PAIR.items():
            if not columns.isdisjoint(pair):
                return shape
    return "prompt_completion"


def _prompt_completion(row: Mapping[str, Any], unknown: Unknown) -> tuple[str, str, list[Message]]:
    prompt, completion = _text(row, "prompt"), _text(row, "completion")
    if "context" not in row:
        return prompt, completion, []
    last = [Message("user", prompt), Message("assistant", completion)]
    before = [message for message, _ in _turns(row["context"], "context", "role", "content", unknown)]
    return _last_pair([*before, *last])


def _alpaca(row: Mapping[str, Any], unknown: Unknown) -> tuple[str, str, list[Message]]:
    """The input, where there is one, follows the instruction after an empty line."""
    instruction, answer = _text(row, "instruction"), _text(row, "output")
    given = _optional_text(row, "input") or ""
    turns = _system(row)
    for pair in _list(row.get("history", []), "history"):
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise Rejected("wrong_type", "'history' must be a list of pairs of strings")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    prompt = f"{instruction}\n\n{given}" if given.strip() else instruction
    return _last_pair([*turns, Message("user", prompt), Message("assistant", answer)])


def _sharegpt(row: Mapping[str, Any], unknown: Unknown) -> tuple[str, str, list[Message]]:
    turns = _to_train(_turns(_present(row, "conversations"), "conversations", "from", "value", unknown))
    return _last_pair([*_system(row), *turns])


def _messages(row: Mapping[str, Any], unknown: Unknown) -> tuple[str, str, list[Message]]:
    return _last_pair(_to_train(_turns(_present(row, "messages"), "messages", "role", "content", unknown)))


def _system(row: Mapping[str, Any]) -> list[Message]:
    system = _optional_text(row, "system")
    return [Message("system", system)] if system else []


_READERS = {"prompt_completion": _prompt_completion, "alpaca": _alpaca, "sharegpt": _sharegpt, "messages": _messages}


def _turns(value: Any, column: str, role_key: str, text_key: str, unknown: Unknown) -> Iterator[tuple[Message, bool]]:
    """Every turn, and whether it may be trained on."""
    for number, turn in enumerate(_list(value, column), start=1):
        place = f"turn {number} of {column!r}"
        if not isinstance(turn, dict):
            raise Rejected("wrong_type", f"{place} must be an object, found {kind(turn)}")
        given = [key for key in turn if turn[key] not in EMPTY and key not in (role_key, text_key)]
        if calls := [key for key in given if key in _CALLS]:
            raise Rejected("unknown_role", f"{place} has {calls[0]}, which no record can hold")
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in _ROLES:
            raise Rejected("unknown_role", f"{place} has the {role_key} {role!r}; known are {', '.join(_ROLES)}")
        for key in given:
            if key not in _MARKS:
                unknown(column, (role_key, text_key, *_MARKS), key)
        is_trained = all(_is_trained(turn, key, place) for key in given if key in _MARKS)
        yield Message(_ROLES[role], _content(turn.get(text_key), place, text_key)), is_trained


def _is_trained(marked: Mapping[str, Any], key: str, place: str) -> bool:
    value = marked[key].lower() if isinstance(marked[key], str) else marked[key]
    if value in EMPTY or value in _YES:
        return True
    if value not in _NO:
        raise Rejected("wrong_type", f"{place}: {key!r} must be 0 or 1, true or false; found {value!r}")
    return False


def _to_train(turns: Iterable[tuple[Message, bool]]) -> list[Message]:
    """The turns up to the last answer that may be trained on, where a later one may not."""
    said = list(turns)
    answers = [number for number, (message, _) in enumerate(said) if message.role == "assistant"]
    if not answers or said[answers[-1]][1]:
        return [message for message, _ in said]
    trained = [number for number in answers if said[number][1]]
    if not trained:
        raise Rejected("not_to_train", "every answer is marked as one not to train on")
    return [message for message, _ in said[: trained[-1] + 1]]


def _content(value: Any, place: str, key: str) -> str:
    """A turn's text, also where it comes as a list of text parts."""
    if isinstance(value, list) and value:
        if not all(map(_is_text, value)):
            raise Rejected("wrong_type", f"{place} has parts that are no text")
        return "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise Rejected("wrong_type", f"{place}: {key!r} must be a string, found {kind(value)}")
    return value


def _is_text(part: Any) -> bool:
    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
        return False
    return part.get("type") in (None, "text") and all(part[key] in EMPTY for key in part.keys() - {"type", "text"})


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
    return _text(row, column) if column in row else None


def _label(row: Mapping[str, Any]) -> str | None:
    """Classes are often numbered; a number is the name of its class."""
    value = row.get("label")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _optional_text(row, "label")


def _unknown(name: str, word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word[:100].lower(), known, n=1, cutoff=0.7)
    meant = f"did you mean {near[0]!r}? To" if near else f"known are {', '.join(known)}; to"
    kept = "; to keep it for slices, in clean.keep_columns" if name == word else ""
    return f"column {name!r} is unknown; {meant} leave it out, name it in clean.ignore_columns{kept}"
