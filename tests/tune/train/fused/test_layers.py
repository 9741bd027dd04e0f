"""Fused layers compute what PEFT's and transformers' do, in 16 and in 32 bit, and other kinds are left alone."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
)

from stages.tune.train.fused import layers
from stages.tune.train.fused.buffers import Trained
from stages.tune.train.fused.layers import Copies, fuse, is_frozen_norm, norm_offset, unfuse

SIZES = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def with_lora(base: Any, **options: Any) -> Any:
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
    model = with_lora(base)
    theirs = loss_and_gradients(model)
    assert fuse(model, torch.float32) == 6
    ours = loss_and_gradients(model)
    assert len(ours) == 13
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() <= 1e-4 * other.norm()


def test_copies_give_the_same_and_add_to_the_gradients_that_are_there() -> None:
    torch.manual_seed(0)
    model = with_lora(LlamaForCausalLM(LlamaConfig(**SIZES)).bfloat16())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    theirs = loss_and_gradients_in(model)
    weights = Trained(trained)
    weights.clear()
    copies = Copies(torch.bfloat16, weights)
    fuse(model, torch.bfloat16, copies)
    unfuse(model)
    fuse(model, torch.bfloat16, copies)  # anew, on the same copies
    for turn in (1, 2):
        with torch.no_grad():
            for parameter in trained:
                parameter.grad.fill_(0.5)
                parameter.mul_(2.0 if turn == 1 else 0.5)  # what was copied before is stale
        copies.refresh()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=torch.arange(36).view(2, 18) + 2, labels=torch.arange(36).view(2, 18) + 2).loss
    loss.backward()
    assert (loss - theirs[0]).abs() <= 0.01 * theirs[0]
    for parameter, their in zip(trained, theirs[1:], strict=True):
        assert ((parameter.grad - 0.5) - their).norm() <= 0.05 * their.norm()


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_more_than_lora_stays_with_peft(options: dict[str, Any]) -> None:
    assert fuse(with_lora(LlamaForCausalLM(LlamaConfig(**SIZES)), **options), torch.float32) == 0


def test_an_answer_is_computed_by_peft() -> None:
    model = with_lora(LlamaForCausalLM(LlamaConfig(**SIZES))).eval()
    ids = torch.arange(8)[None]
    before = model(input_ids=ids).logits
    fuse(model, torch.float32)
    assert torch.equal(model(input_ids=ids).logits, before)


WIDE = SIZES | {"head_dim": 16}
KINDS = {"llama": (LlamaConfig, 5), "gemma": (Gemma3TextConfig, 13), "qwen": (Qwen3Config, 9)}  # and its norms


def with_norms(kind: str, dtype: torch.dtype) -> Any:
    """Norms with weights drawn, so that none is a mere one or zero."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(KINDS[kind][0](**WIDE, rms_norm_eps=1e-5), dtype=dtype)
    for name, parameter in base.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.3, 1.7)
    adapter = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    return get_peft_model(base, adapter).train()


def loss_and_gradients_in(model: Any) -> list[torch.Tensor]:
    ids = torch.arange(36).view(2, 18) + 2
    with torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = [parameter.grad.float() for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    return [loss.detach().float(), *gradients]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("kind", KINDS)
def test_norms_give_the_loss_and_gradients_of_the_model(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    model = with_norms(kind, dtype)
    theirs = loss_and_gradients_in(model)
    assert fuse(model, torch.bfloat16) == KINDS[kind][1] + 4
    ours = loss_and_gradients_in(model)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() <= tolerance * other.norm()


def test_answers_take_the_norms_of_the_model() -> None:
    model = with_norms("gemma", torch.float32).eval()
    ids = torch.arange(2, 20)[None]
    before = model(input_ids=ids).logits
    fuse(model, torch.bfloat16)
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize(("precision", "fused"), [(torch.bfloat16, True), (torch.float32, False)])
def test_training_in_16_bit_alone_computes_norms_so(precision: torch.dtype, fused: bool) -> None:
    model = with_norms("llama", precision)
    fuse(model, precision)
    assert ("forward" in vars(model.get_base_model().model.norm)) is fused
    unfuse(model)
    assert not any("forward" in vars(module) for module in model.modules())


class ShiftedRMSNorm(torch.nn.Module):
    """Takes off the mean, as none of those models does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.ones(8), requires_grad=False), 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, (8,), self.weight, eps=self.eps)


def test_a_norm_of_another_kind_and_a_trained_one_are_left_alone() -> None:
    assert norm_offset(ShiftedRMSNorm()) is None
    norm = with_norms("llama", torch.float32).get_base_model().model.norm
    assert is_frozen_norm(norm)
    assert norm_offset(norm) == 0
    norm.requires_grad_(True)
    assert not is_frozen_norm(norm)
    norm.requires_grad_(False)
    norm.variance_epsilon = None
    assert not is_frozen_norm(norm)


def rotated(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the kernel computes, by definition: pairs of a head's halves turned by their angle."""
    turned = []
    for part in (q, k):
        first, second = part.float().chunk(2, -1)
        (c, c2), (s, s2) = cos.float()[:, None].chunk(2, -1), sin.float()[:, None].chunk(2, -1)
        turned.append(torch.cat([first * c - second * s, second * c2 + first * s2], -1).to(q.dtype))
    return tuple(turned)


def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    gate, kind = gate.float(), gate.dtype
    return (gate * torch.sigmoid(gate) * up.float()).to(kind)


def backwards(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return rotated(q, k, cos, -sin)


def no_compiler(*_: Any) -> Any:
    raise RuntimeError("Failed to find C compiler")


def with_kernels(monkeypatch: pytest.MonkeyPatch, rotate: Any, gate: Any) -> SimpleNamespace:
    kernels = SimpleNamespace(rotate=Mock(wraps=rotate), gated=Mock(wraps=gate))
    monkeypatch.setattr(layers, "card_kernels", lambda *_: kernels)
    return kernels


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_take_the_place_of_what_they_compute(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of nothing else: Gemma's gate is another."""
    model = with_norms(kind, torch.bfloat16)
    for parameter in model.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    theirs, ids = one_row(model), torch.arange(18)[None] + 2
    answer = model.eval()(input_ids=ids).logits
    kernels = with_kernels(monkeypatch, rotated, gated)
    gates = 0 if kind == "gemma" else 2
    assert fuse(model.train(), torch.bfloat16) == KINDS[kind][1] + 4 + 2 + gates
    kernels.rotate.reset_mock()
    kernels.gated.reset_mock()
    for mine, other in zip(one_row(model), theirs, strict=True):
        assert (mine - other).norm() <= 0.05 * other.norm()
    assert (kernels.rotate.call_count, kernels.gated.call_count) == (2, gates)
    assert torch.equal(model.eval()(input_ids=ids).logits, answer)
    assert (kernels.rotate.call_count, kernels.gated.call_count) == (2, gates)
    unfuse(model)
    assert not any("forward" in vars(module) for module in model.modules())


def one_row(model: Any) -> list[torch.Tensor]:
    ids = torch.arange(18)[None] + 2
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    found = [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]
    model.zero_grad()
    return found


@pytest.mark.parametrize(("rotate", "gate"), [(backwards, lambda g, u: gated(u, g)), (no_compiler, no_compiler)])
def test_kernels_that_compute_something_else_or_cannot_be_built_are_not_used(
    rotate: Any, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_kernels(monkeypatch, rotate, gate)
    assert fuse(with_norms("llama", torch.bfloat16), torch.bfloat16) == KINDS["llama"][1] + 4


def test_kernels_are_for_a_card_that_computes_in_16_bit() -> None:
    assert layers.card_kernels(torch.device("cpu"), torch.bfloat16) is None
    assert layers.card_kernels(torch.device("cuda"), torch.float32) is None


def loss_of(logits: Any, targets: Any, count: Any, unseen: int) -> Any:
    given = logits.float().requires_grad_()
    loss = torch.nn.functional.cross_entropy(given, targets, ignore_index=unseen, reduction="sum") / count
    logits.copy_(torch.autograd.grad(loss, given)[0])
    return loss.detach()


def unscaled(logits: Any, targets: Any, count: Any, unseen: int) -> Any:
    return loss_of(logits, targets, torch.ones_like(count), unseen) / count


def of_all(logits: Any, targets: Any, count: Any, unseen: int) -> Any:
    return loss_of(logits, targets.clamp(min=0), count, unseen)


@pytest.mark.parametrize(
    ("kernel", "used"), [(loss_of, True), (unscaled, False), (of_all, False), (no_compiler, False)]
)
def test_a_loss_kernel_is_used_where_it_computes_the_loss(
    kernel: Any, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "card_kernels", lambda *_: SimpleNamespace(cross_entropy=kernel))
    assert (layers.loss_kernel(torch.device("cpu"), torch.bfloat16) is kernel) is used
