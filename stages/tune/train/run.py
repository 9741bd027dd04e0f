"""The stage in each of its processes: read, train from the newest checkpoint if there is one, write."""

import os
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from stages.core import paths
from stages.core.files import atomic, write_json
from stages.core.run_notes import measured
from stages.model.chat import Chat
from stages.model.loading import refuse_not_finite
from stages.params.loader import Params, load_params
from stages.records.record import Record, read_records, write_rows
from stages.tune.train import devices
from stages.tune.train.adapters import save_trained
from stages.tune.train.callbacks import Progress, Samples
from stages.tune.train.checkpoints import checkpoint_folder, last_complete, run_key
from stages.tune.train.engine import make_trainer
from stages.tune.train.examples import Examples, make_examples
from stages.tune.train.losses import summarise
from stages.tune.train.plan import Plan
from stages.tune.train.preflight import check, checked_chat


def train_stage() -> None:
    """What `python -m stages.tune.train` does, in one of its processes."""
    params = load_params("seed", "task.instruction", "task.instructions", "train")
    if params.train.deterministic:
        make_deterministic()
    devices.join()
    first = devices.rank() == 0
    if not first:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 the first speaks for all
    chat = checked_chat(params.task)
    train = make_examples(chat, read_records(paths.TRAIN), params.train.max_tokens)
    held = read_records(paths.VALIDATION)
    validation = make_examples(chat, held, params.train.max_tokens)
    check(chat, params.train, train, validation)

    folder = checkpoint_folder(run_key())
    notes: dict[str, object]
    with measured("train") if first else nullcontext(dict[str, object]()) as notes:
        trainer, samples = fit(params, chat, train, validation, held, folder)
        notes |= run_notes(trainer, train, params.train.batch_size)

    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_fsdp_enabled else None
    refuse_not_finite(weights or dict(trainer.model.named_parameters()), "the trained model")
    if first:
        with atomic(paths.ADAPTER) as partial:
            save_trained(trainer.model, chat.tokenizer, partial, weights)
        write_rows(paths.TRAINING_SAMPLES, samples.rows)
        write_json(paths.TRAIN_METRICS, summarise(trainer, train))
        shutil.rmtree(folder)
    devices.leave()


def fit(
    params: Params, chat: Chat, train: Examples, validation: Examples, held: list[Record], folder: Path
) -> tuple[Any, Samples]:
    """Train to the end, from the newest whole checkpoint in `folder` if there is one."""
    samples = Samples(chat, held[: params.train.sample_prompts], folder / "samples.jsonl")
    trainer = make_trainer(params, chat, train, validation, folder, samples)
    show(trainer.plan)
    checkpoint = newest_checkpoint(folder) if trainer.args.save_strategy != "no" else None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer, samples


def newest_checkpoint(folder: Path) -> Path | None:
    """What all processes agree to go on from; the first one clears away what was written by half."""
    if devices.rank():
        devices.wait_for_all()
        return last_complete(folder)
    checkpoint = last_complete(folder)
    devices.wait_for_all()
    if checkpoint:
        print(f"going on from {checkpoint}")
    return checkpoint


def show(plan: Plan) -> None:
    """Print what was chosen, and why."""
    print(f"train.engine: {plan.engine}")
    chosen = plan.described()
    for name, reason in chosen.pop("why").items():
        print(f"{name}: {chosen[name]} ({reason})")


def run_notes(trainer: Any, train: Examples, batch_size: int) -> dict[str, object]:
    """Speeds in tokens of rows a second, padding not counted; how it was computed, and on which card."""
    summary = next(entry for entry in reversed(trainer.state.log_history) if "train_runtime" in entry)
    tokens = train.tokens / len(train) * min(batch_size, len(train))  # of an optimiser step
    steps = trainer.state.global_step - getattr(trainer.state, "steps_before", 0)
    notes: dict[str, object] = {
        "trained_tokens_per_second": round(tokens * steps / summary["train_runtime"], 1),
        "devices": devices.count(),
        "computed": trainer.plan.described(),
    }
    progress = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Progress))
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
