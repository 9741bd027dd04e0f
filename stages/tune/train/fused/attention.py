"""Attention over examples that lie end to end in one row, none of which sees another.

Registered with transformers' `AttentionInterface`, so every model that goes through it can be trained packed.
On a card that computes in 16 bit: one variable-length kernel (Dao 2023, arXiv 2307.08691, as torch carries it).
Elsewhere: torch's own attention, example by example.
"""

import inspect
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

VARLEN, SEGMENTS = "tunetrail_varlen", "tunetrail_segments"
# Before torch 2.12 the kernel took fewer key heads than query heads without being told.
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def varlen(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Any = None,
    max_length_q: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Heads are 1 x heads x tokens x width; `cu_seq_lens_q` holds 0 and the ends of the examples, int32."""
    value = value[0].transpose(0, 1)
    query, key = (part[0].transpose(0, 1).to(value.dtype) for part in (query, key))
    window = (sliding_window - 1, 0) if sliding_window else (-1, 0)
    out: Any = varlen_attn(
        query, key, value, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
        scale=scaling, window_size=window, **_GROUPED,
    )  # fmt: skip
    return out[None], None


def segments(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segment_ends: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The same by definition: causal attention within each example."""
    outputs, start = [], 0
    for end in segment_ends:
        band = _band(end - start, sliding_window, query.device)
        out = scaled_dot_product_attention(
            query[:, :, start:end].to(value.dtype),
            key[:, :, start:end].to(value.dtype),
            value[:, :, start:end],
            attn_mask=band,
            is_causal=band is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(out)
        start = end
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _band(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Which keys each query sees where the window is shorter than the example: itself and `window` - 1 before."""
    if not window or length <= window:
        return None
    seen = torch.ones(length, length, dtype=torch.bool, device=device)
    return seen.tril().triu(1 - window)


AttentionInterface.register(VARLEN, varlen)
AttentionInterface.register(SEGMENTS, segments)


def can_pack(config: Any) -> str | None:
    """None where the model's attention is the plain kind that these functions compute, else what it has beyond."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"layers of {', '.join(sorted(kinds))}"
    if getattr(config, "attn_logit_softcapping", None):
        return "capped attention scores"
    if getattr(config, "use_bidirectional_attention", None):
        return "attention that looks ahead"
    return None


def sees_all_before(config: Any) -> bool:
    """Whether every layer's attention is the plain kind, and each token sees all before it: no window."""
    kinds = getattr(config, "layer_types", None)
    window = "sliding_attention" in kinds if kinds else getattr(config, "sliding_window", None)
    return not can_pack(config) and not window
