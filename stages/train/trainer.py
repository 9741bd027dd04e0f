"""TRL's trainer, set up from the parameters."""

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from trl import SFTConfig

from stages import paths
from stages.chat import Chat
from stages.errors import UserError
from stages.models import compute_dtype
from stages.params import Params, Train
from stages.train.adalora import AdaLoraTrainer, AllocateRanks
from stages.train.adapters import adapter_config, load_trainable
from stages.train.callbacks import Curves, Progress, Samples, WholeCheckpoints
from stages.train.examples import Examples, assert_stop_token_trained
from stages.train.loss import CompletionTrainer

_LOG_EVERY = 5  # optimiser steps between the points of the training curve


def make_trainer(
    params: Params, chat: Chat, train: Examples, validation: Examples, folder: Path, samples: Samples
) -> CompletionTrainer:
    """A trainer whose batches are checked to teach the stop token.

    Raises:
        UserError: when no row is left to train or to validate on, or the stop token is masked out.
    """
    _refuse_empty(train, validation, params.train)
    settings = params.train
    adaptive = settings.method != "full" and settings.adapter == "adalora"
    model = load_trainable(paths.BASE, settings)
    steps = optimiser_steps(len(train), settings)
    callbacks: list[TrainerCallback] = [samples, Curves(), Progress(), WholeCheckpoints()]
    if settings.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=settings.early_stopping_patience))
    if adaptive:
        callbacks.append(AllocateRanks())
    trainer = (AdaLoraTrainer if adaptive else CompletionTrainer)(
        model=model,
        args=_arguments(settings, params.seed, folder, steps, bool(len(validation)), adaptive),
        train_dataset=_dataset(train),
        eval_dataset=_dataset(validation) if len(validation) else None,
        processing_class=chat.tokenizer,
        peft_config=adapter_config(settings, model.config.num_hidden_layers, steps),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    assert_stop_token_trained(trainer.data_collator, train, chat.stop_id)
    return trainer


def optimiser_steps(rows: int, settings: Train) -> int:
    """Steps of the whole run; the last step of an epoch may have fewer batches."""
    batches = math.ceil(rows / settings.batch_size)
    return math.ceil(math.ceil(batches / settings.accumulation) * settings.epochs)


def _refuse_empty(train: Examples, validation: Examples, settings: Train) -> None:
    if not len(train):
        raise UserError(
            f"{paths.TRAIN} leaves no row to train on ({train.too_long} are longer than train.max_tokens = "
            f"{settings.max_tokens}); add rows or raise train.max_tokens"
        )
    if settings.early_stopping_patience and not len(validation):
        raise UserError(
            "train.early_stopping_patience needs validation rows and there are none; "
            "raise split.validation_share or set the patience to null"
        )


def _dataset(examples: Examples) -> Dataset:
    return Dataset.from_dict({"input_ids": examples.input_ids, "labels": examples.labels})


def _arguments(settings: Train, seed: int, folder: Path, steps: int, validate: bool, adaptive: bool) -> SFTConfig:
    measure = {"eval_strategy": "steps", "eval_steps": settings.evaluate_every} if validate else {"eval_strategy": "no"}
    stop_early = settings.early_stopping_patience is not None
    keep: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": settings.evaluate_every,
        "save_total_limit": 2,  # the best and the last
        "load_best_model_at_end": stop_early,
        "metric_for_best_model": "eval_loss" if stop_early else None,
        "greater_is_better": False if stop_early else None,
        "restore_callback_states_from_checkpoint": True,
    }
    half = compute_dtype() == torch.bfloat16
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=round(steps * settings.warmup_share),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_gradient_norm,
        gradient_checkpointing=settings.gradient_checkpointing,
        max_length=None,  # rows over the limit were left out, not cut
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        bf16=half,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        logging_steps=_LOG_EVERY,
        logging_nan_inf_filter=False,  # a loss that is not a number must show
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        **measure,
        **({"save_strategy": "no"} if adaptive else keep),
    )
