"""Every name that training reads of transformers, PEFT, TRL and bitsandbytes and that they do not document.

A new version of theirs may rename any of them; a test looks up all, and the proof before training finds what changed
its meaning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import torch


def attention_in_use(model: Any) -> str:
    """transformers: a model's attention; `set_attn_implementation` is documented, but nothing that reads it."""
    return str(model.config._attn_implementation)


def norm_epsilon(module: Any) -> float | None:
    """transformers: what an RMSNorm adds before its root, `variance_epsilon` in Llama and Qwen, `eps` in Gemma."""
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def is_gated(module: Any) -> bool:
    """transformers: whether a feed-forward layer is down(act(gate(x)) * up(x)), by the names that its code reads."""
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and code.co_names == ("down_proj", "act_fn", "gate_proj", "up_proj")


_ROTARY = "apply_rotary_pos_emb"


def rotary_function(module: Any) -> Any:
    """transformers: the function that turns queries and keys in an attention's code; None for another layer."""
    forward = type(module).forward
    named = _ROTARY in getattr(getattr(forward, "__code__", None), "co_names", ())
    return forward.__globals__.get(_ROTARY) if named else None


def with_rotary_function(module: Any, rotary: Any) -> Any:
    """transformers: the layer's own code, which finds this function in that one's place."""
    forward = type(module).forward
    names = forward.__globals__ | {_ROTARY: rotary}
    copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return MethodType(copy, module)


def casting_layers(model: Any) -> list[Any]:
    """PEFT: adapter layers that cast their input to the adapter's dtype unless `cast_input_dtype_enabled` is False."""
    return [module for module in model.modules() if hasattr(module, "cast_input_dtype_enabled")]


# transformers: layers of one parent that read the same input, where it has them under these names.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True, slots=True)
class PlainLora:
    """The frozen linear layer `base`, and its adapter: `scale` times `up` (B) after `down` (A)."""

    base: Any
    down: Any
    up: Any
    scale: float

    def shape(self) -> tuple[int, int, int]:
        """Outputs, inputs, rank."""
        return (self.base.out_features, self.base.in_features, len(self.down.weight))


def plain_lora(module: Any) -> PlainLora | None:
    """PEFT: the parts of a linear layer, dense or in 4 bit, with one adapter that is LoRA and nothing more."""
    adapters = getattr(module, "lora_A", None)
    if not adapters or len(adapters) != 1 or type(module.base_layer).__name__ not in ("Linear", "Linear4bit"):
        return None
    name = next(iter(adapters))
    up, dropout = module.lora_B[name], module.lora_dropout[name]
    plain = (
        type(module).__name__ in ("Linear", "Linear4bit")
        and not module.lora_variant
        and isinstance(dropout, torch.nn.Identity)
        and up.bias is None
        and not module.base_layer.weight.requires_grad
    )
    return PlainLora(module.base_layer, adapters[name], up, module.scaling[name]) if plain else None


def dense_weight(layer: Any) -> torch.Tensor:
    """bitsandbytes: the weight, outputs x inputs; a 4-bit one is written out anew each time and kept by nobody."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        weight: torch.Tensor = layer.weight
        return weight
    from bitsandbytes.functional import dequantize_4bit

    dense: torch.Tensor = dequantize_4bit(layer.weight.data, state)
    return dense


_LOGITS_AT_ONCE = 1 << 25  # 128 MiB in float32


def write_logits_out() -> None:
    """TRL: its log-probabilities, which a processor computes at once where all logits of a batch are small enough.

    TRL takes the vocabulary in chunks, computes each twice and multiplies what goes back in float32.
    """
    from trl.trainer import utils

    chunked = utils._ChunkedLogProbFunction

    class LogProbs:
        @staticmethod
        def apply(
            hidden: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            targets: torch.Tensor,
            temperature: float,
            chunk: int,
            cap: float | None,
            scale: float,
            outputs: Sequence[str],
        ) -> Any:
            known = {"log_probs", "entropy", "is_top1"}
            if hidden.is_cuda or len(hidden) * len(weight) > _LOGITS_AT_ONCE or not set(outputs) <= known:
                return chunked.apply(hidden, weight, bias, targets, temperature, chunk, cap, scale, outputs)
            logits = torch.nn.functional.linear(hidden, weight, bias).float()
            logits = logits * scale if scale != 1 else logits
            logits = torch.tanh(logits / cap) * cap if cap else logits
            log_probs = (logits / temperature if temperature != 1 else logits).log_softmax(-1)
            apart = log_probs.detach()
            entropy = -(apart.exp() * apart).sum(-1) if "entropy" in outputs else None
            is_top1 = logits.argmax(-1) == targets if "is_top1" in outputs else None
            return log_probs.gather(-1, targets[:, None])[:, 0], entropy, None, None, is_top1

    if chunked.__name__ != LogProbs.__name__:
        utils._ChunkedLogProbFunction = LogProbs
