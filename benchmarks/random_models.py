"""Models of well-known shapes with random weights, and pairs of tokens of life-like lengths."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from stages.params.model import Train
from stages.tune.train.adapters import with_adapter
from stages.tune.train.examples import Examples
from tests.tiny_model import tiny_tokenizer

PAIRS, MEDIAN, LONGEST = 2000, 176, 1024

LLAMA_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "Llama-3.2-1B": lambda: transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters=LLAMA_ROPE,
        tie_word_embeddings=True,
    ),
    "Gemma-3-1B": lambda: transformers.Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=1152,
        intermediate_size=6912,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        query_pre_attn_scalar=256,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        pad_token_id=None,  # else its embedding is zero, and the tokenizer's first token has that number
    ),
    "SmolLM2-135M": lambda: transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    ),
    "Llama-3.1-8B": lambda: transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters=LLAMA_ROPE | {"factor": 8.0},
    ),
}


def lengths(pairs: int = PAIRS) -> list[int]:
    draw = random.Random(1)
    return [min(LONGEST, max(16, round(MEDIAN * math.exp(draw.gauss(0, 0.7))))) for _ in range(pairs)]


def examples(vocabulary: int, sizes: list[int]) -> Examples:
    """Pairs of random tokens, half of each the completion."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, vocabulary, (size,), generator=generator).tolist() for size in sizes]
    return Examples(ids, [[0] * (size // 2 + 1) + [1] * (size - size // 2 - 1) for size in sizes])


def bare_model(architecture: str) -> Any:
    """The architecture with random weights, on the card."""
    transformers.set_seed(1)
    with torch.device("cuda"):
        return transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](), dtype=torch.bfloat16)


def save_model(folder: Path, architecture: str) -> None:
    """The bare model and a tokenizer of few words, as files."""
    bare_model(architecture).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def write_case(folder: Path, architecture: str) -> dict[str, Any]:
    """What a contender trains and trains on: the model's files, and the pairs as token ids."""
    save_model(folder / "model", architecture)
    made = examples(ARCHITECTURES[architecture]().vocab_size, lengths())
    pairs = [
        {"ids": ids, "prompt": mask.index(1)} for ids, mask in zip(made.input_ids, made.completion_mask, strict=True)
    ]
    (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    return {"tokens": made.tokens}


def random_model(architecture: str, train: Train) -> Any:
    """The bare model with an adapter; NF4 weights for QLoRA."""
    model = bare_model(architecture)
    if train.method == "qlora":
        quantise(model)
    return with_adapter(model, train, 1, 1000)


def quantise(model: Any) -> None:
    """NF4 with double quantisation for every linear layer but the head, as loading for QLoRA does."""
    import bitsandbytes

    for parent in list(model.base_model.modules()):
        for name, linear in list(parent.named_children()):
            if isinstance(linear, torch.nn.Linear):
                four = bitsandbytes.nn.Linear4bit(
                    linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
                )
                weight = bitsandbytes.nn.Params4bit(
                    linear.weight.data.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
                )
                four.weight = weight
                setattr(parent, name, four.to("cuda"))
    model.is_loaded_in_4bit = True
    torch.cuda.empty_cache()
