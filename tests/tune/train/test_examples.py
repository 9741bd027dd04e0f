import pytest
from tiny_model import tiny_tokenizer

from stages.core.errors import UserError
from stages.model.chat import make_chat
from stages.records.record import make_record
from stages.tune.train.examples import IGNORED, assert_stop_token_trained, make_examples

CHAT = make_chat(tiny_tokenizer(), "Answer in JSON.")


def record(prompt: str, completion: str, source: str = "tickets"):  # type: ignore[no-untyped-def]
    return make_record(prompt, completion, None, source, f"{source}:1")


def test_the_loss_sees_the_completion_and_the_stop_token_alone() -> None:
    examples = make_examples(CHAT, [record("hello", '{"a": 1}')], max_tokens=400)
    trained = [label for label in examples.labels[0] if label != IGNORED]
    assert trained == CHAT.completion_ids('{"a": 1}')
    assert trained[-1] == CHAT.stop_id
    assert CHAT.text(trained) == '{"a": 1}'
    assert examples.trained_tokens == len(trained)
    assert examples.tokens == len(examples.input_ids[0])


def test_training_and_generation_show_the_model_the_same_prompt() -> None:
    row = record("hello", "{}")
    examples = make_examples(CHAT, [row], max_tokens=400)
    assert examples.input_ids[0] == CHAT.prompt_ids(row) + CHAT.completion_ids("{}")


def test_long_rows_are_left_out_and_counted_not_cut() -> None:
    rows = [record("short", "{}"), record("long " * 200, "{}")]
    examples = make_examples(CHAT, rows, max_tokens=200)
    assert (len(examples), examples.too_long) == (1, 1)


def test_replay_rows_are_asked_without_the_instruction() -> None:
    with_it = make_examples(CHAT, [record("hello", "hi")], max_tokens=400)
    without = make_examples(CHAT, [record("hello", "hi", source="augment:replay")], max_tokens=400)
    assert "Answer in JSON." in CHAT.tokenizer.decode(with_it.input_ids[0])
    assert "Answer in JSON." not in CHAT.tokenizer.decode(without.input_ids[0])


def test_rows_that_do_not_teach_to_stop_are_refused() -> None:
    examples = make_examples(CHAT, [record("hello", "{}"), record("hello you", "{}")], max_tokens=400)
    assert_stop_token_trained(examples, CHAT.stop_id)
    examples.labels[1][-1] = IGNORED  # as a collator does that masks by the padding token, where that is the stop token
    with pytest.raises(UserError, match="never learn to stop"):
        assert_stop_token_trained(examples, CHAT.stop_id)
