"""Load the base model, an adapter on it, or a release's artefact; one place decides device, precision and format."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.core.files import atomic, read_json, tree_digest
from stages.core.run_notes import library_versions
from stages.model.labels import is_label_config, labels_in

_CPU = Path("/proc/cpuinfo")
# Whatever of this folder decides which numbers come out.
_CODE = [Path(__file__).with_name(f"{name}.py") for name in ("answers", "labels", "likelihoods", "loading")]
# A model that scales or caps its logits, or the states before them, says so under one of these names.
_SCALED_HEAD = ["final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling"]
_SCALED_HEAD += ["logits_mup_width_multiplier"]


def device() -> torch.device:
    """The card of this process, by number: a thread that loads weights has a current card of its own."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype(folder: Path = paths.BASE) -> torch.dtype:
    """bfloat16 where the card computes in it, and on a CPU that does where this model is stored so; else float32."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    with suppress(OSError, ValueError, AttributeError):
        config = read_json(folder / "config.json")
        if (config.get("dtype") or config.get("torch_dtype")) == "bfloat16" and cpu_has_bfloat16():
            return torch.bfloat16
    return torch.float32


@cache
def cpu_has_bfloat16() -> bool:
    """Whether it has instructions for products of bfloat16; without them 16 bit takes twice as long as 32."""
    with suppress(OSError):
        return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_CPU.read_text().split())
    return False


def free_memory() -> int | None:
    """Bytes that this process may still take on its card; None without one."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    allowed = int(total * torch.cuda.get_per_process_memory_fraction()) - torch.cuda.memory_allocated()
    return min(free + unused, allowed)


def load_tokenizer(folder: Path, **options: Any) -> Any:
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, folder, **options)


def load_model(folder: Path, **options: Any) -> Any:
    """A causal language model, or one with a head of labels, from safetensors, in evaluation mode on the device.

    Which of both, the folder's config.json says, or the option `config`.

    A quantised artefact is loaded as its own config.json says, and computes in the machine's type as every model does:
    config.json names the one of a card, which takes a CPU 3.7 times as long. Two kernels have a type of their own: INT8
    rounds its inputs in float16, and NF4 multiplies in bfloat16 on a CPU with AVX-512 BF16.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    labelled = is_label_config(options["config"]) if "config" in options else bool(labels_in(folder))
    kind = AutoModelForSequenceClassification if labelled else AutoModelForCausalLM
    options = {"dtype": compute_dtype(folder), "device_map": {"": device()}, "use_safetensors": True} | options
    with _without_bars(folder):
        model = _load(kind, folder, **options).eval()
        if compressor := getattr(getattr(model, "hf_quantizer", None), "compressor", None):
            # compressed-tensors does this before the first call of the whole model, and layers are called alone, too.
            compressor.decompress_model(model)
    for layer in model.modules() if "quantization_config" not in options else ():
        if hasattr(layer, "compute_dtype"):
            layer.compute_dtype = options["dtype"]
    return model


@contextmanager
def _without_bars(folder: Path) -> Iterator[None]:
    """compressed-tensors draws four progress bars, and has no switch for them.

    Raises UserError when the model in `folder` is of that kind and the package is not installed.
    """
    settings = (
        read_json(folder / "config.json").get("quantization_config") if (folder / "config.json").exists() else None
    )
    if (settings or {}).get("quant_method") != "compressed-tensors":
        yield
        return
    need_compressed_tensors()
    with redirect_stderr(io.StringIO()):
        yield


def need_compressed_tensors() -> None:
    """Raises UserError when the package compressed-tensors is not installed."""
    if not find_spec("compressed_tensors"):
        raise UserError(
            "quantize.formats: compressed_tensors needs a package: pip install 'tunetrail[compressed]'; or take it out"
        )


def empty_model(folder: Path) -> Any:
    """The model's layers, their names and shapes; no weight is read."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if labels_in(folder) else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(_load(AutoConfig, folder))
    model.tie_weights()
    return model


def has_tied_embeddings(folder: Path) -> bool:
    """Whether the model reads and writes tokens with one matrix."""
    from transformers import AutoConfig

    return bool(_load(AutoConfig, folder).get_text_config().tie_word_embeddings)


def _load(kind: Any, folder: Path, **options: Any) -> Any:
    """The one place where transformers reads a model's files: no code of theirs runs, nothing elsewhere is read."""
    from transformers.utils.logging import disable_progress_bar

    torch.backends.cuda.enable_cudnn_sdp(False)  # its attention plans anew for each length of keys: seconds, on an H100
    disable_progress_bar()  # what the environment says is too late where torch has loaded tqdm before
    refuse_foreign_files(folder)
    return kind.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **options)


def refuse_foreign_files(folder: Path) -> None:
    """Raises UserError when the model's own files name others: pickled weights, a file elsewhere, another model."""
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} is an adapter on another model (it has adapter_config.json); name a whole model")
    for file in [*folder.glob("*config.json"), *folder.glob("*.index.json")]:
        try:
            content = read_json(file)
            weights = set(content.get("weight_map", {}).values())
            names = weights | set(content.get("fast_tokenizer_files", ()))
            names |= {content["transformers_weights"]} if content.get("transformers_weights") else set()
            outside = sorted(name for name in names if Path(name).name != name or not (folder / name).is_file())
            pickled = sorted(name for name in weights if not name.endswith(".safetensors"))
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{file} is no JSON object of the kind that transformers writes") from None
        if pickled:
            raise UserError(f"{file} names {pickled[0]}, which is no safetensors file; pickled weights are not loaded")
        if outside:
            raise UserError(f"{file} names {outside[0]}, which is not in the folder; nothing else is read")


def load_tuned(base: Path, adapter: Path, **options: Any) -> Any:
    """The base model with the adapter on it; the tuned model itself where all weights were trained.

    A base that a `quantization_config` rounds comes back to `dtype` before: the numbers that QLoRA trained on.
    """
    if not (adapter / "adapter_config.json").is_file():
        return load_model(adapter, **options)
    from peft import PeftModel
    from transformers import AutoConfig

    if labels_in(adapter):  # beside the adapter lies the configuration with the labels of its head
        options["config"] = AutoConfig.from_pretrained(adapter, trust_remote_code=False, local_files_only=True)
    model = load_model(base, **options)
    if "quantization_config" in options:
        model = model.dequantize(options["dtype"])
    return PeftModel.from_pretrained(model, adapter, use_safetensors=True).eval()


def nf4_config(precision: torch.dtype, kept: Sequence[str] | None = None, double: bool = True) -> Any:
    """4-bit NormalFloat with double quantisation (Dettmers et al. 2023, arXiv 2305.14314, section 3).

    QLoRA trains on it and the NF4 artefact ships in it; layers compute in `precision`. Layers named in `kept` are not
    quantised; without any names the output layer is not, which names come in place of.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=precision,
        llm_int8_skip_modules=kept,
    )


def int8_config(kept: Sequence[str] | None = None) -> Any:
    """LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339): outlier columns stay in 16 bit; `kept` as for NF4."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)


class Weights:
    """The model in `folder`, with `adapter` on it where one is named: known by content, loaded only when needed.

    `spent` collects, for each call that used the model, what it took: for metrics/env/.
    """

    def __init__(self, folder: Path, adapter: Path | None = None) -> None:
        self.folder, self.adapter = folder, adapter
        self.spent: dict[str, dict[str, Any]] = {}

    @cached_property
    def identity(self) -> dict[str, str | None]:
        """What decides the model's answers: the hashes of all its files, and how this machine computes."""
        return {
            "model": tree_digest(self.folder),
            "adapter": tree_digest(self.adapter) if self.adapter else None,
            "precision": str(compute_dtype(self.folder)),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        }

    @cached_property
    def labels(self) -> list[str]:
        """Of a model with a classification head: it says one of them, whatever it is asked."""
        return labels_in(self.adapter or self.folder)

    @cached_property
    def model(self) -> Any:
        return load_tuned(self.folder, self.adapter) if self.adapter else load_model(self.folder)


def remember(request: dict[str, Any], compute: Callable[[], list[Any]]) -> tuple[list[Any], bool]:
    """What `compute` returns for this request, and whether it was known. Both are JSON values, `request` in full.

    A killed process leaves no half file under a name that is read, and processes with the same request do not
    disturb each other.
    """
    made_of = {**request, "code": [tree_digest(path) for path in _CODE], "libraries": library_versions()}
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    path = paths.of_checkout(paths.GENERATIONS_MEMORY) / f"{key}.json"
    with suppress(FileNotFoundError, ValueError):
        if isinstance(known := json.loads(path.read_bytes()), list):
            return known, True
    result = compute()
    with atomic(path) as partial:
        partial.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    return result, False


def causal_of(model: Any) -> Any:
    """The causal language model itself, with what PEFT put into its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_is_plain(causal: Any) -> bool:
    """Whether the logits are the output embedding of the last hidden state, neither scaled nor capped."""
    config = causal.config.get_text_config()
    return not any(getattr(config, name, None) for name in _SCALED_HEAD)


def bytes_a_token(causal: Any) -> int:
    """Memory of one token's keys and values in all layers."""
    config = causal.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * causal.dtype.itemsize)


def refuse_not_finite(tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Raises Refusal that names the tensors when one holds NaN or infinity."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    # The least and the greatest hand NaN on, and take a twentieth of the time of isfinite() on every weight.
    bad = [name for name, tensor in floats.items() if not torch.stack(tensor.aminmax()).isfinite().all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise Refusal(f"{what} holds NaN or infinity in {', '.join(bad[:3])}{more}; it must not be used")
