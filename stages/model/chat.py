"""Prompts and completions as token ids: one rendering for training, scoring and generation.

What a row says is text, whatever it looks like: where it has the words of a special token, such as `<|im_end|>` or
`<filename>`, they are encoded as any other words. Only the template writes special tokens.
"""

import multiprocessing
import random
import re
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.params.task import Task
from stages.records.record import REPLAY, Message, Record

# What a template is tried with, at most so many seconds and bytes.
_QUESTION, _ANSWER = "Xq7", "Zk4"
_LONG = "\n".join(f'{n}. "Lines" of <b>text</b> & {{{{ more }}}}, as people write it.' for n in range(400))
_TALK = [("user", "Hi Ab1?"), ("assistant", "Yes Cd2."), ("user", _LONG), ("assistant", "No Ef3."), ("user", "Gh4?")]
_SECONDS, _BYTES = 20, 2 << 30
_AT_ONCE = 10_000  # records that are encoded together

# A template that writes the date gets this one, in which Llama's templates stand when nobody tells them another.
_DAY = datetime(2024, 7, 26)
_DIRECTIVES = [*"aAbBcdeDFhHIjmMpSTuUVwWxXyY", "-d", "-m"]
_FIXED_DAY = (
    "{%- macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{d}', '{_DAY.strftime(f'%{d}')}')" for d in _DIRECTIVES)
    + " }}{%- endmacro %}{{ '' }}"
)


@dataclass(frozen=True, slots=True)
class Chat:
    """A tokenizer with its chat template, the task's instruction and those of tagged rows.

    `stop_id` is the token with which the template ends the assistant's turn: it closes every trained
    completion and it stops generation.
    """

    tokenizer: Any
    instruction: str
    stop_id: int
    takes_system: bool
    by_task: Mapping[str, str] = field(default_factory=dict)

    def instruction_for(self, record: Record) -> str:
        """What the model is told before the record's turns, or an empty text.

        The record's own system message comes in place of the task's instruction: whoever wrote one wrote all
        that the model was to know. General replay rows have neither.
        """
        if record.context and record.context[0].role == "system":
            return record.context[0].content
        return "" if record.source == REPLAY else self.by_task.get(record.task or "", self.instruction)

    def prompt_ids(self, record: Record) -> list[int]:
        """Token ids up to the point where the assistant's answer begins."""
        return self._ids(self._prompt(record))

    def completion_ids(self, completion: str) -> list[int]:
        """Token ids of the answer, ended by the stop token."""
        return [*self._ids(special_texts(self.tokenizer).split(completion)), self.stop_id]

    def text(self, ids: list[int]) -> str:
        """The answer in words, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def encoded(self, record: Record) -> tuple[list[int], list[int], list[str]]:
        """As `encode`, of one record."""
        return next(self.encode([record]))

    def encode(self, records: Sequence[Record]) -> Iterator[tuple[list[int], list[int], list[str]]]:
        """Of each, ids of prompt and completion, and what keeps the model from learning just what the row says: faults.

        A fault goes on from "rows". Where the template takes no such row, there are no ids.
        """
        for start in range(0, len(records), _AT_ONCE):
            some = records[start : start + _AT_ONCE]
            completions = [special_texts(self.tokenizer).split(record.completion) for record in some]
            prompts, refused = list[list[str]](), dict[int, str]()
            for number, record in enumerate(some):
                try:
                    prompts.append(self._prompt(record))
                except UserError as error:
                    prompts.append([])
                    refused[number] = f"have turns of which {error}"
            ids = self._ids_of([*completions, *prompts])
            for number, record in enumerate(some):
                completion, prompt = [*ids[number], self.stop_id], ids[len(some) + number]
                faults = []
                if self.text(completion[:-1]) != record.completion:
                    faults.append("have a completion that the tokenizer cannot write: it comes back as another text")
                if number in refused:
                    yield [], [], [*faults, refused[number]]
                else:
                    yield prompt, completion, [*faults, *self._faults(record, prompts[number], prompt)]

    def _faults(self, record: Record, parts: list[str], prompt: list[int]) -> Iterator[str]:
        """Of a prompt rendered as `parts`, whose ids are `prompt`."""
        shown, at = "".join(parts), 0
        for text in (message["content"].strip() for message in self.messages(record)):
            at = shown.find(text, at) + len(text) if text in shown[at:] else len(shown) + 1
        if at > len(shown):
            yield "are not shown to the model in full, turn after turn, by the chat template"
        special = {*self.tokenizer.all_special_ids} - {self.tokenizer.unk_token_id}
        written = len(special_texts(self.tokenizer).findall("".join(parts[::2])))
        if sum(token in special for token in prompt) > written:
            yield "have words that the tokenizer takes for a special token"

    def has_special_texts(self, record: Record) -> bool:
        texts = (record.completion, *(message["content"] for message in self.messages(record)))
        return any(special_texts(self.tokenizer).search(text) for text in texts)

    def messages(self, record: Record) -> list[dict[str, str]]:
        """The conversation as a chat API takes it: instruction, turns, prompt."""
        turns = [message for message in record.context if message.role != "system"]
        turns.append(Message("user", record.prompt))
        return _messages(turns, self.instruction_for(record), self.takes_system)

    def _prompt(self, record: Record) -> list[str]:
        """The rendered prompt; every second part is the text of a special token that the row itself has."""
        messages, special = self.messages(record), special_texts(self.tokenizer)
        # The template gets a mark in their place, of a character that nobody uses.
        said = "".join(message["content"] for message in messages)
        mark = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in said)
        found: list[str] = []
        for message in messages:
            parts = special.split(message["content"])
            for index in range(1, len(parts), 2):
                found.append(parts[index])
                parts[index] = f"{mark}{len(found) - 1}{mark}"
            message["content"] = "".join(parts)
        shown = _rendered(self.tokenizer, messages, add_generation_prompt=True)
        pieces = re.split(f"{mark}([0-9]+){mark}", shown)
        pieces[1::2] = [found[int(index)] for index in pieces[1::2]]
        return pieces

    def _ids(self, parts: Sequence[str]) -> list[int]:
        """Ids of the parts end to end; in every second one special tokens are plain text."""
        return self._ids_of([parts])[0]

    def _ids_of(self, many: Sequence[Sequence[str]]) -> list[list[int]]:
        """The same of many, whose texts the tokenizer gets at once: it shares them out among the cores."""
        options: tuple[dict[str, bool], ...] = ({}, {"split_special_tokens": True})
        known: list[dict[str, list[int]]] = []
        for odd, option in enumerate(options):
            texts = [*dict.fromkeys(part for parts in many for part in parts[odd::2] if part)]
            found = self.tokenizer(texts, add_special_tokens=False, **option)["input_ids"] if texts else []
            known.append({"": [], **dict(zip(texts, found, strict=True))})
        return [[one for number, part in enumerate(parts) for one in known[number % 2][part]] for parts in many]


@lru_cache(maxsize=8)
def special_texts(tokenizer: Any) -> re.Pattern[str]:
    """Finds the text of each special token, as a group of its own."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, filter(None, names))) + ")" if names else "((?!))")


def task_chat(tokenizer: Any, task: Task) -> Chat:
    """The chat of a task; of `task` only the instructions are read. Raises UserError as `make_chat` does."""
    return make_chat(tokenizer, task.instruction, task.instructions)


def make_chat(tokenizer: Any, instruction: str, by_task: Mapping[str, str] | None = None) -> Chat:
    """Find out how the template takes a system message and ends a turn.

    `by_task` are the instructions of rows with a tag; all other rows have `instruction`. A template that writes the
    date writes the same one from here on, in this tokenizer and where it is saved.

    Raises:
        UserError: when there is no template, it cannot be rendered or does not end, draws random words, does not show
            the model all turns of a conversation in full, has no special token after the answer, or does not begin a
            full conversation with the very text that it shows the model before the answer.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name
        template = template.get("default")
    if not template:
        raise UserError("the tokenizer has no chat template, so nobody knows how the model is to be asked")
    tokenizer.chat_template = template.removeprefix("\ufeff")
    tried = _try_apart(tokenizer, instruction)
    if tried["asks_for_the_time"]:
        tokenizer.chat_template = _FIXED_DAY + tokenizer.chat_template
        tried = _try_apart(tokenizer, instruction)
    before, whole, talk = tried["before"], tried["whole"], tried["talk"]
    if tried["draws"] or re.search(" at 0x[0-9a-f]{6}", before + whole + talk):
        raise UserError("the chat template writes other words each time; no run of it could be repeated")
    if _QUESTION not in before:
        raise UserError("the chat template does not show the model what the user says")
    at = 0
    for _, text in _TALK:
        if (at := talk.find(text, at)) < 0:
            raise UserError("the chat template does not show the model all turns of a conversation in full, in order")
    if not whole.startswith(before + _ANSWER):
        raise UserError(
            "the chat template shows the model another text before an answer than in a full conversation; training on "
            "it would not match generation"
        )
    tail = tokenizer(whole[len(before) + len(_ANSWER) :], add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    if not tail or tail[0] not in special:
        raise UserError("the chat template ends an answer without a stop token; generation would not end")
    return Chat(tokenizer, instruction, tail[0], tried["takes_system"], by_task or {})


def _try_apart(tokenizer: Any, instruction: str) -> dict[str, Any]:
    """What `_try` finds, in a process of its own: a template can go on for ever, or fill the memory."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_try, args=(tokenizer, instruction, sender))
    child.start()
    sender.close()
    try:
        if not receiver.poll(_SECONDS):
            raise UserError(f"the chat template does not end; it was stopped after {_SECONDS} seconds")
        found: dict[str, Any] | str = receiver.recv()
    except EOFError:
        raise UserError("the chat template cannot be rendered: its process died, as one without memory does") from None
    finally:
        child.kill()
        child.join()
        receiver.close()
    if isinstance(found, str):
        raise UserError(found)
    return found


def _try(tokenizer: Any, instruction: str, sender: Connection) -> None:
    """Send what the template makes of conversations, or the sentence that says why nothing."""
    from transformers.utils import chat_template_utils

    asked = []

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            asked.append(tz)
            return _DAY

    chat_template_utils.datetime = Clock  # the template's one way to the time
    memory = Path("/proc/self/statm")
    if memory.exists():
        taken = int(memory.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + _BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    state = random.getstate()
    try:
        takes_system = _takes_system(tokenizer)
        turns = _messages([Message("user", _QUESTION)], instruction, takes_system)
        talk = _messages([Message(role, text) for role, text in _TALK], instruction, takes_system)
        before = _rendered(tokenizer, turns, add_generation_prompt=True)
        whole = _rendered(tokenizer, [*turns, {"role": "assistant", "content": _ANSWER}])
        found = {"before": before, "whole": whole, "talk": _rendered(tokenizer, talk, add_generation_prompt=True)}
        draws = random.getstate() != state
        sender.send({**found, "takes_system": takes_system, "asks_for_the_time": bool(asked), "draws": draws})
    except UserError as error:
        sender.send(str(error))


def _rendered(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> str:
    """The template runs in the sandbox of transformers. Raises UserError with the first line of what it says."""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # a template raises what it likes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the chat template cannot be rendered: {reason}") from None


def _messages(turns: Sequence[Message], instruction: str, takes_system: bool) -> list[dict[str, str]]:
    """The turns as a template takes them; where it takes no system message, the first turn opens with it."""
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    if instruction and takes_system:
        messages.insert(0, {"role": "system", "content": instruction})
    elif instruction:
        messages[0]["content"] = f"{instruction}\n\n{messages[0]['content']}"
    return messages


def _takes_system(tokenizer: Any) -> bool:
    """Some templates (Gemma's) refuse the role, some leave it out without a word."""
    probe = [{"role": "system", "content": _QUESTION}, {"role": "user", "content": "hello"}]
    try:
        return _QUESTION in tokenizer.apply_chat_template(probe, tokenize=False)
    except Exception:  # a template raises what it likes
        return False
