"""Turn a fetched model into plain safetensors in one precision, with tokenizer and chat template."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.core.errors import UserError
from stages.model.loading import refuse_not_finite
from stages.tune.base.template import set_template


def materialise(source: Path, folder: Path, dtype: str, template: str) -> None:
    """Load `source` (a folder or a GGUF file) and save it under `folder` with weights in `dtype`.

    `template` comes in place of the model's own chat template; an empty text leaves that.

    Raises:
        UserError: when it is no causal language model, holds NaN or infinity, or cannot be trained with the template.
    """
    where: dict[str, Any] = {"pretrained_model_name_or_path": source}
    if source.is_file():
        where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    with _gguf_read_once():
        tokenizer, model = _load(source, where, dtype)
        if source.is_file():
            _set_special_tokens(tokenizer, source)
    set_template(tokenizer, template)
    _shed_quantisation_marks(model)
    model.to(getattr(torch, dtype))  # checked after it is rounded: float16 has infinities that float32 has not
    refuse_not_finite(dict(model.named_parameters()), "the base model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _load(source: Path, where: dict[str, Any], dtype: str) -> tuple[Any, Any]:
    """The tokenizer and the model."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
        # A GGUF file is de-quantised to float32; rounding once, at the end, loses least. Safetensors are rounded as
        # they are read, which saves a copy of four bytes a weight.
        read_in = torch.float32 if source.is_file() else getattr(torch, dtype)
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=read_in, trust_remote_code=False, use_safetensors=None if source.is_file() else True
        )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"model.source: transformers cannot load {source.name}: {reason}") from None
    return tokenizer, model


@contextmanager
def _gguf_read_once() -> Iterator[None]:
    """Parse a GGUF file, and name its tensors, once instead of at every step of transformers: half of the time."""
    names = ("GGUFReader", "get_tensor_name_map")
    originals = {name: getattr(gguf, name) for name in names}
    try:
        for name, original in originals.items():
            setattr(gguf, name, cache(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


def _set_special_tokens(tokenizer: Any, gguf_file: Path) -> None:
    """Take the special tokens from the file: transformers 5.17 takes SmolLM2's start token for its end token."""
    fields = gguf.GGUFReader(str(gguf_file)).fields
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        field = fields.get(f"tokenizer.ggml.{key}_token_id")
        if field is not None:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(int(field.contents())))


def _shed_quantisation_marks(model: Any) -> None:
    """A model read from GGUF holds plain weights but still calls itself quantised, which blocks saving."""
    for holder, name in (
        (model.config, "quantization_config"),
        (model.config, "_model_name_or_path"),
        (model, "hf_quantizer"),
        (model, "is_quantized"),
        (model, "quantization_method"),
    ):
        if name in vars(holder):
            delattr(holder, name)
