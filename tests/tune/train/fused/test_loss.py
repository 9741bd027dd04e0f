"""The loss by chunks is the model's own, with its gradients, for every kind of head."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from stages.tune.train.fused import batches
from stages.tune.train.fused.batches import Head, completion_loss

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def model(kind: str) -> Any:
    torch.manual_seed(0)
    made = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=0.5)),
        "cohere": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
        "granite": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3.0)),
    }
    return made[kind]().eval()


def as_the_kernel_does(logits: Any, targets: Any, count: Any, unseen: int) -> Any:
    """By its documentation: the loss; the logits become what goes back to them."""
    with torch.enable_grad():
        given = logits.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(given, targets, ignore_index=unseen, reduction="sum") / count
        logits.copy_(torch.autograd.grad(loss, given)[0])
    return loss.detach()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere", "granite"])
@pytest.mark.parametrize("at_once", [1, 40 * 16])
@pytest.mark.parametrize("kernel", [None, as_the_kernel_does])
def test_loss_and_gradients_are_those_of_the_whole_model(
    kind: str, at_once: int, kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_LOGITS_AT_ONCE", at_once)
    causal = model(kind)
    ids = torch.randint(0, 40, (1, 40))
    predictors = torch.arange(3, 39)
    logits = causal(input_ids=ids).logits[0, predictors]
    expected = torch.nn.functional.cross_entropy(logits, ids[0, predictors + 1], reduction="sum") / 50
    expected.backward()  # type: ignore[no-untyped-call]
    theirs = {name: p.grad for name, p in causal.named_parameters() if p.grad is not None}
    causal.zero_grad()

    hidden = causal.base_model(input_ids=ids).last_hidden_state
    flat, gradient = hidden.detach()[0], torch.full_like(hidden[0], float("nan"))
    ours = completion_loss(flat, predictors, ids[0, predictors + 1], Head(causal, kernel), 50, gradient)
    hidden.backward(gradient[None])
    torch.testing.assert_close(ours, expected.detach())
    torch.testing.assert_close(completion_loss(flat, predictors, ids[0, predictors + 1], Head(causal), 50), ours)
    for name, parameter in causal.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name], rtol=1e-4, atol=1e-6)


@given(positions=st.lists(st.integers(0, 9), unique=True), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_loss_is_the_sum_of_surprises_over_the_count(positions: list[int], seed: int) -> None:
    causal, generator = model("llama"), torch.Generator().manual_seed(seed)
    hidden = torch.randn(10, 16, generator=generator)
    targets = torch.randint(0, 40, (len(positions),), generator=generator)
    surprises = [
        -causal.lm_head(hidden[position]).log_softmax(-1)[target]
        for position, target in zip(positions, targets, strict=True)
    ]
    expected = sum(surprises, torch.zeros(())) / 7
    found = completion_loss(hidden, torch.tensor(positions, dtype=torch.long), targets, Head(causal), 7)
    torch.testing.assert_close(
        found, expected.detach() if torch.is_tensor(expected) else expected, rtol=1e-4, atol=1e-5
    )
