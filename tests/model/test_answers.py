"""Answers and likelihoods against the slow way: one prompt at a time."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from slow_greedy import one_by_one
from tiny_model import save_tiny_model

from stages.core.errors import Refusal
from stages.model import answers
from stages.model.answers import answer, answer_rows, rows_with_likelihood
from stages.model.chat import Chat, make_chat
from stages.model.likelihoods import Likelihood, likelihoods, with_likelihood
from stages.model.loading import load_model, load_tokenizer
from stages.params.model import Generation
from stages.records.record import Message, make_record

PROMPTS = ["a", "a much longer prompt than the first", "", "middle of the road", "ünïcödé 漢字", "b", "a"]
RECORDS = [make_record(prompt, "{}", None, "s", "s:1") for prompt in PROMPTS]
RECORDS.append(make_record("b", "{}", None, "s", "s:1", context=[Message("user", "a"), Message("assistant", "b")]))
PAIRS = [("x", "yes"), ("a longer one", '{"a": 1}'), ("z", "")]


SETTINGS = Generation(max_new_tokens=12)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Chat]:
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny"), seed=3)
    return load_model(folder, dtype=torch.float32), make_chat(load_tokenizer(folder), "Say something.")


@pytest.mark.parametrize("batch_tokens", [1, 400, "auto"])
def test_batches_give_the_answers_of_one_by_one(
    tiny: tuple[Any, Chat], batch_tokens: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, chat = tiny
    monkeypatch.setenv("TUNETRAIL_GENERATION_TOKENS", str(batch_tokens))
    answers = answer(model, chat, RECORDS, SETTINGS, "test")
    for record, said in zip(RECORDS, answers, strict=True):
        slow = one_by_one(model, chat.prompt_ids(record), chat.stop_id, 12)
        assert said.tokens == len(slow)
        assert said.stopped == (slow[-1] == chat.stop_id)
        assert said.output == chat.text(slow)


def test_an_answer_ends_at_the_stop_token(tiny: tuple[Any, Chat]) -> None:
    model, chat = tiny
    prompt = chat.prompt_ids(RECORDS[0])
    second = one_by_one(model, prompt, chat.stop_id, 2)[1]
    stopping = Chat(chat.tokenizer, chat.instruction, second, chat.takes_system)
    said = answer(model, stopping, RECORDS[:1], SETTINGS, "test")[0]
    slow = one_by_one(model, prompt, second, 12)
    assert said.stopped
    assert said.tokens == len(slow)
    assert said.output == chat.text(slow[:-1])


def test_rows_stand_in_the_order_of_the_records(tiny: tuple[Any, Chat]) -> None:
    rows = answer_rows(*tiny, RECORDS, SETTINGS, "test")
    assert [row["id"] for row in rows] == [record.id for record in RECORDS]
    turned = answer_rows(*tiny, RECORDS[::-1], SETTINGS, "test")
    assert turned[::-1] == rows


def test_no_record_is_no_answer(tiny: tuple[Any, Chat]) -> None:
    assert answer(*tiny, [], SETTINGS, "test") == []


def test_likelihood_is_that_of_the_completion_tokens(tiny: tuple[Any, Chat]) -> None:
    model, chat = tiny
    records = [make_record(prompt, completion, None, "s", "s:1") for prompt, completion in PAIRS]
    for record, found in zip(records, likelihoods(model, chat, records), strict=True):
        ids, nats, agreed = chat.prompt_ids(record), 0.0, 0
        for token in chat.completion_ids(record.completion):
            with torch.inference_mode():
                logits = model(torch.tensor([ids], device=model.device)).logits[0, -1]
            nats -= logits.double().log_softmax(-1)[token].item()
            agreed += int(logits.argmax()) == token
            ids = [*ids, token]
        assert found.agreed == agreed
        assert found.tokens == len(chat.completion_ids(record.completion))
        assert found.nats == pytest.approx(nats, rel=1e-4)


def test_the_greedy_answer_agrees_in_every_token(tiny: tuple[Any, Chat]) -> None:
    model, chat = tiny
    ids = one_by_one(model, chat.prompt_ids(RECORDS[0]), chat.stop_id, 6)
    # The tokens themselves stand for the completion: not every answer of a random model survives as text.
    spoken = SimpleNamespace(prompt_ids=chat.prompt_ids, completion_ids=lambda _: ids, stop_id=chat.stop_id)
    found = likelihoods(model, spoken, RECORDS[:1])[0]  # type: ignore[arg-type]
    assert (found.agreed, found.tokens) == (len(ids), len(ids))


def test_a_reference_that_the_model_would_say_is_not_generated(
    tiny: tuple[Any, Chat], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other reference is what the model says, token for token: the rows are those of asking for all."""
    model, chat = tiny
    records = [make_record(prompt, str(n), None, "s", "s:1") for n, prompt in enumerate(dict.fromkeys(PROMPTS))]
    greedy = [one_by_one(model, chat.prompt_ids(record), chat.stop_id, SETTINGS.max_new_tokens) for record in records]
    ids = {str(n): said if n % 2 else [*said[:-1], said[-1] ^ 1, 5] for n, said in enumerate(greedy)}
    spoken: Any = SimpleNamespace(
        prompt_ids=chat.prompt_ids, completion_ids=ids.__getitem__, stop_id=chat.stop_id, text=chat.text
    )
    slow = with_likelihood(answer_rows(model, spoken, records, SETTINGS, "all"), likelihoods(model, spoken, records))
    asked: list[list[int]] = []

    def watched(causal: Any, prompts: list[list[int]], *rest: Any) -> Any:
        asked.extend(prompts)
        return in_batches(causal, prompts, *rest)

    in_batches = answers.in_batches
    monkeypatch.setattr(answers, "in_batches", watched)
    assert rows_with_likelihood(model, spoken, records, SETTINGS, "some") == slow
    assert sorted(asked) == sorted(chat.prompt_ids(record) for n, record in enumerate(records) if n % 2 == 0)
    short = Generation(max_new_tokens=1)
    cut = rows_with_likelihood(model, spoken, records, short, "cut")
    assert [row["output"] for row in cut] == [
        row["output"] for row in answer_rows(model, spoken, records, short, "cut")
    ]


def test_rows_are_widened_in_order() -> None:
    rows = with_likelihood([{"id": "a"}, {"id": "b"}], [Likelihood(1.5, 3, 1), Likelihood(2.5, 4, 4)])
    assert rows == [{"id": "a", "nats": 1.5, "reference_tokens": 3}, {"id": "b", "nats": 2.5, "reference_tokens": 4}]


def test_a_tag_stays_with_its_answer(tiny: tuple[Any, Chat]) -> None:
    tagged = make_record("a", "{}", None, "s", "s:1", task="tone")
    rows = answer_rows(*tiny, [RECORDS[0], tagged], SETTINGS, "test")
    assert [row.get("task", "none") for row in rows] == ["none", "tone"]


@pytest.mark.parametrize("module", ["_TOKENS_AT_ONCE", "_LOGITS_AT_ONCE"])
def test_small_batches_change_no_likelihood(
    tiny: tuple[Any, Chat], module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [make_record(prompt, completion, None, "s", "s:1") for prompt, completion in PAIRS]
    whole = likelihoods(*tiny, records)
    small = {"cpu": 1, "cuda": 1} if module == "_TOKENS_AT_ONCE" else 1
    monkeypatch.setattr(f"stages.model.likelihoods.{module}", small)
    for a, b in zip(whole, likelihoods(*tiny, records), strict=True):
        assert a.nats == pytest.approx(b.nats, rel=1e-5)


def test_a_model_that_computes_nan_is_refused(tmp_path: Any) -> None:
    folder = save_tiny_model(tmp_path / "broken", seed=3)
    model, chat = load_model(folder, dtype=torch.float32), make_chat(load_tokenizer(folder), "")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(Refusal, match="must not be used"):
        likelihoods(model, chat, [make_record("x", "yes", None, "s", "s:1")])
