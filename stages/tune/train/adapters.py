"""The model to train: what is frozen, what is adapted, in which precision; and how it is written."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from stages.core.errors import UserError
from stages.core.files import read_json, write_json
from stages.model.labels import labels_of
from stages.model.loading import causal_of, empty_model, load_model, nf4_config
from stages.params.model import Train

_ADAPTER_CONFIG = "adapter_config.json"


def load_trainable(
    base: Path, train: Train, precision: torch.dtype, seed: int, steps: int, sharding: bool, config: Any = None
) -> Any:
    """The base model as `train.method` wants it, with its adapter, if any; all that is trained is in float32.

    QLoRA has a base in 4 bit, full tuning float32 master weights. A model that is to be sharded is loaded beside the
    device, where it may not fit. `config` is that of a model with a classification head, which is trained, too.
    """
    options: dict[str, Any] = {"dtype": torch.float32 if train.method == "full" else precision}
    if sharding:
        options["device_map"] = {"": "cpu"}
    if train.method == "qlora":
        options["quantization_config"] = nf4_config(precision)
    if config is not None:
        options["config"] = config
        set_seed(seed)  # the head's first weights are drawn
    return with_adapter(load_model(base, **options), train, seed, steps)


def with_adapter(model: Any, train: Train, seed: int, steps: int) -> Any:
    """The model with its adapter, if any. Raises UserError when it lacks a layer of `train.layers_to_transform`."""
    if train.method == "full":
        return model
    from peft import get_peft_model

    set_seed(seed)  # the adapter's first weights are drawn
    layers, labels = model.config.get_text_config().num_hidden_layers, bool(labels_of(model))
    model = get_peft_model(model, adapter_config(train, layers, steps, "SEQ_CLS" if labels else "CAUSAL_LM"))
    for weight in model.parameters() if labels else ():
        if weight.requires_grad:  # PEFT leaves the head in the type of the base
            weight.data = weight.data.float()
    return model


def adapter_problems(base: Path, train: Train, steps: int) -> Iterator[str]:
    """What keeps the adapter from being put on the base model, in sentences; known from names and shapes alone.

    PEFT takes a list of which any name fits, and adapts a weight that another layer shares, which no merge can hold.
    """
    if train.method == "full":
        return
    if train.adaptive and steps < 3:
        yield f"train.adapter: adalora plans its ranks over at least 3 optimiser steps, and this run has {steps}"
        return
    model = empty_model(base)
    untrained = _not_to_adapt(model)
    linear = [name for name, layer in model.named_modules() if type(layer).__name__ in ("Linear", "Conv1D")]
    key, reason = "train.target_modules:", ""
    try:
        adapted = with_adapter(model, train, 0, steps).base_model.targeted_module_names
    except UserError as error:
        yield str(error)
        return
    except ValueError as error:  # none of the names fits, or one fits what no adapter can be put on
        reason = str(error)
        adapted = [name for name in linear if "not found" not in reason and _fits(name, train.target_modules)]
    if missing := [target for target in train.target_modules if not any(_fits(name, [target]) for name in adapted)]:
        names = ", ".join(sorted({name.rpartition(".")[2] for name in linear if name not in untrained}))
        where = f" in layers {train.layers_to_transform}" if train.layers_to_transform else ""
        yield f"{key} the base model has none of {', '.join(missing)}{where}; its layers have {names}"
    elif reason:
        yield f"{key} PEFT says: {reason}"
    for name in untrained.keys() & set(adapted):
        yield f"{key} {name} {untrained[name]}; leave it out"


def _fits(name: str, targets: Sequence[str]) -> bool:
    return any(f".{name}".endswith(f".{target}") for target in targets)


def _not_to_adapt(model: Any) -> dict[str, str]:
    """Names of layers that must have no adapter, and why."""
    owners: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(weight), []).append(name.rpartition(".")[0])
    reasons = {
        name: "is the output layer, whose adapter TRL does not train"
        for name, layer in model.named_modules()
        if layer is model.get_output_embeddings()
    }
    for names in owners.values():
        for name in names if len(names) > 1 else ():
            others = ", ".join(other for other in names if other != name)
            reasons[name] = f"shares its weight with {others}, so no adapter on it can be merged"
    return reasons


def adapter_config(train: Train, layers: int, steps: int, task_type: str = "CAUSAL_LM") -> Any:
    """PEFT's configuration of the adapter, for a model of so many layers and a run of so many optimiser steps."""
    from peft import AdaLoraConfig, LoraConfig

    common: dict[str, Any] = {
        "task_type": task_type,
        "lora_alpha": train.alpha,
        "lora_dropout": train.dropout,
        "target_modules": list(train.target_modules),
        "layers_to_transform": _layers(train.layers_to_transform, layers),
        "bias": "none",
    }
    if train.adapter == "adalora":
        # The budget falls between the first and the last fifth of the run (Zhang et al. 2023, arXiv 2303.10512).
        margin = max(1, steps // 5)
        return AdaLoraConfig(
            **common,
            init_r=train.rank + train.rank // 2,
            target_r=train.rank,
            tinit=margin,
            tfinal=margin,
            deltaT=max(1, steps // 50),
            total_step=steps,
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


class AllocateRanks(TrainerCallback):  # type: ignore[misc]
    """AdaLoRA: move the rank budget between layers after each optimiser step, while the gradients are still there.

    Its importance scores live in memory alone, and its rank schedule counts on the full number of steps. So an AdaLoRA
    run neither resumes nor stops early; a killed one starts again.
    """

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.base_model.update_and_allocate(state.global_step)


def orthogonality_penalty(model: Any) -> torch.Tensor:
    """AdaLoRA, equation 4: the mean over P and Q of the Frobenius norm of P'P - I and QQ' - I, times its weight."""
    weight = model.peft_config["default"].orth_reg_weight
    norms = []
    for name, factor in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = factor @ factor.T if "lora_A" in name else factor.T @ factor
            norms.append(torch.linalg.norm(product - torch.eye(len(product), device=product.device)))
    penalty: torch.Tensor = weight * torch.stack(norms).mean()
    return penalty


def save_trained(model: Any, tokenizer: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Save adapter weights, or all weights with the tokenizer where all were trained, as safetensors.

    The same weights give the same bytes. `weights` are those of a sharded model, gathered.
    """
    model.save_pretrained(folder, state_dict=weights)
    config = folder / _ADAPTER_CONFIG
    if not config.is_file():
        tokenizer.save_pretrained(folder)
        return
    if labels_of(causal_of(model)):
        causal_of(model).config.save_pretrained(folder)  # which has the labels
        # How QLoRA rounds the base is no part of it: the adapter goes onto the base in 16 bit, too.
        write_json(folder / "config.json", _without(read_json(folder / "config.json"), "quantization_config"))
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; the release writes a real one
    # PEFT keeps module names in sets, whose order changes from run to run.
    settings = read_json(config)
    write_json(config, {key: sorted(v) if _is_names(v) else v for key, v in sorted(settings.items())})


def _without(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
