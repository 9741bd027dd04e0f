"""A run whose numbers are none ends at once, and says why where it can."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from stages.core.errors import Refusal
from stages.tune.train.callbacks import StopsAtNaN

AT = SimpleNamespace(global_step=5, max_steps=40)


def gemma(padding: int | None) -> Any:
    """As deep as Gemma-3-1B and narrow. transformers sets the embedding of the padding token to zero."""
    config = Gemma3TextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=26, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, pad_token_id=padding,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


@pytest.mark.parametrize(("padding", "first", "finite"), [(0, 0, False), (0, 7, True), (None, 0, True)])
def test_gradients_overflow_at_a_token_whose_embedding_is_zero(padding: int | None, first: int, finite: bool) -> None:
    model = gemma(padding)
    ids = torch.tensor([[first, *range(2, 40)]])
    model(input_ids=ids, labels=ids).loss.backward()
    norms = [p.grad.norm() for name, p in model.named_parameters() if "layers.0." in name and p.grad is not None]
    assert norms
    assert all(norm.isfinite() for norm in norms) == finite


def test_it_says_which_token_that_is() -> None:
    with pytest.raises(Refusal, match=r"step 5 of 40: grad_norm is nan\. .*embedding is zero.*\[0\]"):
        StopsAtNaN([[0, 3, 4]]).on_log(None, AT, None, {"loss": 5.0, "grad_norm": float("nan")}, gemma(0))


@pytest.mark.parametrize("name", ["loss", "grad_norm", "eval_loss"])
def test_other_causes_get_advice(name: str) -> None:
    with pytest.raises(Refusal, match=rf"{name} is inf\. Try a lower train\.learning_rate"):
        StopsAtNaN([[2, 3, 4]]).on_log(None, AT, None, {name: float("inf")}, gemma(0))


def test_numbers_pass() -> None:
    logs = {"loss": 5.0, "grad_norm": 0.0, "learning_rate": 1e-3, "epoch": 1.0}
    StopsAtNaN([[0, 1, 2]]).on_log(None, AT, None, logs, gemma(0))
    StopsAtNaN([[0, 1, 2]]).on_log(None, AT, None, None, gemma(0))
