"""The files that ship: base and adapter merged, and the merged model quantised."""

from pathlib import Path
from typing import Literal

import torch

from stages.core.files import atomic
from stages.model.loading import int8_config, load_model, load_tokenizer, load_tuned, nf4_config, refuse_not_finite


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


def quantise(merged: Path, target: Path, form: Literal["nf4", "int8"]) -> None:
    """Quantise the merged model once with bitsandbytes; what is not quantised keeps its 16 bit."""
    # The compute type is that of the machine that serves; 16 bit is right on a GPU, and slow but right elsewhere.
    config = nf4_config(torch.bfloat16) if form == "nf4" else int8_config()
    model = load_model(merged, quantization_config=config, dtype="auto")
    with atomic(target) as partial:
        model.save_pretrained(partial)
        load_tokenizer(merged).save_pretrained(partial)
