import pytest
from tiny_model import CHAT_TEMPLATE, tiny_tokenizer

from stages.chat import make_chat
from stages.errors import UserError

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


def test_the_instruction_is_the_system_message() -> None:
    chat = make_chat(tiny_tokenizer(), "Answer in JSON.")
    text = chat.tokenizer.decode(chat.prompt_ids("hello"))
    assert (
        text
        == "<|im_start|>system\nAnswer in JSON.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("template", [NO_SYSTEM, IGNORES_SYSTEM])
def test_a_template_without_system_gets_the_instruction_before_the_prompt(template: str) -> None:
    chat = make_chat(tiny_tokenizer(template), "Answer in JSON.")
    assert "user\nAnswer in JSON.\n\nhello<|im_end|>" in chat.tokenizer.decode(chat.prompt_ids("hello"))


def test_the_stop_token_is_the_one_with_which_the_template_ends_a_turn() -> None:
    chat = make_chat(tiny_tokenizer(), "")
    assert chat.stop_id == chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.text(chat.completion_ids("äöü {}")) == "äöü {}"


def test_a_template_that_never_ends_an_answer_is_refused() -> None:
    with pytest.raises(UserError, match="stop token"):
        make_chat(tiny_tokenizer(NO_STOP), "")


def test_a_template_that_shows_another_prompt_in_training_is_refused() -> None:
    with pytest.raises(UserError, match="would not match generation"):
        make_chat(tiny_tokenizer(THINKS), "")
