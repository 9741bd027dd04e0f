"""Which engine trains: TRL's trainer, or the fused path where it is faster and has shown that it computes the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from trl import SFTConfig

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.core.machine import machine_settings
from stages.model.chat import Chat
from stages.model.loading import free_memory
from stages.params.loader import Params
from stages.params.model import Train
from stages.tune.train import devices
from stages.tune.train.adapters import AllocateRanks, load_trainable
from stages.tune.train.callbacks import Curves, Progress, Samples, StopsAtNaN, WholeCheckpoints, trackers
from stages.tune.train.completion_trainer import CompletionTrainer
from stages.tune.train.examples import Examples, SeededBatches, optimiser_steps
from stages.tune.train.fused.attention import can_pack
from stages.tune.train.fused.trainer import FusedTrainer, disagreement
from stages.tune.train.plan import Plan, choose_precision, choose_sharding, make_plan, rows_at_once

_LOG_EVERY, _POINTS = 5, 100  # optimiser steps between the points of the training curve; of a long run, the points


def make_trainer(
    params: Params, chat: Chat, train: Examples, validation: Examples, folder: Path, samples: Samples
) -> CompletionTrainer:
    """The trainer of the engine that `train.engine` names; its `plan` says what was chosen.

    Raises:
        UserError: when a setting is not possible with this model or on this machine.
        Refusal: when the fused engine was asked for and does not compute what TRL's trainer does.
    """
    settings = params.train
    steps = optimiser_steps(len(train), settings.batch_size, settings.epochs)
    precision = choose_precision(settings)
    sharding = choose_sharding(settings, machine_settings(), paths.BASE, devices.least(free_memory()))
    model = load_trainable(paths.BASE, settings, precision, params.seed, steps, sharding)
    if sharding:
        samples.records = []  # all processes together could ask it, and one cannot

    def build(engine: str) -> CompletionTrainer:
        beside = callbacks(settings, samples)
        trainer = build_trainer(
            engine, model, settings, params.seed, chat.tokenizer, train, validation, folder, beside, sharding
        )
        samples.around = trainer.answering
        return trainer

    obstacle, auto = fused_obstacle(settings, model, sharding), settings.engine == "auto"
    if settings.engine == "fused" and obstacle:
        raise UserError(f"train.engine: fused is not possible: {obstacle}; write auto or trl")
    if auto and obstacle and on_a_card():
        print(f"train.engine: TRL trains, since {obstacle}")
    if obstacle or settings.engine == "trl" or (auto and not on_a_card()):
        return build("trl")
    fused = cast(FusedTrainer, build("fused"))
    if (wrong := disagreement(fused)) is None:
        return fused
    if not auto:
        raise Refusal(f"the fused engine does not compute what TRL's trainer does: {wrong}; set train.engine to trl")
    print(f"train.engine: the fused path steps aside and TRL trains, since it computes something else: {wrong}")
    fused.unfuse()
    return build("trl")


def callbacks(settings: Train, samples: Samples) -> list[TrainerCallback]:
    """What happens beside the steps of a run."""
    beside: list[TrainerCallback] = [samples, Curves(), Progress(), StopsAtNaN(), WholeCheckpoints(), *trackers()]
    if settings.early_stopping_patience:
        beside.append(EarlyStoppingCallback(early_stopping_patience=settings.early_stopping_patience))
    if settings.adaptive:
        beside.append(AllocateRanks())
    return beside


def build_trainer(
    engine: str,
    model: Any,
    settings: Train,
    seed: int,
    tokenizer: Any,
    train: Examples,
    validation: Examples,
    folder: Path,
    beside: Sequence[TrainerCallback],
    sharding: bool = False,
) -> CompletionTrainer:
    """The trainer of one engine, `fused` or `trl`, around a loaded model; `beside` are its callbacks."""
    steps = optimiser_steps(len(train), settings.batch_size, settings.epochs)
    plan = make_plan(
        engine, settings, machine_settings(), model, train.lengths, steps, devices.least(free_memory()), sharding
    )
    batch = min(settings.batch_size, len(train))
    rows = batch if engine == "fused" else rows_at_once(plan, train.lengths, batch)
    accumulate = 1 if engine == "fused" else batch // (rows * devices.count())
    trainer = (FusedTrainer if engine == "fused" else CompletionTrainer)(
        train,
        validation,
        SeededBatches(train.lengths, batch, steps, seed),
        plan,
        model=model,
        args=training_arguments(settings, seed, folder, steps, len(validation) > 0, plan, rows, accumulate),
        processing_class=tokenizer,
        callbacks=list(beside),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def on_a_card() -> bool:
    return torch.cuda.is_available()


def fused_obstacle(train: Train, model: Any, sharding: bool) -> str | None:
    """Why the fused path cannot train this; None where it can."""
    config = model.config.get_text_config()
    if train.method != "full" and train.adapter != "lora":
        return f"the fused path has no {train.adapter}"
    if sharding:
        return "the base model does not fit on a device"
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return "the model chooses experts row by row"
    if getattr(config, "attention_dropout", None):
        return "the model drops attention scores"
    if obstacle := can_pack(config):
        return f"the model has {obstacle}"
    return None


def training_arguments(
    settings: Train, seed: int, folder: Path, steps: int, validate: bool, plan: Plan, rows: int, accumulate: int
) -> SFTConfig:
    """TRL's settings for `steps` optimiser steps of `accumulate` micro-batches of `rows` rows on each device.

    An adaptive adapter keeps no checkpoints.
    """
    shard = {"fsdp": True, "fsdp_config": {"reshard_after_forward": True}} if plan.sharding else {}
    trl = plan.engine == "trl"
    return SFTConfig(
        completion_only_loss=True,
        max_length=None,  # longer rows were left out
        padding_free=trl and plan.packing and rows > 1,
        per_device_eval_batch_size=rows,
        **schedule(settings, seed, folder, steps, validate, rows, accumulate, trl and plan.checkpointing),
        bf16=trl and plan.precision == torch.bfloat16,
        router_aux_loss_coef=None if settings.method == "full" else 0.0,
        **shard,
    )


def schedule(
    settings: Train,
    seed: int,
    folder: Path,
    steps: int,
    validate: bool,
    rows: int,
    accumulate: int,
    recompute: bool,
    best: str = "eval_loss",
) -> dict[str, Any]:
    """What all of TRL's trainers take: steps, learning rate, validations and checkpoints.

    The `best` measurement is the least, but for a reward.
    """
    stop_early = settings.early_stopping_patience is not None
    keep: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": settings.evaluate_every,
        "save_total_limit": 2,  # the best and the last
        "load_best_model_at_end": stop_early,
        "metric_for_best_model": best if stop_early else None,
        "greater_is_better": best.endswith("reward") if stop_early else None,
        "restore_callback_states_from_checkpoint": True,
    }
    measure = {"eval_strategy": "steps", "eval_steps": settings.evaluate_every} if validate else {"eval_strategy": "no"}
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulate,
        "gradient_checkpointing": recompute,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if recompute else None,
        "max_steps": steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.scheduler,
        "warmup_steps": round(steps * settings.warmup_share),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_gradient_norm,
        "use_cpu": not torch.cuda.is_available(),
        "seed": seed,
        "data_seed": seed,
        "logging_steps": max(_LOG_EVERY, steps // _POINTS),  # a card waits at each
        "logging_nan_inf_filter": False,  # a loss that is not a number must show
        "disable_tqdm": True,
        "report_to": "none",  # `Tracked` does
        "run_name": folder.name,  # the hash of all that decides the result
        **measure,
        **({"save_strategy": "no"} if settings.adaptive else keep),
    }
