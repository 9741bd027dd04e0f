"""Layers whose adapters are added to their weights compute what PEFT's do, and give A and B the same gradients."""

from copy import deepcopy
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_layers import SIZES
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from stages.tune.train.fused import merged
from stages.tune.train.fused.buffers import Trained
from stages.tune.train.fused.layers import fuse, unfuse
from stages.tune.train.fused.merged import Merged, in_stacks, worth_merging

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[dict[str, Any], int]] = {  # the adapter, and the products of one pass forward
    "all layers": ({"target_modules": ALL}, 8),
    "some siblings": ({"target_modules": ["q_proj", "v_proj", "up_proj"]}, 4),
    "one decoder layer": ({"target_modules": ALL, "layers_to_transform": [1]}, 4),
    "ranks of their own": ({"target_modules": ALL, "rank_pattern": {"k_proj": 2, r".*layers\.1\..*q_proj": 3}}, 8),
    "rank-stabilised": ({"target_modules": ALL, "use_rslora": True}, 8),
}
BATCHES = torch.arange(36).view(2, 1, 18) + 2


def with_lora(dtype: torch.dtype = torch.float32, bias: bool = False, base: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    base = base or LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=bias)).to(dtype)
    for name, parameter in base.named_parameters():
        if "bias" in name:
            torch.nn.init.uniform_(parameter, -0.1, 0.1)
    settings = {"target_modules": ALL} | options
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=7, init_lora_weights=False, **settings)).train()
    for parameter in trained(model):
        parameter.data = parameter.data.float()
        parameter.grad = torch.zeros_like(parameter)
    return model


def merged_of(model: Any, dtype: torch.dtype) -> Merged:
    weights = Trained(in_stacks(model))
    weights.clear()
    return Merged(model, dtype, weights)


def trained(model: Any) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def losses(model: Any, dtype: torch.dtype) -> torch.Tensor:
    """Of two micro-batches, whose gradients are added up."""
    found = []
    for ids in BATCHES:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        found.append(loss.detach().float())
    return torch.stack(found)


def gradients(model: Any) -> list[torch.Tensor]:
    """Those found, which are taken away."""
    found = [parameter.grad.clone() for parameter in trained(model)]
    for parameter in trained(model):
        parameter.grad.zero_()
    return found


def assert_close(ours: Any, theirs: Any, tolerance: float) -> None:
    """A weight whose gradient is tiny beside the others is all rounding."""
    least = 0.1 * torch.stack([other.norm() for other in theirs]).norm() / len(theirs) ** 0.5
    assert least > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() <= tolerance * max(other.norm(), least)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_peft(case: str, bias: bool, dtype: torch.dtype) -> None:
    """In float32 the same; in 16 bit nearly as near to those as PEFT's are in 16 bit."""
    model = with_lora(dtype, bias, **CASES[case][0])
    copies = merged_of(model, dtype)
    for turn in range(2):  # what was merged before is stale
        with torch.no_grad():
            for parameter in trained(model):
                parameter.mul_(1 - 0.3 * turn)
        exact_model = deepcopy(model).float()
        exact_losses, exact = losses(exact_model, torch.float32), gradients(exact_model)
        their_losses, theirs = losses(model, dtype), gradients(model)
        fuse(model, dtype, copies)
        copies.refresh()
        our_losses = losses(model, dtype)
        copies.collect()
        ours = gradients(model)
        if dtype == torch.float32:
            assert_close([our_losses, *ours], [exact_losses, *exact], 1e-5)
        else:
            assert distance(ours, exact) <= 1.5 * distance(theirs, exact)
            assert (our_losses - exact_losses).norm() <= 2 * (their_losses - exact_losses).norm() + 1e-3
        unfuse(model)


def distance(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    return float(torch.stack([(one - other).norm() for one, other in zip(some, others, strict=True)]).norm())


@pytest.mark.parametrize("case", CASES)
def test_layers_that_read_the_same_are_one_product(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, product = with_lora(**CASES[case][0]), Mock(wraps=torch.nn.functional.linear)
    monkeypatch.setattr(merged, "linear", product)
    fuse(model, torch.float32, merged_of(model, torch.float32))
    model(input_ids=BATCHES[0])
    assert product.call_count == CASES[case][1]


def test_siblings_that_read_something_else_are_computed_alone() -> None:
    model = with_lora()
    attention = model.get_base_model().model.layers[0].self_attn
    x, y = torch.randn(2, 3, 64).unbind()
    calls = [(attention.q_proj, x), (attention.k_proj, y), (attention.v_proj, y), (attention.q_proj, x)]
    theirs = [layer(given) for layer, given in calls]
    copies = merged_of(model, torch.float32)
    fuse(model, torch.float32, copies)
    copies.refresh()
    for (layer, given), their in zip(calls, theirs, strict=True):
        torch.testing.assert_close(layer(given), their)


def test_recomputed_layers_give_the_same() -> None:
    model = with_lora()
    their_losses, theirs = losses(model, torch.float32), gradients(model)
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    copies = merged_of(model, torch.float32)
    fuse(model, torch.float32, copies)
    copies.refresh()
    assert_close([losses(model, torch.float32)], [their_losses], 1e-6)
    copies.collect()
    assert_close(gradients(model), theirs, 1e-5)


def test_an_answer_is_computed_by_peft() -> None:
    model = with_lora().eval()
    before = model(input_ids=BATCHES[0]).logits
    copies = merged_of(model, torch.float32)
    fuse(model, torch.float32, copies)
    with torch.no_grad():
        for stack in copies.sums:
            stack.fill_(7)
    assert torch.equal(model(input_ids=BATCHES[0]).logits, before)
    unfuse(model)
    assert torch.equal(model.train()(input_ids=BATCHES[0]).logits, before)


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_more_than_lora_stays_with_peft(options: dict[str, Any]) -> None:
    model = with_lora(**options)
    assert worth_merging(model) == 0
    assert fuse(model, torch.float32, merged_of(model, torch.float32)) == 0


def test_layers_in_4_bit_keep_their_narrow_products(tmp_path: Any) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32)
    model = with_lora(base=base)
    assert worth_merging(model) == 0
    their_losses, theirs = losses(model, torch.float32), gradients(model)
    copies = merged_of(model, torch.float32)
    assert fuse(model, torch.float32, copies) == 14
    copies.refresh()
    assert_close([losses(model, torch.float32)], [their_losses], 1e-4)
    copies.collect()
    assert_close(gradients(model), theirs, 1e-4)


def test_small_models_alone_are_worth_it() -> None:
    assert worth_merging(with_lora()) == 2 * 64 * (64 + 32 + 32 + 64 + 3 * 96)
    wide = SIZES | {"hidden_size": 1088, "num_hidden_layers": 1}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**wide))
    assert worth_merging(get_peft_model(model, LoraConfig(target_modules=["q_proj"]))) == 0
