"""Served requests out of the logs of any server that speaks the OpenAI API: one shape for what they all say.

Known are lines that have a request and its reply side by side: those of LiteLLM (its standard logging payload, or a
proxy's spend log), of OpenAI's and vLLM's batch files, of llama.cpp and vLLM behind a proxy that writes
`{"request": ..., "response": ...}`, of `tunetrail serve --log-text`, and of `tunetrail answer`. Where the reply is
nested, and as what, is found by looking for `messages` or `prompt` and for `choices`.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeGuard

from stages.core.errors import UserError
from stages.records.record import Message

_REQUEST = ("request", "body", "kwargs", "request_body", "input", "proxy_server_request")
_REPLY = ("response", "body", "reply", "response_body", "result", "output")
_TIME = ("time", "timestamp", "created", "startTime", "start_time", "created_at")
_UP = {"up", "thumbs_up", "positive", "good", "like", "1", "true"}
_DOWN = {"down", "thumbs_down", "negative", "bad", "dislike", "-1", "0", "false"}


@dataclass(frozen=True)
class Served:
    """One answered request.

    `place` is FILE:LINE, counted from 1, with the folders below the one that all logs are in;
    `log_probability` the mean over the answer's tokens in nats, None where the log has none; `feedback` is what a
    person said of the answer: True, False or None; `correction` what it should have been; `task` the tag of its task,
    where the log says it.
    """

    place: str
    messages: tuple[Message, ...]
    output: str
    finish: str | None
    release: str | None
    time: datetime | None
    log_probability: float | None
    feedback: bool | None
    correction: str | None
    task: str | None


def read_logs(files: Sequence[Path]) -> tuple[list[Served], list[str]]:
    """The answered requests of all lines, in order, and a sentence for each line that is none.

    Raises:
        UserError: when a file cannot be read, or no line of it is an answered request.
    """
    found: list[Served] = []
    left: list[str] = []
    files = list({os.path.realpath(file): file for file in files}.values())  # a log that is named twice was served once
    top = os.path.commonpath([file.absolute().parent for file in files])
    for file in files:
        name = file.absolute().relative_to(top).as_posix()
        try:
            lines = file.read_bytes().splitlines()
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from None
        before = len(found)
        for number, line in enumerate(lines, start=1):
            if line.strip():
                served = _served(line, f"{name}:{number}")
                (found if isinstance(served, Served) else left).append(served)  # type: ignore[arg-type]
        if lines and len(found) == before:
            raise UserError(
                f"{file} has no line with a request and its answer; wanted is JSONL in which a line has `messages` (or "
                "`prompt`) and `choices`, at its top or in parts such as `request` and `response`"
            )
    return found, left


def _served(line: bytes, place: str) -> Served | str:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return f"{place}: no JSON"
    if not isinstance(content, dict):
        return f"{place}: no JSON object"
    asking = (one for one in _parts(content, _REQUEST) if one.get("messages") or isinstance(one.get("prompt"), str))
    request = next(asking, None)
    reply = next((one for one in _parts(content, _REPLY) if one.get("choices")), content)
    messages = _messages(request)
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    message = choice.get("message") if choice else None
    said = message.get("content") if isinstance(message, dict) else choice.get("text") if choice else None
    own = content["answer"] if isinstance(content.get("answer"), dict) else {}  # a row of `tunetrail answer`
    output = _text(said) if said is not None else own.get("output", content.get("output"))
    # As in a record, or `append` would leave out what people have answered.
    if request is None or not re.fullmatch("(system )?(user assistant )*user", " ".join(one.role for one in messages)):
        return f"{place}: no request in which user and assistant take turns, the last of them the user's"
    if not isinstance(output, str):
        return f"{place}: no answer"
    feedback, correction = _opinion(content)
    models = own.get("release"), content.get("release"), reply.get("model"), content.get("model"), request.get("model")
    model, task = next(filter(None, models), None), content.get("task")
    texts = [*(message.content for message in messages), output, correction, model, task]
    try:
        "".join(text for text in texts if isinstance(text, str)).encode()
    except UnicodeEncodeError:
        return f"{place}: no UTF-8 text: it has an unpaired surrogate"
    return Served(
        place,
        messages,
        output,
        choice.get("finish_reason") if choice else "length" if own.get("stopped") is False else None,
        model if isinstance(model, str) else None,
        _time(content, reply),
        _log_probability(choice or content),
        feedback,
        correction,
        task if task and isinstance(task, str) else None,
    )


def _parts(content: Mapping[str, Any], names: Sequence[str], depth: int = 3) -> Iterator[Mapping[str, Any]]:
    """The object itself and the objects within it under these names; a proxy logs bodies as text, too."""
    yield content
    for name in names:
        value = content.get(name)
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                continue
        if isinstance(value, dict) and depth:
            yield from _parts(value, names, depth - 1)


def _messages(request: Mapping[str, Any] | None) -> tuple[Message, ...]:
    if request is None:
        return ()
    given = request.get("messages")
    if not given:
        turns = request.get("context")
        given = [*(turns if isinstance(turns, list) else ()), {"role": "user", "content": request["prompt"]}]
    found = []
    for one in given if isinstance(given, list) else ():
        text = _text(one.get("content")) if isinstance(one, dict) else None
        if text is None or one.get("role") not in ("system", "developer", "user", "assistant"):
            return ()
        found.append(Message("system" if one["role"] == "developer" else one["role"], text))
    return tuple(found)


def _text(content: Any) -> str | None:
    """Text, or the text parts of a message; None for anything else, such as pictures."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    return content if isinstance(content, str) else None


def _log_probability(choice: Mapping[str, Any]) -> float | None:
    given = choice.get("logprobs")
    tokens: Any = given.get("content") or given.get("token_logprobs") if isinstance(given, dict) else None
    tokens = tokens if isinstance(tokens, list) else ()
    values = [one.get("logprob") if isinstance(one, dict) else one for one in tokens]
    numbers = [float(one) for one in values if _is_double(one)]
    mean = sum(numbers) / len(numbers) if numbers else choice.get("log_probability")
    return float(mean) if _is_double(mean) else None


def _is_double(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _opinion(content: Mapping[str, Any]) -> tuple[bool | None, str | None]:
    """Thumb and correction, at the line's top or in its `feedback` or `metadata`."""
    thumb, correction = None, None
    places = [content, *(content[name] for name in ("feedback", "metadata") if isinstance(content.get(name), dict))]
    for place in places:
        for name in ("feedback", "thumb", "thumbs", "rating", "score"):
            value = place.get(name)
            word = str(value).lower() if isinstance(value, str | bool | int | float) else ""
            unclear = word == "1" and name in ("rating", "score")  # the best of two, or the worst of five
            thumb = thumb if unclear else True if word in _UP else False if word in _DOWN else thumb
        for name in ("correction", "corrected", "corrected_output"):
            correction = place[name] if isinstance(place.get(name), str) and place[name] else correction
    return thumb, correction


def _time(*places: Mapping[str, Any]) -> datetime | None:
    """The first that is a time, and no later than tomorrow: none was answered then."""
    for value in (place[name] for place in places for name in _TIME if place.get(name) is not None):
        try:
            if isinstance(value, int | float):
                time = datetime.fromtimestamp(value / 1000 if value > 1e11 else value, UTC)
            else:
                time = datetime.fromisoformat(str(value))
            time = (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError, OSError):
            continue
        if time < datetime.now(UTC) + timedelta(days=1):
            return time
    return None
