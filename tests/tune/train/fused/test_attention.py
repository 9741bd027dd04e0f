"""A packed row gives each example the outputs and the gradients that it has alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import create_sliding_window_causal_mask

from stages.tune.train.fused.attention import SEGMENTS, can_pack, segments
from stages.tune.train.fused.batches import MicroBatch, Row, pack

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL)).eval()


def gemma(window: int = 5) -> Any:
    torch.manual_seed(0)
    config = Gemma3TextConfig(**SMALL, sliding_window=window, layer_types=LAYERS, query_pre_attn_scalar=8)
    return Gemma3ForCausalLM(config).eval()


WEIGHTS = torch.randn(32, generator=torch.Generator().manual_seed(0))
MODELS = {"llama": llama(), "gemma": gemma()}


def row(length: int, seed: int) -> Row:
    ids = torch.randint(0, 50, (length,), generator=torch.Generator().manual_seed(seed))
    return Row(ids, torch.arange(length - 1), ids[1:])


def hidden(model: Any, batch: MicroBatch) -> torch.Tensor:
    model.set_attn_implementation(SEGMENTS)
    out = model.base_model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False, segment_ends=batch.ends)
    result: torch.Tensor = out.last_hidden_state
    return result


def alone(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The oracle: transformers' own eager attention over one example."""
    model.set_attn_implementation("eager")
    result: torch.Tensor = model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    return result


@pytest.mark.parametrize("name", MODELS)
@given(lengths=st.lists(st.integers(2, 24), min_size=1, max_size=5), width=st.integers(0, 90))
@settings(max_examples=15, deadline=None)
def test_examples_of_a_packed_row_never_see_each_other(name: str, lengths: list[int], width: int) -> None:
    model = MODELS[name]
    rows = [row(length, seed) for seed, length in enumerate(lengths)]
    packed, start = hidden(model, pack(rows, width))[0], 0
    for one in rows:
        torch.testing.assert_close(packed[start : start + len(one)], alone(model, one.ids), rtol=1e-4, atol=1e-5)
        start += len(one)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_sum_of_those_of_each_example(name: str) -> None:
    model = MODELS[name]
    rows = [row(length, seed) for seed, length in enumerate((3, 17, 9))]

    def gradients() -> list[torch.Tensor]:
        found = [parameter.grad for parameter in model.base_model.parameters()]
        model.zero_grad()
        return found

    batch = pack(rows, 40)
    (hidden(model, batch).flatten(0, 1)[batch.predictors] @ WEIGHTS).sum().backward()  # type: ignore[no-untyped-call]
    together = gradients()
    for one in rows:
        (alone(model, one.ids)[one.predictors] @ WEIGHTS).sum().backward()  # type: ignore[no-untyped-call]
    for ours, theirs in zip(together, gradients(), strict=True):
        assert ours.isfinite().all()
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def test_no_position_is_without_a_key_as_padding_at_the_right_of_a_window_leaves_it() -> None:
    """transformers' mask for padded rows has such positions; their gradients are not numbers in some kernels."""
    model, rows = MODELS["gemma"], [row(20, 0), row(6, 1)]
    real = torch.arange(20) < torch.tensor([[20], [6]])
    inputs = {"inputs_embeds": torch.zeros(2, 20, 32), "attention_mask": real.long(), "past_key_values": None}
    model.set_attn_implementation("sdpa")
    positions = torch.arange(20)[None]
    theirs = create_sliding_window_causal_mask(config=model.config, **inputs, position_ids=positions)
    assert not theirs[1, 0].any(-1).all(), "then this test is no longer needed"
    hidden(model, pack(rows, 60)).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad.isfinite().all() for parameter in model.base_model.parameters())
    model.zero_grad()


def test_a_window_is_the_token_itself_and_those_before_it() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 7, 4).unbind()
    ours, _ = segments(None, query, key, value, None, sliding_window=3, segment_ends=[7])
    scores = query @ key.transpose(-1, -2) / 2
    for here in range(7):
        seen = slice(max(0, here - 2), here + 1)
        by_hand = scores[0, :, here, seen].softmax(-1)[:, None] @ value[0, :, seen]
        torch.testing.assert_close(ours[0, here], by_hand[:, 0])


def test_models_with_other_attention_are_not_packed() -> None:
    assert can_pack(LlamaConfig()) is None
    assert can_pack(gemma().config) is None
    assert "linear_attention" in str(can_pack(LlamaConfig(layer_types=["full_attention", "linear_attention"] * 16)))
    assert can_pack(LlamaConfig(attn_logit_softcapping=50.0)) == "capped attention scores"
