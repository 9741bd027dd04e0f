"""Many prompts at once against one by one, for the kinds of layers and positions that small models have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_kinds import CAPPED, KINDS, SMALL, WORDS, model_of
from peft import LoraConfig, get_peft_model
from slow_greedy import one_by_one
from tiny_model import tiny_tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from stages.model import answers
from stages.model.answers import in_batches
from stages.model.likelihoods import Prefix
from stages.model.loading import bytes_a_token, causal_of, load_model
from stages.ship.merge_quantize.__main__ import quantise

PROMPTS = st.lists(st.lists(st.integers(3, WORDS - 1), min_size=1, max_size=24), min_size=1, max_size=12)
WITHOUT_GAPS = {"llama", "qwen3", "phi3", "granite with scaled logits", "gpt2 with learned positions"}


def answers_of(model: Any, prompts: list[list[int]], stop_id: int, limit: int, tokens: int) -> list[list[int]]:
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    said = in_batches(causal_of(model), [prompts[i] for i in order], stop_id, limit, tokens)
    by_index = {order[place]: ids for place, ids in said}
    return [by_index[index] for index in range(len(prompts))]


@pytest.mark.parametrize("common", [[], [9, 4, 30, 11, 7]])
@pytest.mark.parametrize("kind", [*KINDS, CAPPED])
def test_the_answers_are_those_of_one_by_one(kind: str, common: list[int]) -> None:
    model = model_of(kind)
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 3, 9, 9, 14, 20, 27, 5, 30, 2]
    prompts = [common + torch.randint(3, WORDS, (n,), generator=generator).tolist() for n in lengths]
    stop_id = one_by_one(model, prompts[0], -1, 8)[-1]
    slow = [one_by_one(model, prompt, stop_id, 20) for prompt in prompts]
    assert len({tuple(answer) for answer in slow}) > 3
    assert answers_of(model, prompts, stop_id, 20, 10_000) == slow
    assert answers_of(model, prompts, stop_id, 20, 170) == slow


@pytest.mark.parametrize("kind", [*KINDS, CAPPED])
def test_a_common_beginning_is_computed_once_where_that_is_right(kind: str) -> None:
    rows = [[3, 4, 5, 6], [3, 4, 7], [3, 4, 8, 9]]
    assert Prefix(model_of(kind), rows, gap=True).length == (2 if kind in WITHOUT_GAPS else 0)
    assert Prefix(model_of(kind), rows[:1], gap=True).length == 0


@settings(max_examples=15)
@given(
    kind=st.sampled_from(["llama", "gemma3 with windows and two rotary bases"]),
    prompts=PROMPTS,
    common=st.lists(st.integers(3, WORDS - 1), max_size=6),
    limit=st.integers(1, 20),
    stop_id=st.integers(0, WORDS - 1),
    tokens=st.integers(1, 400),
)
def test_no_prompt_batch_or_limit_changes_an_answer(
    kind: str, prompts: list[list[int]], common: list[int], limit: int, stop_id: int, tokens: int
) -> None:
    model = model_of(kind)
    prompts = [common + prompt for prompt in prompts]
    slow = [one_by_one(model, prompt, stop_id, limit) for prompt in prompts]
    assert answers_of(model, prompts, stop_id, limit, tokens) == slow


def test_an_adapter_counts() -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(KINDS["llama"], dtype=torch.float32)
    prompts = [[3, 4, 5], [6, 7], [8, 9, 10, 11]]
    before = [one_by_one(base.eval(), prompt, 2, 10) for prompt in prompts]
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    tuned.eval()
    slow = [one_by_one(tuned, prompt, 2, 10) for prompt in prompts]
    assert slow != before
    assert answers_of(tuned, prompts, 2, 10, 1000) == slow


@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_quantised_models_answer_alike(form: Any, tmp_path: Path) -> None:
    """INT8 finds its outlier columns over the whole batch, so that there a batch may change a text, but no run does."""
    torch.manual_seed(5)
    wide = LlamaConfig(**SMALL | {"hidden_size": 64, "intermediate_size": 128})  # a block of NF4 has 64 weights
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path / "whole")
    tiny_tokenizer().save_pretrained(tmp_path / "whole")
    quantise(tmp_path / "whole", tmp_path / form, form)
    model = load_model(tmp_path / form)
    prompts = [[5, 6, *range(7, 7 + n)] for n in (20, 17, 9, 5, 3, 1)]
    said = answers_of(model, prompts, 2, 12, 150)
    assert said == answers_of(model, prompts, 2, 12, 150)
    if form == "nf4":
        assert said == [one_by_one(model, prompt, 2, 12) for prompt in prompts]


def test_a_model_in_training_is_left_as_it_was() -> None:
    model = AutoModelForCausalLM.from_config(KINDS["llama"], dtype=torch.float32).eval()
    own = model.generation_config
    answers_of(model, [[3, 4], [5]], 2, 8, 1000)
    ids = torch.tensor([[3, 4]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.generation_config is own


def test_what_the_model_asks_of_its_own_generation_counts_for_nothing() -> None:
    model = AutoModelForCausalLM.from_config(KINDS["llama"], dtype=torch.float32).eval()
    prompts = [[3, 4, 5], [6, 7], [8, 9, 10, 11]]
    slow = [one_by_one(model, prompt, 2, 12) for prompt in prompts]
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        suppress_tokens=[slow[0][0]],
        forced_eos_token_id=7,
        eos_token_id=[slow[1][0], 2],
        min_new_tokens=12,
        num_beams=3,
    )
    assert answers_of(model, prompts, 2, 12, 1000) == slow


def test_a_batch_for_which_there_is_no_memory_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    prompts = [[3 + n, 4 + n, 5] for n in range(9)]
    slow = [one_by_one(model, prompt, 2, 6) for prompt in prompts]
    sizes, one_batch = [], answers._one_batch

    def small_card(causal: Any, batch: Any, *rest: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return one_batch(causal, batch, *rest)

    monkeypatch.setattr(answers, "_one_batch", small_card)
    assert answers_of(model, prompts, 2, 6, 1000) == slow
    assert sizes == [9, 4, 2, 2, 2, 2, 1]
    monkeypatch.setattr(answers, "_one_batch", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError):
        answers_of(model, prompts, 2, 6, 1000)


def test_memory_of_a_token_is_that_of_the_cache() -> None:
    model = model_of("gemma3 with windows and two rotary bases")
    cache = model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=True).past_key_values
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) == 3 * bytes_a_token(model)
