"""Batched answers and perplexity against the slow way: one prompt at a time."""

import math
from typing import Any

import pytest
import torch
from tiny_model import save_tiny_model

from stages.chat import Chat, make_chat
from stages.errors import Refusal
from stages.generation import answer, perplexity
from stages.models import load_model, load_tokenizer
from stages.params import Generation
from stages.records import Message, Record, make_record

PROMPTS = ["a", "a much longer prompt than the first", "", "middle of the road", "ünïcödé 漢字", "b"]
RECORDS = [make_record(prompt, "{}", None, "s", "s:1") for prompt in PROMPTS]
RECORDS.append(make_record("b", "{}", None, "s", "s:1", context=[Message("user", "a"), Message("assistant", "b")]))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Chat]:
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny"), seed=3)
    return load_model(folder, dtype=torch.float32), make_chat(load_tokenizer(folder), "Say something.")


def one_by_one(model: Any, chat: Chat, record: Record, limit: int) -> list[int]:
    """Greedy decoding by its definition: the likeliest token, again and again, without a cache."""
    ids = chat.prompt_ids(record)
    said: list[int] = []
    while len(said) < limit and (not said or said[-1] != chat.stop_id):
        with torch.inference_mode():
            said.append(int(model(torch.tensor([ids + said], device=model.device)).logits[0, -1].argmax()))
    return said


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_batches_give_the_answers_of_one_by_one(tiny: tuple[Any, Chat], batch_size: int) -> None:
    model, chat = tiny
    answers = answer(model, chat, RECORDS, Generation(max_new_tokens=12, batch_size=batch_size), "test")
    for record, said in zip(RECORDS, answers, strict=True):
        slow = one_by_one(model, chat, record, 12)
        assert said.tokens == len(slow)
        assert said.stopped == (slow[-1] == chat.stop_id)
        assert said.output == chat.text(slow)


def test_an_answer_ends_at_the_stop_token(tiny: tuple[Any, Chat]) -> None:
    model, chat = tiny
    second = one_by_one(model, chat, RECORDS[0], 2)[1]
    stopping = Chat(chat.tokenizer, chat.instruction, second, chat.takes_system)
    said = answer(model, stopping, RECORDS[:1], Generation(max_new_tokens=12, batch_size=1), "test")[0]
    slow = one_by_one(model, stopping, RECORDS[0], 12)
    assert said.stopped
    assert said.tokens == len(slow)
    assert said.output == chat.text(slow[:-1])


def test_perplexity_is_that_of_the_completion_tokens(tiny: tuple[Any, Chat]) -> None:
    model, chat = tiny
    records = [make_record(p, c, None, "s", "s:1") for p, c in [("x", "yes"), ("a longer one", '{"a": 1}'), ("z", "")]]
    total, count = 0.0, 0
    for record in records:
        ids, completion = chat.prompt_ids(record), chat.completion_ids(record.completion)
        for token in completion:
            with torch.inference_mode():
                total -= (
                    model(torch.tensor([ids], device=model.device)).logits[0, -1].double().log_softmax(-1)[token].item()
                )
            ids, count = [*ids, token], count + 1
    for batch_size in (1, 3):
        assert perplexity(model, chat, records, batch_size) == pytest.approx(math.exp(total / count), rel=1e-4)


def test_a_model_that_computes_nan_is_refused(tiny: tuple[Any, Chat]) -> None:
    model, chat = tiny

    class Broken(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, **inputs: Any) -> Any:
            out = model(**inputs)
            out.logits[:] = float("nan")
            return out

    with pytest.raises(Refusal, match="must not be used"):
        perplexity(Broken(), chat, [make_record("x", "yes", None, "s", "s:1")], 1)
