"""A beginning that rows share is computed once, and nothing else changes by it."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from project import TINY_TRAINING
from tiny_model import SMALL, tiny_tokenizer
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig, MixtralConfig, Qwen3Config

from stages.params.model import Train
from stages.tune.train.adapters import with_adapter
from stages.tune.train.completion_trainer import with_prefix_once
from stages.tune.train.engine import build_trainer
from stages.tune.train.examples import Examples

CONFIGS = {
    "llama": (LlamaConfig(**SMALL), True),
    "qwen": (Qwen3Config(**SMALL), True),
    "a window in some layers": (
        Gemma3TextConfig(**SMALL, sliding_window=16, layer_types=["sliding_attention", "full_attention"]),
        False,
    ),
    "a window in all layers": (MistralConfig(**SMALL, sliding_window=16), False),
    "experts": (MixtralConfig(**SMALL, num_local_experts=4, sliding_window=None), True),
}
# A few tokens, so that rows often begin alike.
ROWS = st.lists(
    st.tuples(st.lists(st.integers(1, 2), min_size=1, max_size=6), st.lists(st.integers(1, 2), max_size=3)),
    min_size=2,
    max_size=5,
)


@given(ROWS, st.lists(st.integers(3, 4), max_size=4))
@settings(deadline=None)
def test_each_row_sees_the_beginning_and_itself(rows: list[tuple[list[int], list[int]]], beginning: list[int]) -> None:
    """Against rows one by one: a token stands for that of a row, and sees what it saw there, no more and no less."""
    whole = [([*beginning, *prompt], completion) for prompt, completion in rows]
    inputs = {
        "input_ids": torch.tensor([[token for p, c in whole for token in p + c]]),
        "position_ids": torch.tensor([[place for p, c in whole for place in range(len(p + c))]]),
        "labels": torch.tensor([[label for p, c in whole for label in [-100] * len(p) + c]]),
    }
    found, seen = with_prefix_once(inputs)
    prompts = [prompt for prompt, _ in whole]
    length = 0
    while length < min(map(len, prompts)) - 1 and len({prompt[length] for prompt in prompts}) == 1:
        length += 1
    assert (seen is None) == (length == 0)
    if seen is None:
        assert found == inputs
        return
    assert found["input_ids"].shape[1] == inputs["input_ids"].shape[1] - (len(rows) - 1) * length
    ids, places, labels = (found[name][0].tolist() for name in ("input_ids", "position_ids", "labels"))
    at = length
    for prompt, completion in whole:
        row = prompt + completion
        for place in range(length, len(row)):
            keys = seen[0, 0, at].nonzero().flatten().tolist()
            assert [ids[key] for key in keys] == row[: place + 1]
            assert [places[key] for key in keys] == [*range(place + 1)]
            assert labels[at] == (row[place] if place >= len(prompt) else -100)
            at += 1
    assert at == len(ids)


def trainer_of(kind: str, folder: Path, **settings: Any) -> Any:
    recipe = Train(**(TINY_TRAINING | {"batch_size": 8, "early_stopping_patience": None} | settings))
    torch.manual_seed(0)
    dtype = torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32
    base = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[kind][0]), dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    sizes, instruction = [31 + 7 * row % 40 for row in range(12)], [7] * 20
    ids = [instruction + torch.randint(0, 258, (size,), generator=generator).tolist() for size in sizes]
    rows = Examples(ids, [[0] * 30 + [1] * (len(one) - 30) for one in ids])
    return build_trainer("trl", with_adapter(base, recipe, 1, 10), recipe, 1, tiny_tokenizer(), rows, rows, folder, [])


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("training", [True, False])
def test_loss_and_gradients_are_those_of_whole_rows(kind: str, training: bool, tmp_path: Path) -> None:
    trainer, found, sizes = trainer_of(kind, tmp_path), [], []
    assert trainer._shares == CONFIGS[kind][1]
    trainer.model.train(training)
    embedding = trainer.model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, arguments, output: sizes.append(output.shape[1]))
    batch = next(iter(trainer.get_train_dataloader()))
    count = (batch["labels"][:, 1:] != -100).sum()
    for shares in (trainer._shares, False):
        trainer._shares = shares
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
        loss.backward()
        gradients = [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
        found.append([loss.detach(), *gradients])
    rows = int((batch["position_ids"] == 0).sum())
    assert rows > 1
    shared = 20 if CONFIGS[kind][1] else 0
    assert sizes[1] - sizes[0] == (rows - 1) * shared
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("adapter", ["lora", "dora", "adalora"])
def test_in_bfloat16_what_enters_an_adapter_is_not_cast_there_and_back(adapter: str, tmp_path: Path) -> None:
    """Loss and gradients are the same to the bit. A model that is asked without autocast answers, before and after."""
    trainer = trainer_of("llama", tmp_path, adapter=adapter, precision="bfloat16")
    trainer.current_gradient_accumulation_steps = 1  # as `train` sets it
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.02)
    batch = next(iter(trainer.get_train_dataloader()))
    count = (batch["labels"][:, 1:] != -100).sum()
    ids = batch["input_ids"][:, :9]
    before = trainer.model(input_ids=ids).logits
    prepared, found, adapted = trainer.accelerator.prepare(trainer.model), [], trainer._adapted
    for trainer._adapted in (adapted, []):
        prepared.zero_grad()
        for layer in adapted:
            layer.cast_input_dtype_enabled = True
        loss = trainer.compute_loss(prepared, dict(batch), num_items_in_batch=count)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in prepared.parameters() if p.grad is not None)])
        if adapter != "dora":
            assert adapted
            assert {layer.cast_input_dtype_enabled for layer in adapted} == {not trainer._adapted}
    assert len(found[0]) > 1
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    trainer._adapted = adapted
    unprepared = trainer.accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert torch.equal(unprepared(input_ids=ids).logits, before)
