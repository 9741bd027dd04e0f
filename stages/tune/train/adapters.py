"""The model to train: what is frozen, what is adapted, in which precision."""

from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig
from transformers import BitsAndBytesConfig

from stages.core.errors import UserError
from stages.model.loading import load_model
from stages.params import Train


def load_trainable(base: Path, train: Train, precision: torch.dtype, sharding: bool = False) -> Any:
    """The base model as `train.method` wants it: NF4 for QLoRA, float32 master weights for full training.

    One that is to be sharded is loaded beside the device, where it may not fit.
    """
    if sharding:
        return load_model(base, dtype=precision, device_map={"": "cpu"})
    if train.method == "qlora":
        return load_model(base, dtype=precision, quantization_config=nf4_config(precision))
    return load_model(base, dtype=torch.float32 if train.method == "full" else precision)


def nf4_config(precision: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NormalFloat with double quantisation (Dettmers et al. 2023, arXiv 2305.14314, section 3)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=precision,
    )


def adapter_config(train: Train, layers: int, total_steps: int) -> PeftConfig | None:
    """The PEFT configuration, or None where all weights are trained.

    Raises:
        UserError: when `train.layers_to_transform` names layers that the model does not have.
    """
    if train.method == "full":
        return None
    common: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "lora_alpha": train.alpha,
        "lora_dropout": train.dropout,
        "target_modules": list(train.target_modules),
        "layers_to_transform": _layers(train.layers_to_transform, layers),
        "bias": "none",
    }
    if train.adapter == "adalora":
        # The budget falls between the first and the last fifth of the run (Zhang et al. 2023, arXiv 2303.10512).
        margin = max(1, total_steps // 5)
        return AdaLoraConfig(
            **common,
            init_r=train.rank + train.rank // 2,
            target_r=train.rank,
            tinit=margin,
            tfinal=margin,
            deltaT=max(1, total_steps // 50),
            total_step=total_steps,
        )
    return LoraConfig(**common, r=train.rank, use_dora=train.adapter == "dora")


def _layers(text: str | None, layers: int) -> list[int] | None:
    if text is None:
        return None
    first, last = (int(part) for part in text.split("-"))
    if last >= layers:
        raise UserError(
            f"train.layers_to_transform: {text} is not allowed: the base model has layers 0-{layers - 1}; "
            "write such a range, or null for all"
        )
    return list(range(first, last + 1))
