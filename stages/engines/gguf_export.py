"""A model in the transformers layout as one GGUF file, for llama.cpp; Llama, Qwen 2 and 3, and Gemma 3 in text.

The layout is that of the GGUF specification; the names of tensors come from the `gguf` package. What llama.cpp counts
otherwise than transformers is written as llama.cpp has it: Llama's queries and keys in the order of its rotary
positions, Gemma's norms with their one added, frequencies that Llama 3 scales as a tensor of their own.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from stages.core.errors import UserError
from stages.core.files import atomic, read_json

TYPES = {
    "F16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
_SHAPES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How a tokenizer cuts text before it merges, and llama.cpp's name for that.
_CUTS = {
    "": "gpt-2",
    "digits": "smollm",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _WORDS % "{1,3}": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _WORDS % "": "qwen2",
}


def write_gguf(folder: Path, file: Path, kind: str, stop_id: int) -> dict[str, int]:
    """Write the model in `folder` to `file`, matrices as `kind` (F16, Q8_0 or Q4_0), vectors in 32 bit.

    `stop_id` is the token that ends an answer.
    The embedding of Q4_0 has 8 bit, as has the output layer: they are most of what rounding costs.

    Returns:
        How many tensors have which type.

    Raises:
        UserError: when the model or its tokenizer is of a kind that this cannot write, or a row of a matrix cannot be
            cut into blocks of 32.
    """
    config = read_json(folder / "config.json")
    arch = _SHAPES.get(config["model_type"])
    if arch is None:
        raise UserError(
            f"quantize.formats: gguf is written for {', '.join(_SHAPES)}, and this model is a {config['model_type']}; "
            "take gguf out of the list, and its gate"
        )
    for name, value in _taken_for_granted(config).items():
        if (there := config.get(name, value)) != value:
            raise UserError(
                f"quantize.formats: llama.cpp takes {name} for {value}, and it is {there}; take gguf out, and its gate"
            )
    types: Counter[str] = Counter()
    with atomic(file) as partial:
        writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[arch])
        _describe(writer, config, kind)
        _tokenizer(writer, folder, config["vocab_size"])
        writer.add_eot_token_id(stop_id)
        for name, weight in _tensors(folder, config, arch):
            form = _type(name, weight, kind)
            types[form.name] += 1
            writer.add_tensor(name, gguf.quants.quantize(weight, form), raw_dtype=form)
        _finish(writer)
    return dict(sorted(types.items()))


def write_gguf_lora(base: Path, adapter: Path, file: Path) -> bool:
    """Write a LoRA adapter on the model in `base` to `file`, for llama.cpp's --lora; its factors in 32 bit.

    Returns False, and writes nothing, where llama.cpp has no such base model or the adapter is none of two factors.
    """
    from safetensors.torch import load_file

    config, lora = read_json(base / "config.json"), read_json(adapter / "adapter_config.json")
    arch = _SHAPES.get(config["model_type"])
    if arch is None or lora["peft_type"] != "LORA" or lora.get("use_dora"):
        return False
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, lora["lora_alpha"])
    for name, weight in sorted(load_file(adapter / "adapter_model.safetensors").items()):
        stem, _, factor = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        called, numbers = names.get_name(stem), weight.float().numpy()
        # The order of rows is that of the output, which the second factor has.
        numbers = as_llama_cpp(numbers, called, config) if factor == "B" else numbers
        writer.add_tensor(f"{called}.weight.lora_{factor.lower()}", numbers)
    _finish(writer)
    return True


def _taken_for_granted(config: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp computes such a model with, whatever its configuration says, and no key of GGUF tells it."""
    layers = range(1, config["num_hidden_layers"] + 1)
    if config["model_type"] != "gemma3_text":
        return {"hidden_act": "silu", "layer_types": ["full_attention" for _ in layers]}
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config["head_dim"],
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
        "layer_types": ["sliding_attention" if number % 6 else "full_attention" for number in layers],
        "rope_parameters": config["rope_parameters"]
        | {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
    }


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _type(name: str, weight: Any, kind: str) -> gguf.GGMLQuantizationType:
    if weight.ndim == 1:
        return gguf.GGMLQuantizationType.F32
    form = TYPES["Q8_0" if kind == "Q4_0" and name in ("token_embd.weight", "output.weight") else kind][0]
    block = gguf.GGML_QUANT_SIZES[form][0]
    if weight.shape[-1] % block:
        raise UserError(
            f"quantize.gguf.type: {kind} cuts rows into blocks of {block}, and {name} has rows of {weight.shape[-1]}; "
            "set it to F16"
        )
    return form


def _describe(writer: Any, config: dict[str, Any], kind: str) -> None:
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head = config.get("head_dim") or width // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(TYPES[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] not in ("default", "llama3"):
        raise UserError(f"quantize.formats: gguf is not written for positions of the kind {rope['rope_type']}")
    if config.get("sliding_window") and config["model_type"] == "gemma3_text":
        writer.add_sliding_window(config["sliding_window"])


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of rotary positions; of Gemma, those of the layers that see all tokens."""
    found = config["rope_parameters"]
    return dict(found.get("full_attention", found))


def _tensors(folder: Path, config: dict[str, Any], arch: Any) -> Iterator[tuple[str, Any]]:
    """(name in GGUF, weight in float32), as llama.cpp computes with it."""
    from safetensors import safe_open

    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    rope = _rope(config)
    if rope["rope_type"] == "llama3":
        yield "rope_freqs.weight", _llama3_factors(rope, config)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 -- it is no mapping
                stem, _, suffix = name.rpartition(".")
                called = names.get_name(stem)
                if called is None:
                    raise UserError(f"quantize.formats: gguf has no name for the tensor {name}")
                if called == "output" and config.get("tie_word_embeddings"):
                    continue
                weight = opened.get_tensor(name).float().numpy()
                yield f"{called}.{suffix}", as_llama_cpp(weight, called, config)


def as_llama_cpp(weight: Any, name: str, config: dict[str, Any]) -> Any:
    """The numbers of a tensor, by its name in GGUF, in llama.cpp's order."""
    if config["model_type"] == "gemma3_text" and name.endswith("norm"):
        return weight + 1.0
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config.get("num_key_value_heads")}
    count = heads.get(name.rpartition(".")[2])
    if config["model_type"] != "llama" or count is None:
        return weight
    # transformers turns the first half of a head against the second, llama.cpp even against odd rows.
    halves = weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _llama3_factors(rope: dict[str, Any], config: dict[str, Any]) -> Any:
    """What each frequency is divided by (Llama 3.1's scaling of long waves)."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    waves = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head, 2, dtype=np.float64) / head)
    known = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = ((known / waves - low) / (high - low)).clip(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _tokenizer(writer: Any, folder: Path, size: int) -> None:
    from stages.model.loading import load_tokenizer

    tokenizer = load_tokenizer(folder)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    if model["type"] != "BPE":
        raise UserError(f"quantize.formats: gguf is written for BPE tokenizers, and this one is {model['type']}")
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    words = {index: token for token, index in model["vocab"].items()}
    added = tokenizer.added_tokens_decoder
    # A byte-level tokenizer may carry the flag as well, and has no token for it to fall back on.
    falls_back = model.get("byte_fallback") and "<0x00>" in model["vocab"]
    tokens, kinds = [], []
    for index in range(size):
        if index in added:
            tokens.append(added[index].content)
            kinds.append(gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED)
        else:
            byte = falls_back and len(words.get(index, "")) == 6 and words[index].startswith("<0x")
            tokens.append(words.get(index, f"[PAD{index}]"))
            normal = gguf.TokenType.BYTE if byte else gguf.TokenType.NORMAL
            kinds.append(normal if index in words else gguf.TokenType.UNUSED)
    if falls_back:
        # SentencePiece merges the pair that makes the likeliest token: the first merge that makes it says how likely.
        rank: dict[str, int] = {}
        for number, pair in enumerate(merges):
            rank.setdefault("".join(pair), number)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([-float(rank.get(token, len(merges))) for token in tokens])
        writer.add_add_space_prefix(False)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_cut(backend["pre_tokenizer"]))
        # A tokenizer of single bytes has none, and llama.cpp wants one; the pair of this one makes no token.
        writer.add_token_merges([" ".join(pair) for pair in merges] or ["Ġ Ġ"])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for name in ("bos", "eos", "unk", "pad"):
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    # The template writes every special token: one more at the start is what two engines differ by.
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def _cut(pre_tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for how the tokenizer cuts text into words."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if pre_tokenizer else []
    first = next((step for step in steps if step["type"] != "ByteLevel"), None)
    said = ""
    if first:
        said = "digits" if first["type"] == "Digits" else str(first.get("pattern", {}).get("Regex", first["type"]))
    if said not in _CUTS:
        raise UserError(f"quantize.formats: llama.cpp has no name for a tokenizer that cuts text by {said[:120]}")
    return _CUTS[said]
