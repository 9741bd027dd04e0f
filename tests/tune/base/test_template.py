"""The template of model.chat_template, and that of the SNIPS example beside the one that it stands for."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import CHAT_TEMPLATE, tiny_tokenizer

from stages.core.errors import UserError
from stages.model.chat import make_chat
from stages.records.record import make_record
from stages.tune.base.base_model import set_template
from stages.tune.base.model_source import read_template

EXAMPLE = Path(__file__).parents[3] / "examples" / "snips" / "chat_template.jinja"
# SmolLM2-135M-Instruct's own, as its GGUF file has it.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As `clean` leaves it: no white space but spaces and line ends, and none at the ends.
WORD = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=8)
GAP = st.sampled_from([" ", "\n", "  ", "\n\n", " \n ", "    "])
TEXT = st.lists(st.tuples(GAP, WORD), max_size=5).map(lambda pairs: "".join(map("".join, pairs)).strip())
TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXT), min_size=1, max_size=4)
OWN, WORDS = tiny_tokenizer(SMOLLM2), tiny_tokenizer(EXAMPLE.read_text(encoding="utf-8"))


@given(system=st.none() | TEXT, turns=TURNS, asks=st.booleans())
def test_the_example_adds_the_words_of_each_user_turn_and_changes_nothing_else(
    system: str | None, turns: list[tuple[str, str]], asks: bool
) -> None:
    said = ([] if system is None else [("system", system)]) + turns
    messages = [{"role": role, "content": text} for role, text in said]
    twice = [
        {"role": role, "content": f"{text}\n" + "\n".join(text.split()) if role == "user" else text}
        for role, text in said
    ]
    shown = WORDS.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
    assert shown == OWN.apply_chat_template(twice, tokenize=False, add_generation_prompt=asks)


@pytest.mark.parametrize("instruction", ["", "Give the intent."])
def test_the_example_can_be_trained_with(instruction: str) -> None:
    set_template(WORDS, "")
    chat = make_chat(WORDS, instruction)
    assert chat.takes_system
    assert chat.tokenizer.decode(chat.prompt_ids(make_record("play  some jazz", "{}", None, "s", "s:1"))).endswith(
        "<|im_start|>user\nplay  some jazz\nplay\nsome\njazz<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_example_has_no_white_space_around_the_turns() -> None:
    shown = WORDS.apply_chat_template([{"role": "system", "content": ""}], tokenize=False)
    assert shown == "<|im_start|>system\n<|im_end|>\n"


def test_a_file_comes_in_place_of_the_own_template_and_an_empty_one_does_not(tmp_path: Path) -> None:
    file = tmp_path / "chat_template.jinja"
    for text, expected in (
        ("", CHAT_TEMPLATE),
        (" \n", CHAT_TEMPLATE),
        ("{# none #}\n", CHAT_TEMPLATE),
        (SMOLLM2, SMOLLM2),
    ):
        file.write_text(text, encoding="utf-8")
        tokenizer = tiny_tokenizer()
        set_template(tokenizer, read_template(file))
        assert tokenizer.chat_template == expected


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "chat_template.jinja"
    if content is not None:
        file.write_bytes(content)
    reason = "No such file" if content is None else "not UTF-8"
    with pytest.raises(UserError, match=rf"model\.chat_template: cannot read .*{reason}.*a comment alone"):
        read_template(file)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for message in %}", "cannot be rendered"),
        (CHAT_TEMPLATE.replace("<|im_end|>", ""), "without a stop token"),
        (
            CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}"),
            "would not match generation",
        ),
    ],
)
def test_a_template_that_cannot_be_trained_with_names_its_key(template: str, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.chat_template: the chat template .*{sentence}"):
        set_template(tiny_tokenizer(), template)
    with pytest.raises(UserError, match=rf"^model\.source: the chat template .*{sentence}.*in model\.chat_template$"):
        set_template(tiny_tokenizer(template), "")
