"""Each name that transformers, PEFT or bitsandbytes do not document is still there, and is read nowhere else."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stages.tune.train.fused.private_names import (
    SIBLINGS,
    attention_in_use,
    casting_layers,
    dense_weight,
    is_gated,
    norm_epsilon,
    plain_lora,
    rotary_function,
    with_rotary_function,
    write_logits_out,
)

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 3e-5,
}
ROOT = Path(__file__).parents[4]
NAMES = (
    r"_attn_implementation|cast_input_dtype_enabled|lora_variant|lora_dropout|base_layer|quant_state"
    r"|variance_epsilon|co_names|__globals__|_ChunkedLogProbFunction"
)


def test_siblings_have_their_names() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    parents = [parent for names in SIBLINGS for parent in model.modules() if all(hasattr(parent, n) for n in names)]
    assert len(parents) == len(SIBLINGS)


def test_the_attention_in_use_can_be_read() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert attention_in_use(model) == name


@pytest.mark.parametrize(
    "model",
    [
        LlamaForCausalLM(LlamaConfig(**SIZES)),
        Qwen3ForCausalLM(Qwen3Config(**SIZES)),
        Gemma3ForCausalLM(Gemma3TextConfig(**SIZES)),
    ],
    ids=["llama", "qwen", "gemma"],
)
def test_norms_have_their_epsilon(model: Any) -> None:
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    assert norms
    assert {norm_epsilon(norm) for norm in norms} == {3e-5}


def test_code_that_kernels_replace_has_its_names() -> None:
    layer = LlamaForCausalLM(LlamaConfig(**SIZES)).model.layers[0]
    assert [name for name, module in layer.named_modules() if is_gated(module)] == ["mlp"]
    assert [name for name, module in layer.named_modules() if rotary_function(module)] == ["self_attn"]
    given: dict[str, Any] = {"position_embeddings": (torch.ones(1, 5, 16), torch.zeros(1, 5, 16))}
    seen: list[Any] = []

    def unturned(q: Any, k: Any, *_: Any) -> Any:
        seen.append((q.shape, k.shape))
        return q, k

    attend = with_rotary_function(layer.self_attn, unturned)
    x = torch.randn(1, 5, 64)
    torch.testing.assert_close(attend(x, **given)[0], layer.self_attn(x, **given)[0])
    assert seen == [((1, 4, 5, 16), (1, 2, 5, 16))]


def test_a_lora_layer_has_its_parts() -> None:
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES)), config)
    (layer,) = casting_layers(model)
    lora = plain_lora(layer)
    assert lora is not None
    assert lora.base is layer.get_base_layer()
    assert (lora.down.weight.shape, lora.up.weight.shape, lora.scale) == ((4, 64), (64, 4), 1.5)
    assert lora.shape() == (64, 64, 4)
    x = torch.randn(3, 64)
    by_parts = lora.base(x) + lora.up(lora.down(x)) * lora.scale
    torch.testing.assert_close(layer(x), by_parts)
    assert plain_lora(lora.base) is None


def test_a_weight_in_4_bit_can_be_written_out() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    dense = torch.nn.Linear(64, 64, bias=False)
    assert dense_weight(dense) is dense.weight
    four = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    four.weight = bitsandbytes.nn.Params4bit(dense.weight.data.clone(), requires_grad=False, quant_type="nf4")
    four.to("cpu")
    x = torch.randn(5, 64)
    written = dense_weight(four)
    assert written.shape == (64, 64)
    torch.testing.assert_close(four(x), x @ written.T.to(x.dtype), rtol=1e-2, atol=1e-2)
    assert (written - dense.weight).norm() < 0.2 * dense.weight.norm()


def test_no_other_file_reads_them() -> None:
    reading = re.compile(rf"\.({NAMES})\b")
    files = [file for file in (ROOT / "stages/tune").rglob("*.py") if file.name != "private_names.py"]
    found = {file.name: sorted(set(reading.findall(file.read_text("utf-8")))) for file in files}
    # `casting_layers` hands out the layers; these two switch their casts.
    switching = {name: ["cast_input_dtype_enabled"] for name in ("steps.py", "completion_trainer.py")}
    assert {name: names for name, names in found.items() if names} == switching
    private = re.compile(r"(?<!self)(?<!cls)\.(_[a-z]\w*)")
    for file in files:
        for name in private.findall(file.read_text("utf-8")):
            assert name in ("_Adapted", "_exit"), f"{file.name} reads {name}"


@pytest.mark.parametrize(("bias", "cap", "scale", "temperature"), [(False, None, 1.0, 1.0), (True, 3.0, 0.5, 0.7)])
def test_log_probabilities_at_once_are_those_of_trl(
    bias: bool, cap: float | None, scale: float, temperature: float
) -> None:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer import utils

    write_logits_out()
    write_logits_out()  # as each trainer of a process does
    assert utils._ChunkedLogProbFunction is not ChunkedLogProbFunction
    generator, found = torch.Generator().manual_seed(1), []
    hidden, weight = (torch.randn(count, 8, generator=generator) for count in (9, 50))
    added, targets = torch.randn(50, generator=generator), torch.randint(0, 50, (9,), generator=generator)
    for function in (utils._ChunkedLogProbFunction, ChunkedLogProbFunction):
        given = [one.clone().requires_grad_() for one in (hidden, weight, added)]
        options = (targets, temperature, 32, cap, scale, ("log_probs", "entropy", "is_top1"))
        said = function.apply(given[0], given[1], given[2] if bias else None, *options)
        (said[0] * torch.arange(9)).sum().backward()
        assert said[2] is said[3] is None
        found.append([said[0], said[1], said[4], *(one.grad for one in given[: 2 + bias])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
