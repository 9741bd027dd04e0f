"""Prompts and completions as token ids: one rendering for training, scoring and generation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.core.errors import UserError
from stages.params.task import Task
from stages.records.record import REPLAY, Message, Record

_SENTINEL, _ANSWER = "Xq7", "Zk4"


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
        turns = [message for message in record.context if message.role != "system"]
        turns.append(Message("user", record.prompt))
        messages = _messages(turns, self.instruction_for(record), self.takes_system)
        ids: list[int] = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return ids

    def completion_ids(self, completion: str) -> list[int]:
        """Token ids of the answer, ended by the stop token."""
        return [*self.tokenizer(completion, add_special_tokens=False)["input_ids"], self.stop_id]

    def text(self, ids: list[int]) -> str:
        """The answer in words, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def task_chat(tokenizer: Any, task: Task) -> Chat:
    """The chat of a task; of `task` only the instructions are read. Raises UserError as `make_chat` does."""
    return make_chat(tokenizer, task.instruction, task.instructions)


def make_chat(tokenizer: Any, instruction: str, by_task: Mapping[str, str] | None = None) -> Chat:
    """Find out how the template takes a system message and ends a turn.

    `by_task` are the instructions of rows with a tag; all other rows have `instruction`.

    Raises:
        UserError: when there is no template, it cannot be rendered, does not show the model what the user says, has no
            special token after the answer, or does not begin a full conversation with the very text that it shows
            the model before the answer.
    """
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template, so nobody knows how the model is to be asked")
    takes_system = _takes_system(tokenizer)
    messages = _messages([Message("user", _SENTINEL)], instruction, takes_system)
    before = _rendered(tokenizer, messages, add_generation_prompt=True)
    whole = _rendered(tokenizer, [*messages, {"role": "assistant", "content": _ANSWER}])
    if _SENTINEL not in before:
        raise UserError("the chat template does not show the model what the user says")
    if not whole.startswith(before + _ANSWER):
        raise UserError(
            "the chat template shows the model another text before an answer than in a full conversation; training on "
            "it would not match generation"
        )
    tail = tokenizer(whole[len(before) + len(_ANSWER) :], add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    if not tail or tail[0] not in special:
        raise UserError("the chat template ends an answer without a stop token; generation would not end")
    return Chat(tokenizer, instruction, tail[0], takes_system, by_task or {})


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
    probe = [{"role": "system", "content": _SENTINEL}, {"role": "user", "content": "hello"}]
    try:
        return _SENTINEL in tokenizer.apply_chat_template(probe, tokenize=False)
    except Exception:  # a template raises what it likes
        return False
