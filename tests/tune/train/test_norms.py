"""The fused norm computes what the model's own does, in 16 and in 32 bit, and other kinds are left alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

from stages.params import Train, read_params
from stages.tune.train.norms import fuse_norms
from stages.tune.train.trainer import with_adapter

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
KINDS = {"llama": (LlamaConfig, 5), "gemma": (Gemma3TextConfig, 13), "qwen": (Qwen3Config, 9)}  # and its norms


def adapted(kind: str, dtype: torch.dtype) -> Any:
    """Norms with weights drawn, so that none is a mere one or zero."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(KINDS[kind][0](**SIZES, rms_norm_eps=1e-5), dtype=dtype)
    for name, parameter in base.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.3, 1.7)
    adapter = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    return get_peft_model(base, adapter).train()


def loss_and_gradients(model: Any) -> list[torch.Tensor]:
    ids = torch.arange(36).view(2, 18) + 2
    with torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = [parameter.grad.float() for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    return [loss.detach().float(), *gradients]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_the_model(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    model = adapted(kind, dtype)
    theirs = loss_and_gradients(model)
    assert fuse_norms(model) == KINDS[kind][1]
    ours = loss_and_gradients(model)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() <= tolerance * other.norm()


def test_answers_are_computed_as_before() -> None:
    model = adapted("gemma", torch.float32).eval()
    ids = torch.arange(2, 20)[None]
    before = model(input_ids=ids).logits
    fuse_norms(model)
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize(("precision", "fused"), [(torch.bfloat16, True), (torch.float32, False)])
def test_training_in_16_bit_computes_them_so(precision: torch.dtype, fused: bool) -> None:
    settings = read_params(Path(__file__).parents[3] / "params.yaml")["train"] | {"layers_to_transform": None}
    base = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES), dtype=precision)
    model = with_adapter(base, Train(**settings), 1, 10, precision)
    assert ("forward" in vars(model.get_base_model().model.norm)) is fused


class ShiftedRMSNorm(torch.nn.Module):
    """Takes off the mean, as none of those models does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.ones(8), requires_grad=False), 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, (8,), self.weight, eps=self.eps)


def test_a_norm_of_another_kind_and_a_trained_one_are_left_alone() -> None:
    assert fuse_norms(torch.nn.Sequential(ShiftedRMSNorm())) == 0
    model = adapted("llama", torch.float32).get_base_model()
    model.requires_grad_(True)
    assert fuse_norms(model) == 0
    other = adapted("llama", torch.float32)
    other.get_base_model().model.norm.variance_epsilon = None
    assert fuse_norms(other) == KINDS["llama"][1] - 1
