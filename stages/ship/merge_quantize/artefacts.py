"""The files that ship: base and adapter merged, and the merged model quantised."""

from pathlib import Path
from typing import Literal

import torch

from stages.core.files import atomic
from stages.model.loading import int8_config, load_model, load_tokenizer, load_tuned, nf4_config, refuse_not_finite
from stages.params.model import Nf4


def merge(base: Path, adapter: Path, target: Path, dtype: str) -> None:
    """Add the adapter to the unquantised base in float32 and round once to `dtype`.

    Raises:
        Refusal: when a weight is NaN or infinite; nothing is written then.
    """
    model = load_tuned(base, adapter, dtype=torch.float32, device_map={"": "cpu"})
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    # Rounded first: a weight that float32 holds can be infinite in float16.
    model = model.to(getattr(torch, dtype))
    refuse_not_finite(model.state_dict(), "the merged model")
    with atomic(target) as partial:
        model.save_pretrained(partial)
        load_tokenizer(base).save_pretrained(partial)


def quantise(merged: Path, target: Path, form: Literal["nf4", "int8"], nf4: Nf4 | None = None) -> None:
    """Quantise the merged model once with bitsandbytes; what is not quantised keeps its 16 bit.

    `nf4` says which layers that is, beside the output layer; config.json repeats it for whoever loads the file.
    """
    if form == "nf4":
        nf4 = nf4 or Nf4()
        kept = [*nf4.keep_in_16_bit, *_output_layers(merged)]
        # The compute type is that of the machine that serves; 16 bit is right on a GPU, and slow but right elsewhere.
        config = nf4_config(torch.bfloat16, kept, nf4.double_quantisation)
    else:
        config = int8_config()
    model = load_model(merged, quantization_config=config, dtype="auto")
    with atomic(target) as partial:
        model.save_pretrained(partial)
        load_tokenizer(merged).save_pretrained(partial)


def _output_layers(folder: Path) -> list[str]:
    """The names under which the model has its output embedding; its weights are not loaded for that."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head]
