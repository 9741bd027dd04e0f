from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import CHAT_TEMPLATE, SPECIAL, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stages.core.errors import UserError
from stages.model.chat import Chat, make_chat
from stages.records.record import REPLAY, Message, Record, make_record

NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHAT_TEMPLATE
)
IGNORES_SYSTEM = CHAT_TEMPLATE.replace(
    "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
)
NO_STOP = CHAT_TEMPLATE.replace("<|im_end|>", "")
# As some reasoning models have it: thoughts stand in the prompt, but not in a finished conversation.
THINKS = CHAT_TEMPLATE.replace(
    "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think></think>{% endif %}"
)


def asking(prompt: str, *context: Message, source: str = "s") -> Record:
    return make_record(prompt, "{}", None, source, "s:1", context=context)


def test_the_instruction_is_the_system_message() -> None:
    chat = make_chat(tiny_tokenizer(), "Answer in JSON.")
    text = chat.tokenizer.decode(chat.prompt_ids(asking("hello")))
    assert (
        text
        == "<|im_start|>system\nAnswer in JSON.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("template", [NO_SYSTEM, IGNORES_SYSTEM])
def test_a_template_without_system_gets_the_instruction_before_the_prompt(template: str) -> None:
    chat = make_chat(tiny_tokenizer(template), "Answer in JSON.")
    assert "user\nAnswer in JSON.\n\nhello<|im_end|>" in chat.tokenizer.decode(chat.prompt_ids(asking("hello")))


TALK = (Message("user", "Hi."), Message("assistant", "Yes?"))


def test_earlier_turns_come_before_the_prompt() -> None:
    chat = make_chat(tiny_tokenizer(), "Answer in JSON.")
    turns = "system\nAnswer in JSON.", "user\nHi.", "assistant\nYes?", "user\nhello"
    expected = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
    assert chat.tokenizer.decode(chat.prompt_ids(asking("hello", *TALK))) == expected


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, NO_SYSTEM, IGNORES_SYSTEM])
def test_a_system_message_of_the_record_comes_in_place_of_the_instruction(template: str) -> None:
    chat = make_chat(tiny_tokenizer(template), "Answer in JSON.")
    own = make_chat(tiny_tokenizer(template), "Be brief.")
    for turns in ((), TALK):
        record = asking("hello", Message("system", "Be brief."), *turns)
        assert chat.prompt_ids(record) == own.prompt_ids(asking("hello", *turns))
        assert chat.tokenizer.decode(chat.prompt_ids(record)).count("Be brief.") == 1


def test_general_replay_rows_have_no_instruction_but_may_have_a_system_message() -> None:
    chat, bare = make_chat(tiny_tokenizer(), "Answer in JSON."), make_chat(tiny_tokenizer(), "")
    assert chat.prompt_ids(asking("hello", source=REPLAY)) == bare.prompt_ids(asking("hello"))
    own = asking("hello", Message("system", "Be brief."), source=REPLAY)
    assert "Be brief." in chat.tokenizer.decode(chat.prompt_ids(own))


def test_the_stop_token_is_the_one_with_which_the_template_ends_a_turn() -> None:
    chat = make_chat(tiny_tokenizer(), "")
    assert chat.stop_id == chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.text(chat.completion_ids("äöü {}")) == "äöü {}"


def test_a_template_that_never_ends_an_answer_is_refused() -> None:
    with pytest.raises(UserError, match="stop token"):
        make_chat(tiny_tokenizer(NO_STOP), "")


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("", "the tokenizer has no chat template"),
        ("{% for message in messages %}", "cannot be rendered: Unexpected end of template"),
        ("{{ raise_exception('only for\nMondays') }}", "cannot be rendered: only for$"),
        ("{{ messages.__class__.__mro__ }}", "cannot be rendered: access to attribute '__class__' .* is unsafe"),
        (CHAT_TEMPLATE.replace("{{ message['content'] }}", ""), "does not show the model what the user says"),
    ],
)
def test_a_template_that_cannot_be_used_is_a_sentence(template: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_chat(tiny_tokenizer(template), "")


def test_a_template_that_shows_another_prompt_in_training_is_refused() -> None:
    with pytest.raises(UserError, match="would not match generation"):
        make_chat(tiny_tokenizer(THINKS), "")


LLAMA_DATE = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}'
    '{%- endif %}{%- endif %}{{- "Today Date: " + date_string + "\n" }}'
)
ASKS_LATE = CHAT_TEMPLATE.replace(
    "{% endfor %}", "{% if loop.index > 2 %}{{ strftime_now('%A %H:%M %-d/%m/%y') }}{% endif %}{% endfor %}"
)
ALL = "does not show the model all turns of a conversation in full, in order"
TURN = "{{ message['content'] }}"


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (LLAMA_DATE + CHAT_TEMPLATE, "Today Date: 26 Jul 2024\n<|im_start|>"),
        ("{{ strftime_now('%Y-%m-%d') }}" + CHAT_TEMPLATE, "2024-07-26<|im_start|>"),
        (ASKS_LATE, "Friday 00:00 26/07/24"),
        ("\n|" + LLAMA_DATE + CHAT_TEMPLATE, "\n|Today Date: 26 Jul 2024\n"),
    ],
)
def test_a_template_that_writes_the_date_writes_one_date_for_ever(
    template: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    for year in (2031, 2047):
        chat = make_chat(tiny_tokenizer(template), "Answer.")
        clock = type("Clock", (datetime,), {"now": classmethod(lambda cls, tz=None, y=year: datetime(y, 3, 4, 5))})
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)
        shown.append(chat.tokenizer.decode(chat.prompt_ids(asking("hello", *TALK))))
        again = tiny_tokenizer(chat.tokenizer.chat_template)
        assert make_chat(again, "Answer.").tokenizer.chat_template == chat.tokenizer.chat_template
    assert shown[0] == shown[1]
    assert written in shown[0]
    assert "2031" not in shown[0]


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ ['Hi', 'Hello'] | random }}" + CHAT_TEMPLATE, "other words each time"),
        ("{{ lipsum(n=1) }}" + CHAT_TEMPLATE, "other words each time"),
        ("{{ messages | map(attribute='role') }}" + CHAT_TEMPLATE, "other words each time"),
        (CHAT_TEMPLATE.replace(TURN, "{{ message['content'][:200] }}"), ALL),
        (CHAT_TEMPLATE.replace(TURN, "{{ message['content'] | truncate(900) }}"), ALL),
        (CHAT_TEMPLATE.replace(TURN, "{{ message['content'] | escape }}"), ALL),
        (CHAT_TEMPLATE.replace(TURN, "{{ message['content'] | lower }}"), "does not show .* what the user says"),
        (CHAT_TEMPLATE.replace("in messages", "in messages[-2:]"), ALL),
        (CHAT_TEMPLATE.replace("in messages", "in messages | reverse"), ALL),
        (
            CHAT_TEMPLATE.replace(TURN, "{% if loop.last or loop.first %}" + TURN + "{% endif %}"),
            ALL,
        ),
    ],
)
def test_a_template_that_does_not_show_what_rows_say_is_refused(template: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_chat(tiny_tokenizer(template), "Answer.")


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not end"),
        ("{{ 9 ** (9 ** 9) }}", "does not end"),
        ("{% macro again() %}{{ again() }}{{ again() }}{% endmacro %}{{ again() }}", "does not end|cannot be rendered"),
        ("{{ 'a' * 9999999999 }}", "cannot be rendered"),
        (
            "{% set n = namespace(t='ab') %}{% for a in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}",
            "does not end|be rendered",
        ),
    ],
)
def test_a_template_that_never_ends_is_stopped(template: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.model.chat._SECONDS", 2)
    with pytest.raises(UserError, match=sentence):
        make_chat(tiny_tokenizer(template + CHAT_TEMPLATE), "Answer.")


def test_a_byte_order_mark_is_no_text_and_of_several_templates_the_default_is_taken() -> None:
    marked = make_chat(tiny_tokenizer("\ufeff" + CHAT_TEMPLATE), "")
    named = tiny_tokenizer()
    named.chat_template = {"default": CHAT_TEMPLATE, "tools": "{{ tools }}"}
    plain = make_chat(tiny_tokenizer(), "").prompt_ids(asking("hello"))
    assert marked.prompt_ids(asking("hello")) == make_chat(named, "").prompt_ids(asking("hello")) == plain
    named.chat_template = {"tools": CHAT_TEMPLATE}
    with pytest.raises(UserError, match="no chat template"):
        make_chat(named, "")


WORDS = st.lists(st.sampled_from([*SPECIAL, "<file>", "<|im_", "end|>", "a", " ", "\n", "ü", "</s>"]), max_size=6)
TEXTS = st.one_of(st.text(max_size=20), WORDS.map("".join)).filter(str.strip)


def with_a_file_token() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<file>", special=True)])
    return tokenizer


@given(prompt=TEXTS, completion=TEXTS, earlier=st.lists(st.tuples(TEXTS, TEXTS), max_size=2), system=st.none() | TEXTS)
def test_what_a_row_says_is_never_a_special_token(
    prompt: str, completion: str, earlier: list[tuple[str, str]], system: str | None
) -> None:
    chat = make_special_chat()
    context = [Message(role, text) for pair in earlier for role, text in zip(("user", "assistant"), pair, strict=True)]
    if system is not None:
        context.insert(0, Message("system", system))
    record = asking(prompt, *context)
    ids = chat.prompt_ids(record)
    turns = 2 * len(earlier) + 2  # the instruction, or the row's own, and the prompt
    special = set(chat.tokenizer.all_special_ids) | {chat.tokenizer.convert_tokens_to_ids("<file>")}
    assert sum(token in special for token in ids) == 2 * turns + 1
    decoded = chat.tokenizer.decode(ids)
    at = 0
    for text in [*(m.content for m in record.context), record.prompt]:
        at = decoded.index(text, at) + len(text)
    assert chat.text(chat.completion_ids(completion)) == completion
    assert sum(token in special for token in chat.completion_ids(completion)) == 1, "the stop token"
    assert chat.encoded(replace(record, completion=completion))[2] == []
    texts = (record.prompt, completion, *(m.content for m in record.context))
    assert chat.has_special_texts(replace(record, completion=completion)) == any(
        token in text for token in (*SPECIAL, "<file>") for text in texts
    )


@cache
def make_special_chat() -> Chat:
    return make_chat(with_a_file_token(), "Answer.")


@given(prompt=st.text(max_size=30))
def test_a_row_without_such_words_is_encoded_as_its_rendered_text_is(prompt: str) -> None:
    chat = make_special_chat()
    record = asking(prompt or "x")
    messages = [{"role": "system", "content": "Answer."}, {"role": "user", "content": record.prompt}]
    whole = chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert chat.prompt_ids(record) == whole


def test_a_completion_that_the_tokenizer_cannot_write_is_a_fault() -> None:
    """A vocabulary without the letters of an answer writes the unknown token in their place."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "yes": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    few = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    few.chat_template = CHAT_TEMPLATE
    chat = make_chat(few, "")
    assert chat.encoded(replace(asking("who"), completion="yes"))[2] == []
    (fault,) = chat.encoded(replace(asking("who"), completion="no"))[2]
    assert "cannot write" in fault
