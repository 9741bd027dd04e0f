"""Load the base model, an adapter on it, or a release's artefact; one place decides device and precision."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from stages.core.errors import Refusal

# A model that scales or caps its logits says so under one of these names.
_SCALED_HEAD = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def device() -> torch.device:
    """The card of this process, by number: a thread that loads weights has a current card of its own."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype() -> torch.dtype:
    """bfloat16 where the card computes in it; float32 on a CPU, where 16 bit is slower."""
    return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32


def free_memory() -> int | None:
    """Bytes that this process may still take on its card; None without one."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    allowed = int(total * torch.cuda.get_per_process_memory_fraction()) - torch.cuda.memory_allocated()
    return min(free + unused, allowed)


def load_tokenizer(path: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(path)


def load_model(path: Path, **options: Any) -> Any:
    """A causal language model from safetensors, in evaluation mode on the machine's device.

    A quantised artefact is loaded as its own config.json says.
    """
    options = {"dtype": compute_dtype(), "use_safetensors": True, "device_map": {"": device()}} | options
    model = transformers.AutoModelForCausalLM.from_pretrained(path, **options)
    return model.eval()


def load_tuned(base: Path, adapter: Path, **options: Any) -> Any:
    """The base model with the adapter on it; the tuned model itself where all weights were trained."""
    if not (adapter / "adapter_config.json").is_file():
        return load_model(adapter, **options)
    from peft import PeftModel

    model = load_model(base, **options)
    return PeftModel.from_pretrained(model, adapter, use_safetensors=True).eval()


def causal_of(model: Any) -> Any:
    """The causal language model itself, with what PEFT put into its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_is_plain(causal: Any) -> bool:
    """Whether the logits are the output embedding of the last hidden state, neither scaled nor capped."""
    config = causal.config.get_text_config()
    return not any(getattr(config, name, None) for name in _SCALED_HEAD)


def refuse_not_finite(tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Raises Refusal that names the tensors when one holds NaN or infinity."""
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise Refusal(f"{what} holds NaN or infinity in {', '.join(bad[:3])}{more}; it must not be used")
