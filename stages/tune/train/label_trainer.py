"""train.head: label, a classification head on the base model, trained by transformers' Trainer on the same batches."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, TrainingArguments

from stages.core import paths
from stages.core.errors import UserError, names
from stages.core.machine import machine_settings
from stages.model.chat import Chat
from stages.model.labels import label_config
from stages.model.loading import free_memory
from stages.params.loader import Params
from stages.records.record import Record
from stages.tune.train import devices
from stages.tune.train.adapters import load_trainable
from stages.tune.train.callbacks import Samples
from stages.tune.train.completion_trainer import SeededRows
from stages.tune.train.engine import callbacks, schedule
from stages.tune.train.examples import Examples, SeededBatches, optimiser_steps
from stages.tune.train.plan import Plan, choose_precision, choose_sharding, make_plan, rows_at_once


def labels_to_learn(train: Sequence[Record]) -> list[str]:
    """The completions of the training rows, in order: each is a label of the head."""
    return sorted({record.completion for record in train})


def label_problems(train: Sequence[Record], validation: Sequence[Record]) -> Iterator[str]:
    """What keeps rows from being learnt by a head of labels, in sentences."""
    completions: dict[str, set[str]] = {}
    for record in train:
        if record.label is not None:
            completions.setdefault(record.label, set()).add(record.completion)
    if several := [f"{label} ({len(said)})" for label, said in completions.items() if len(said) > 1]:
        yield (
            "train.head: label needs that each label has exactly one completion in the training rows; more have "
            f"{names(several)}: write train.head: completion"
        )
    known = labels_to_learn(train)
    if len(known) < 2:
        yield f"train.head: label needs rows of two labels at least, and the training rows have {len(known)}"
    if unknown := {record.completion for record in validation} - {*known}:
        yield (
            f"rows of {paths.VALIDATION} have labels without a training row: {names(sorted(unknown))}; add rows, or "
            "write train.head: completion"
        )


class LabelTrainer(SeededRows):
    """transformers' Trainer with the rows in the seeded order; the loss is the mean over rows, however they are cut."""

    def __init__(
        self, train: Examples, validation: Examples, batches: SeededBatches, plan: Plan, pad: int, **options: Any
    ) -> None:
        self.batches, self.plan, self._pad = batches, plan, pad
        super().__init__(
            train_dataset=_rows(train),
            eval_dataset=_rows(validation) if len(validation) else None,
            data_collator=self._padded,
            **options,
        )
        self.model_accepts_loss_kwargs = False  # micro-batches have equally many rows: their mean is that of the batch

    def _padded(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """On the right, where no token that counts sees it: the model looks back alone, and needs no mask."""
        ids = pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True, padding_value=self._pad)
        return {"input_ids": ids, "labels": torch.tensor([row["labels"] for row in rows])}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        output = model(input_ids=inputs["input_ids"])
        loss = torch.nn.functional.cross_entropy(output.logits.float(), inputs["labels"])
        return (loss, output) if return_outputs else loss


def _rows(examples: Examples) -> list[dict[str, Any]]:
    return [{"input_ids": ids, "labels": n} for ids, n in zip(examples.input_ids, examples.labels, strict=True)]


def make_label_trainer(
    params: Params,
    chat: Chat,
    train: Examples,
    validation: Examples,
    labels: Sequence[str],
    folder: Path,
    samples: Samples,
) -> LabelTrainer:
    """The trainer of a head of these labels, on the adapted or whole base model.

    Raises UserError when transformers has no head for the base's kind, or the model does not fit on a device.
    """
    settings, machine = params.train, machine_settings()
    steps = optimiser_steps(len(train), settings.batch_size, settings.epochs)
    precision = choose_precision(settings)
    if choose_sharding(settings, machine, paths.BASE, devices.least(free_memory())):
        raise UserError(
            "train.head: label trains a model that fits on a device; set the machine setting sharding to false, or "
            "write train.method: qlora"
        )
    ends = {ids[-1] for ids in (*train.input_ids, *validation.input_ids)}
    tokens = (chat.tokenizer.pad_token_id, chat.stop_id, *range(len(chat.tokenizer)))
    pad = next(token for token in tokens if token is not None and token not in ends)
    config = label_config(paths.BASE, labels, pad)
    model = load_trainable(paths.BASE, settings, precision, params.seed, steps, sharding=False, config=config)
    plan = replace(
        make_plan("trl", settings, machine, model, train.lengths, steps, devices.least(free_memory())),
        engine="transformers",
        packing=False,
    )
    batch = min(settings.batch_size, len(train))
    rows = rows_at_once(plan, train.lengths, batch)
    accumulate, validate = batch // (rows * devices.count()), len(validation) > 0
    arguments = TrainingArguments(
        per_device_eval_batch_size=rows,
        prediction_loss_only=True,
        label_names=["labels"],
        remove_unused_columns=False,
        bf16=plan.precision == torch.bfloat16,
        **schedule(settings, params.seed, folder, steps, validate, rows, accumulate, plan.checkpointing),
    )
    trainer = LabelTrainer(
        train,
        validation,
        SeededBatches(train.lengths, batch, steps, params.seed),
        plan,
        pad,
        model=model,
        args=arguments,
        processing_class=chat.tokenizer,
        callbacks=callbacks(settings, samples),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
