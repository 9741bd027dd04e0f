"""The stage in each of its processes: read, train from the newest checkpoint if there is one, write."""

import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils.constants import FSDP_MODEL_NAME

from stages.core import paths
from stages.core.dependencies import confirm
from stages.core.errors import UserError
from stages.core.files import atomic, write_json
from stages.core.run_notes import measured
from stages.model.loading import refuse_not_finite
from stages.params.loader import load_params
from stages.records.record import read_records, write_rows
from stages.tune.train import devices, machines
from stages.tune.train.adapters import save_trained
from stages.tune.train.callbacks import (
    Progress,
    Samples,
    Tracked,
    checkpoint_folder,
    newest_checkpoint,
    run_key,
    run_state,
)
from stages.tune.train.engine import make_trainer
from stages.tune.train.examples import Examples, make_examples
from stages.tune.train.label_trainer import label_problems, labels_to_learn, make_label_trainer
from stages.tune.train.preflight import check, checked_chat

# A validation loss is called worse, and a plateau flat, beyond this share of its value.
_TOLERANCE = 0.02
_SPIKE = 2.0


def train_stage() -> None:
    """What `python -m stages.tune.train` does, in one of its processes."""
    params = load_params("seed", "task.instruction", "task.instructions", "train")
    if params.train.deterministic:
        make_deterministic()
    state = run_state()
    devices.join(state | devices.plans_by())
    first = devices.rank() == 0
    if not first:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 the first speaks for all
    chat = checked_chat(params.task)
    rows, held = read_records(paths.TRAIN), read_records(paths.VALIDATION)
    labels = labels_to_learn(rows) if params.train.head == "label" else []
    train, validation = (make_examples(chat, some, params.train.max_tokens, labels) for some in (rows, held))
    check(chat, params.train, train, validation, [*label_problems(rows, held)] if labels else ())

    folder = checkpoint_folder(run_key(state))
    samples = Samples(chat, held[: params.train.sample_prompts])
    notes: dict[str, object]
    with measured("train") if first else nullcontext(dict[str, object]()) as notes:
        trainer: Any
        if labels:
            trainer = make_label_trainer(params, chat, train, validation, labels, folder, samples)
        else:
            trainer = make_trainer(params, chat, train, validation, folder, samples)
        chosen = trainer.plan.described()
        print(f"train.engine: {chosen.pop('engine')} (" + ", ".join(f"{k}: {v}" for k, v in chosen.items()) + ")")
        checkpoint = newest_checkpoint(folder) if trainer.args.save_strategy != "no" else None
        if checkpoint and first:
            samples.go_on_from(Path(checkpoint))
        if checkpoint and Path(checkpoint, f"{FSDP_MODEL_NAME}.bin").is_file() != trainer.is_fsdp_enabled:
            raise UserError(
                f"the checkpoint in {folder} was written {'without' if trainer.is_fsdp_enabled else 'with'} sharding; "
                f"set the machine setting sharding to {str(not trainer.is_fsdp_enabled).lower()} to go on from it, on "
                "any number of devices that can, or delete that folder to begin anew"
            )
        trainer.train(resume_from_checkpoint=checkpoint)
        notes |= run_notes(trainer, train, params.train.batch_size)

    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_fsdp_enabled else None
    # Only the first process has the gathered weights, and looking into a shard would wait for all of them.
    refuse_not_finite(dict(trainer.model.named_parameters()) if weights is None else weights, "the trained model")
    if first:
        with atomic(paths.SFT) as partial:
            save_trained(trainer.model, chat.tokenizer, partial, weights)
        write_rows(paths.TRAINING_SAMPLES, samples.rows)
        head = {"head": "label", "labels": len(labels)} if labels else {}
        write_json(paths.TRAIN_METRICS, {**head, **summarise(trainer, train)})
        for tracked in (one for one in trainer.callback_handler.callbacks if isinstance(one, Tracked)):
            tracked.remember(paths.SFT)
        confirm()  # a run that is refused for what changed meanwhile must be able to go on from here
    PartialState().wait_for_everyone()  # who trained along ends well only where all was written
    if first or (machines.number() and machines.leads()):
        shutil.rmtree(folder)
    if machines.number() and machines.leads():
        print("train: trained along; the first has the outputs", file=sys.stderr)
    PartialState().destroy_process_group()


def run_notes(trainer: Any, train: Examples, batch_size: int) -> dict[str, object]:
    """Speeds in tokens of rows a second, padding not counted; how it was computed, and on which card."""
    summary = next(entry for entry in reversed(trainer.state.log_history) if "train_runtime" in entry)
    progress = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Progress))
    tokens = train.tokens / len(train) * min(batch_size, len(train))  # of an optimiser step
    steps = trainer.state.global_step - progress.first
    notes: dict[str, object] = {
        "trained_tokens_per_second": round(tokens * steps / summary["train_runtime"], 1),
        "devices": devices.count(),
        "computed": trainer.plan.described(),
    }
    if rate := progress.steps_per_second():
        notes["late_tokens_per_second"] = round(rate * tokens, 1)
    if agreement := getattr(trainer, "agreement", None):
        notes["relative_difference_to_trl"] = agreement
    if torch.cuda.is_available():
        notes["card"] = torch.cuda.get_device_name()
        notes["peak_card_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20
    return notes


def make_deterministic() -> None:
    """Let torch take only kernels that add up in the same order every time."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when the first matrix product runs
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def summarise(trainer: Any, train: Examples) -> dict[str, Any]:
    """metrics/train.json; losses are means over completion tokens, or over rows by a head of labels, in nats."""
    return {
        "rows": {"train": len(train), "left_out_too_long": len(train.left_out)},
        "tokens": {"total": train.tokens, "trained": train.trained_tokens},
        **outcome(trainer, trainer.state.log_history),
    }


def outcome(trainer: Any, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was trained, how the losses of the trainer's log went, and warnings read off their curves."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in trainer.model.parameters()]
    loss = {"train_first": losses[0], "train_last": losses[-1]} if losses else {}
    if validation:
        loss |= {
            "validation_first": validation[0],
            "validation_best": min(validation),
            "validation_last": validation[-1],
        }
    best = trainer.state.best_global_step
    return {
        "parameters": {"trainable": sum(n for n, trained in sizes if trained), "all": sum(n for n, _ in sizes)},
        "steps": trainer.state.global_step,
        "loss": loss,
        "red_flags": red_flags(losses, validation),
        **({"best_step": best} if best else {}),
    }


def red_flags(train: Sequence[float], validation: Sequence[float]) -> dict[str, int]:
    """1 for each warning that the curves give, else 0.

    overfitting: validation rose by over 2 % above its best for two measurements in a row while training fell;
    plateau: training in the second half of the run improved by under 2 %, short of zero loss;
    unstable: a loss that is not finite, or twice the mean of the five before it.
    """
    if not all(map(math.isfinite, [*train, *validation])):
        return {"overfitting": 0, "plateau": 0, "unstable": 1}
    overfitting = plateau = False
    if len(validation) >= 3 and len(train) >= 2:
        best = min(validation)
        worse = [loss > best * (1 + _TOLERANCE) for loss in validation[validation.index(best) :]]
        overfitting = train[-1] < train[0] and any(a and b for a, b in pairwise(worse))
    if quarter := len(train) // 4 if len(train) >= 8 else 0:
        middle, end = (sum(part) / quarter for part in (train[2 * quarter : 3 * quarter], train[-quarter:]))
        plateau = end > middle * (1 - _TOLERANCE) and end > 0.1
    # Near zero loss, doubling is noise of single rows.
    unstable = any(train[i] > _SPIKE * max(sum(train[i - 5 : i]) / 5, 0.1) for i in range(5, len(train)))
    return {"overfitting": int(overfitting), "plateau": int(plateau), "unstable": int(unstable)}
