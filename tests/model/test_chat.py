import pytest
from tiny_model import CHAT_TEMPLATE, tiny_tokenizer

from stages.core.errors import UserError
from stages.model.chat import make_chat
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
