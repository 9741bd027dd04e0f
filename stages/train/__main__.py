"""train: fine-tune the base model on the completions of data/train.jsonl; a killed run goes on where it was."""

import shutil
from pathlib import Path
from typing import Any

from stages import paths
from stages.chat import Chat, make_chat
from stages.environment import measured
from stages.errors import run
from stages.files import atomic, write_json
from stages.models import load_tokenizer, refuse_not_finite
from stages.params import Params, load_params
from stages.records import Record, read_records, write_rows
from stages.train.callbacks import Samples
from stages.train.checkpoints import checkpoint_folder, last_complete, run_key
from stages.train.examples import Examples, make_examples
from stages.train.save import save_adapter
from stages.train.summary import summarise
from stages.train.trainer import make_trainer


def main() -> None:
    params = load_params("generation", "seed", "task", "train")
    chat = make_chat(load_tokenizer(paths.BASE), params.task.instruction)
    train = make_examples(chat, read_records(paths.TRAIN), params.train.max_tokens)
    held = read_records(paths.VALIDATION)
    validation = make_examples(chat, held, params.train.max_tokens)
    print(f"{len(train)} rows to train on, {train.too_long} left out as longer than {params.train.max_tokens} tokens")

    folder = checkpoint_folder(run_key())
    with measured("train") as notes:
        trainer, samples = fit(params, chat, train, validation, held, folder)
        notes["trained_tokens_per_second"] = round(speed(trainer, train), 1)

    refuse_not_finite(dict(trainer.model.named_parameters()), "the trained model")
    with atomic(paths.ADAPTER) as partial:
        save_adapter(trainer.model, chat.tokenizer, partial)
    write_rows(paths.TRAINING_SAMPLES, samples.rows)
    write_json(paths.TRAIN_METRICS, summarise(trainer, train))
    shutil.rmtree(folder)


def fit(
    params: Params, chat: Chat, train: Examples, validation: Examples, held: list[Record], folder: Path
) -> tuple[Any, Samples]:
    """Train to the end, from the newest whole checkpoint in `folder` if there is one."""
    samples = Samples(chat, held[: params.train.sample_prompts], params.generation, folder / "samples.jsonl")
    trainer = make_trainer(params, chat, train, validation, folder, samples)
    checkpoint = last_complete(folder) if trainer.args.save_strategy != "no" else None
    if checkpoint:
        print(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer, samples


def speed(trainer: Any, train: Examples) -> float:
    """Tokens of rows trained on in a second of this process, padding not counted."""
    summary = next(entry for entry in reversed(trainer.state.log_history) if "train_runtime" in entry)
    return float(train.tokens * summary["epoch"] / summary["train_runtime"])


if __name__ == "__main__":
    run(main)
