"""Many prompts at once against one by one, for the kinds of layers that small models have."""

from collections.abc import Callable
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
from transformers import AutoModelForCausalLM, LlamaConfig

from stages.model.generation import lockstep
from stages.model.generation.graphs import Graphs
from stages.model.generation.greedy import Greedy
from stages.model.generation.slots import bytes_a_token, fits
from stages.model.loading import causal_of, load_model
from stages.ship.merge_quantize.artefacts import quantise

PROMPTS = st.lists(st.lists(st.integers(3, WORDS - 1), min_size=1, max_size=24), min_size=1, max_size=12)


class AsItIs(Graphs):
    """Runs each step, where the machine has no graphs to record."""

    def __init__(self, step: Callable[[int, int], None]) -> None:
        self._step = step

    def run(self, rows: int, width: int) -> None:
        self._step(rows, width)


def answers_of(model: Any, prompts: list[list[int]], stop_id: int, limit: int, batch_tokens: Any) -> list[list[int]]:
    said = dict(Greedy(causal_of(model), prompts, stop_id, limit, batch_tokens).answers())
    return [said[index] for index in range(len(prompts))]


@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_are_those_of_one_by_one(kind: str) -> None:
    model = model_of(kind)
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 3, 9, 9, 14, 20, 27, 5, 30, 2]
    prompts = [torch.randint(3, WORDS, (n,), generator=generator).tolist() for n in lengths]
    attention = model.config._attn_implementation
    stop_id = one_by_one(model, prompts[0], -1, 8)[-1]
    slow = [one_by_one(model, prompt, stop_id, 16) for prompt in prompts]
    assert len({tuple(answer) for answer in slow}) > 5
    assert len({len(answer) for answer in slow}) > 1
    assert fits(model)
    assert answers_of(model, prompts, stop_id, 16, "auto") == slow
    assert answers_of(model, prompts, stop_id, 16, 150) == slow  # three slots: rows wait, leave, move and are replaced
    assert model.config._attn_implementation == attention


@settings(max_examples=40)
@given(
    prompts=PROMPTS,
    common=st.lists(st.integers(3, WORDS - 1), max_size=6),
    limit=st.integers(1, 12),
    stop_id=st.integers(0, WORDS - 1),
    batch_tokens=st.integers(1, 400),
)
def test_no_prompt_batch_or_limit_changes_an_answer(
    prompts: list[list[int]], common: list[int], limit: int, stop_id: int, batch_tokens: int
) -> None:
    model = model_of("gemma3 with windows and two rotary bases")
    prompts = [common + prompt for prompt in prompts]
    slow = [one_by_one(model, prompt, stop_id, limit) for prompt in prompts]
    assert answers_of(model, prompts, stop_id, limit, batch_tokens) == slow


@settings(max_examples=40)
@given(prompts=PROMPTS, limit=st.integers(1, 12), stop_id=st.integers(0, WORDS - 1), batch_tokens=st.integers(1, 400))
def test_some_tokens_at_a_time_in_fixed_sizes_are_the_same(
    prompts: list[list[int]], limit: int, stop_id: int, batch_tokens: int
) -> None:
    """As on a card, where slots that are not in use are computed too, and rows that ended wait for the others."""
    model = model_of("gemma3 with windows and two rotary bases")
    greedy = Greedy(model, prompts, stop_id, limit, batch_tokens)
    greedy._graphs = AsItIs(greedy._advance)
    said = dict(greedy.answers())
    assert [said[i] for i in range(len(prompts))] == [one_by_one(model, prompt, stop_id, limit) for prompt in prompts]


def test_an_adapter_counts() -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(KINDS["llama"], dtype=torch.float32)
    prompts = [[3, 4, 5], [6, 7], [8, 9, 10, 11]]
    before = [one_by_one(base.eval(), prompt, 2, 10) for prompt in prompts]
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    tuned.eval()
    slow = [one_by_one(tuned, prompt, 2, 10) for prompt in prompts]
    assert slow != before
    assert answers_of(tuned, prompts, 2, 10, "auto") == slow


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
    for _ in Greedy(model, [[3, 4], [5]], 2, 8, "auto").answers():
        pass
    ids = torch.tensor([[3, 4]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.config._attn_implementation == "sdpa"


def test_other_layers_are_left_to_transformers() -> None:
    capped = model_of(CAPPED)
    assert not fits(capped)
    prompts = [[3, 4, 5, 6], [6, 7], [8]]
    said = dict(lockstep.answers(capped, prompts, 2, 6))
    for index, prompt in enumerate(prompts):
        slow = one_by_one(capped, prompt, 2, 6)
        assert said[index][: len(slow)] == slow


def test_memory_of_a_token_is_that_of_the_cache() -> None:
    model = model_of("gemma3 with windows and two rotary bases")
    greedy = Greedy(model, [[3, 4, 5]], 2, 4, "auto")
    list(greedy.answers())
    stores = [store for pair in greedy._slots._layers.values() for store in pair]
    assert sum(store.nbytes for store in stores) == 7 * bytes_a_token(model)
