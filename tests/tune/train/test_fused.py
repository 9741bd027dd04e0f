"""The fused adapter computes what PEFT's does, and leaves alone what is more than plain LoRA."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from stages.tune.train.fused import fuse

SIZES = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def adapted(base: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, lora_alpha=7, target_modules=["q_proj", "o_proj", "up_proj"], init_lora_weights=False, **options
    )
    return get_peft_model(base, config).train()


def loss_and_gradients(model: Any) -> list[torch.Tensor]:
    ids = torch.arange(36).view(2, 18)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    return [loss.detach(), *gradients]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("quantised", [False, True])
def test_loss_and_gradients_are_those_of_peft(bias: bool, quantised: bool, tmp_path: Any) -> None:
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=bias))
    if quantised:
        base.save_pretrained(tmp_path)
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        base = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32)
    model = adapted(base)
    theirs = loss_and_gradients(model)
    assert fuse(model) == 6
    ours = loss_and_gradients(model)
    assert len(ours) == 13
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() <= 1e-4 * other.norm()


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_more_than_lora_stays_with_peft(options: dict[str, Any]) -> None:
    assert fuse(adapted(LlamaForCausalLM(LlamaConfig(**SIZES)), **options)) == 0


def test_an_answer_is_computed_by_peft() -> None:
    model = adapted(LlamaForCausalLM(LlamaConfig(**SIZES))).eval()
    ids = torch.arange(8)[None]
    before = model(input_ids=ids).logits
    fuse(model)
    assert torch.equal(model(input_ids=ids).logits, before)
