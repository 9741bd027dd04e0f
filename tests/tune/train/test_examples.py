from collections import Counter
from itertools import chain, compress

from hypothesis import given
from hypothesis import strategies as st
from tiny_model import tiny_tokenizer

from stages.model.chat import make_chat
from stages.records.record import make_record
from stages.tune.train.examples import (
    Examples,
    SeededBatches,
    make_examples,
    optimiser_steps,
)

CHAT = make_chat(tiny_tokenizer(), "Answer in JSON.")


def record(prompt: str, completion: str, source: str = "tickets"):  # type: ignore[no-untyped-def]
    return make_record(prompt, completion, None, source, f"{source}:1")


def test_the_loss_sees_the_completion_and_the_stop_token_alone() -> None:
    examples = make_examples(CHAT, [record("hello", '{"a": 1}')], max_tokens=400)
    trained = list(compress(examples.input_ids[0], examples.completion_mask[0]))
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
    assert (len(examples), len(examples.left_out)) == (1, 1)


def test_replay_rows_are_asked_without_the_instruction() -> None:
    with_it = make_examples(CHAT, [record("hello", "hi")], max_tokens=400)
    without = make_examples(CHAT, [record("hello", "hi", source="augment:replay")], max_tokens=400)
    assert "Answer in JSON." in CHAT.tokenizer.decode(with_it.input_ids[0])
    assert "Answer in JSON." not in CHAT.tokenizer.decode(without.input_ids[0])


@given(rows=st.integers(1, 12), batch_size=st.integers(1, 14), epochs=st.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_every_epoch_takes_every_row_once_in_full_batches(rows: int, batch_size: int, epochs: float) -> None:
    lengths = [3 + row % 5 for row in range(rows)]
    steps = optimiser_steps(rows, batch_size, epochs)
    batches = SeededBatches(lengths, batch_size, steps, 7)
    made = list(batches)
    assert len(made) == len(batches) == steps
    assert made == list(batches), "a run that goes on has the batches that it would have had"
    assert all(len(batch) == min(batch_size, rows) for batch in made)
    taken = Counter(chain.from_iterable(made))
    assert min(taken[row] for row in range(rows)) >= int(epochs)
    assert max(taken.values()) <= epochs + 2
    assert sum(taken.values()) - rows * epochs < batch_size
    for batch in made:
        assert [lengths[row] for row in batch] == sorted((lengths[row] for row in batch), reverse=True)


def test_each_epoch_has_its_own_order() -> None:
    first, second = SeededBatches([1] * 30, 30, 2, 7)
    assert list(SeededBatches([1] * 30, 10, 3, 7)) == [sorted(part) for part in SeededBatches([1] * 30, 10, 3, 7)]
    orders = [list(SeededBatches([1] * 30, 1, 60, seed)) for seed in (7, 8)]
    assert orders[0][:30] != orders[0][30:]
    assert orders[0] != orders[1]
    assert first == second == list(range(30))


@given(rows=st.integers(1, 9), multiple=st.integers(1, 5))
def test_rows_that_fill_up_a_batch_add_nothing_to_the_loss(rows: int, multiple: int) -> None:
    examples = Examples([[5] * (2 + row) for row in range(rows)], [[0] * (1 + row) + [1] for row in range(rows)])
    filled = examples.filled_up(multiple)
    assert len(filled) % multiple == 0
    assert len(filled) - rows < multiple
    assert filled.trained_tokens == examples.trained_tokens
    assert Counter(map(tuple, filled.input_ids[:rows])) == Counter(map(tuple, examples.input_ids))
