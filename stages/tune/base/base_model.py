"""The base model, written as plain safetensors in one precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import torch
from tokenizers import decoders

from stages.core.errors import UserError
from stages.model.chat import make_chat
from stages.model.labels import labels_in
from stages.model.loading import load_model, load_tokenizer, refuse_not_finite


def materialise(source: Path, folder: Path, dtype: str, template: str) -> None:
    """Load `source` (a folder or a GGUF file) and save it under `folder` with weights in `dtype`.

    `template` comes in place of the model's own chat template; an empty text leaves that. Raises UserError when it is
    no causal language model, holds NaN or infinity, or cannot be trained with the template.
    """
    tokenizer, model = _load(source, dtype)
    # Whoever serves the files as they are ends an answer where the template does: a model's own token can be another.
    model.generation_config.eos_token_id = set_template(tokenizer, template)
    _shed_marks(model)
    tokenizer.init_kwargs.pop("auto_map", None)
    _shed_byte_pieces(tokenizer)
    model.to(getattr(torch, dtype))  # checked after it is rounded: float16 has infinities that float32 has not
    refuse_not_finite(dict(model.named_parameters()), "the base model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _load(source: Path, dtype: str) -> tuple[Any, Any]:
    """The tokenizer and the model.

    A GGUF file is de-quantised to float32; rounding once, at the end, loses least. Safetensors are rounded as they are
    read, which saves a copy of four bytes a weight.
    """
    try:
        if source.is_dir():
            if labels_in(source):
                raise UserError(f"{source.name} has a classification head; name the model that it was made from")
            return load_tokenizer(source), load_model(source, dtype=getattr(torch, dtype), device_map=None)
        # Alone in a folder: transformers would also read what lies beside the file.
        with TemporaryDirectory() as alone, _gguf_read_once():
            folder, name = Path(alone), source.name
            (folder / name).symlink_to(source.resolve())
            options: dict[str, Any] = {"dtype": torch.float32, "device_map": None, "use_safetensors": None}
            tokenizer, model = load_tokenizer(folder, gguf_file=name), load_model(folder, gguf_file=name, **options)
            _set_special_tokens(tokenizer, folder / name)
            return tokenizer, model
    except UserError as error:
        raise UserError(f"model.source: {error}") from None
    except Exception as error:  # a broken file makes transformers raise what it likes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, which is not run; take a model whose kind transformers itself has"
        raise UserError(f"model.source: transformers cannot load {source.name}: {reason}") from None


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


def _shed_byte_pieces(tokenizer: Any) -> None:
    """Take back what says that words fall back on byte pieces where there are none.

    transformers 5.17 says it of byte-level tokenizers out of a GGUF file. It changes nothing there, but llguidance and
    llama.cpp take such a tokenizer for one of SentencePiece, whose tokens are other texts.
    """
    backend = tokenizer.backend_tokenizer
    if "<0x00>" in tokenizer.get_vocab() or "ByteLevel" not in str(backend.pre_tokenizer):
        return
    if getattr(backend.model, "byte_fallback", False):  # which BPE alone has
        backend.model.byte_fallback = False
    if "ByteFallback" in str(backend.decoder):
        backend.decoder = decoders.ByteLevel()


def _shed_marks(model: Any) -> None:
    """A model read from GGUF holds plain weights but still calls itself quantised; `auto_map` names code."""
    for holder, name in (
        (model.config, "quantization_config"),
        (model.config, "auto_map"),
        (model.config, "_model_name_or_path"),
        (model, "hf_quantizer"),
        (model, "is_quantized"),
        (model, "quantization_method"),
    ):
        if name in vars(holder):
            delattr(holder, name)


def set_template(tokenizer: Any, template: str) -> int:
    """Give the tokenizer the template, if there is one, and try whether it can be trained with what it then has.

    Returns the token that ends an answer. Saved with the tokenizer, the template goes into every release, so that
    whoever loads one renders prompts the same way. Raises UserError as `make_chat` does.
    """
    if template:
        tokenizer.chat_template = template
    try:
        stop_id = make_chat(tokenizer, "Answer.").stop_id
    except UserError as error:
        if template:
            raise UserError(f"model.chat_template: {error}") from None
        raise UserError(
            f"model.source: {error}; take an instruction-tuned model, or write a template and name its file in "
            "model.chat_template"
        ) from None
    if "strftime_now" in tokenizer.chat_template:
        print(
            "the chat template is changed: where it writes the date it now writes 26 July 2024, in each run and release"
        )
    return stop_id
