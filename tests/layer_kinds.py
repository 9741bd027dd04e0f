"""Random models with the kinds of layers that small models have, a few thousand weights each."""

from functools import cache
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

WORDS = 32
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,  # far from ties, and answers that do not repeat one token
    **SPECIAL,
}
KINDS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "mistral with a window": MistralConfig(**SMALL, sliding_window=7),
    "qwen2 with a window in some layers": Qwen2Config(
        **SMALL, sliding_window=7, use_sliding_window=True, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**SMALL, head_dim=16),
    "phi3": Phi3Config(**SMALL),
    "granite with scaled logits": GraniteConfig(**SMALL, logits_scaling=4.0),
    "gemma3 with windows and two rotary bases": Gemma3TextConfig(
        **SMALL,
        head_dim=16,
        sliding_window=7,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "gpt2 with learned positions": GPT2Config(
        vocab_size=WORDS, n_embd=32, n_layer=3, n_head=4, n_positions=256, initializer_range=0.4, **SPECIAL
    ),
    "bloom with a bias by distance": BloomConfig(
        vocab_size=WORDS, hidden_size=32, n_layer=3, n_head=4, initializer_range=0.4, **SPECIAL
    ),
    "lfm2 with convolutions": Lfm2Config(**SMALL, layer_types=["conv", "full_attention", "conv"]),
}
CAPPED = "gemma2 with capped attention and logits"


@cache
def model_of(kind: str) -> Any:
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(
        KINDS[kind] if kind in KINDS else Gemma2Config(**SMALL, head_dim=16, sliding_window=7), dtype=torch.float32
    ).eval()
