"""The stage where an objective is set: rows, a trainer of TRL from the newest checkpoint if there is one, outputs."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import EarlyStoppingCallback, PrinterCallback

from stages.core import paths
from stages.core.dependencies import confirm
from stages.core.errors import UserError
from stages.core.files import atomic, read_json, tree_digest, write_json
from stages.core.run_notes import measured
from stages.model.answers import answer
from stages.model.chat import Chat, task_chat
from stages.model.loading import Weights, load_model, load_tokenizer, refuse_not_finite
from stages.params.loader import Params, load_params
from stages.params.model import Generation, Train
from stages.records.record import REPLAY, Dropped, Record, rank, read_records, write_dropped, write_rows
from stages.text.json_schema import Tasks
from stages.tune.prefer.objectives import Row, load_sft, make_objective, rewards
from stages.tune.prefer.preference_rows import Preference, apart_from, held_back, read_preferences
from stages.tune.train import devices
from stages.tune.train.adapters import save_trained
from stages.tune.train.callbacks import (
    Curves,
    Progress,
    Samples,
    StopsAtNaN,
    Tracked,
    WholeCheckpoints,
    checkpoint_folder,
    newest_checkpoint,
    run_key,
    trackers,
)
from stages.tune.train.engine import build_trainer
from stages.tune.train.examples import make_examples
from stages.tune.train.plan import choose_precision
from stages.tune.train.preflight import checked_chat
from stages.tune.train.run import make_deterministic, outcome

# TRL's name of a measurement at a validation, and ours.
_MEASURED = {
    "eval_rewards/margins": "margin",
    "eval_rewards/accuracies": "preferred",
    "eval_reward": "reward",
    "eval_frac_reward_zero_std": "alike",
    "eval_completions/clipped_ratio": "cut_off",
}


@dataclass(frozen=True)
class Lesson:
    """Rows to learn from and rows to measure with, as the objective's trainer takes them; `left_out` by reason."""

    train: Sequence[Any]
    validation: Sequence[Any]
    left_out: dict[str, int]
    quarantined: list[Dropped] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)  # of GRPO, by the number in the rows' column `row`


def go_beyond() -> None:
    """What `python -m stages.tune.prefer` does where `prefer.objective` is not sft."""
    params = load_params("dedup.threshold", "prefer", "seed", "task", "train")
    prefer = params.prefer
    if params.train.adaptive:
        raise UserError("prefer.objective: adalora plans its ranks over one run; set train.adapter to lora or dora")
    if params.train.deterministic:
        make_deterministic()
    devices.join()
    chat = checked_chat(params.task)
    shared = ("learning_rate", "epochs", "batch_size", "evaluate_every", "early_stopping_patience")
    settings = params.train.model_copy(update={key: getattr(prefer, key) for key in shared})
    like = prefer.objective == "distil" and same_vocabulary(checked_teacher(params), chat)
    lesson = make_lesson(params, chat, like)
    write_dropped(paths.PREFERENCES_LEFT_OUT, lesson.quarantined)
    left = ", ".join(f"{count} {reason}" for reason, count in lesson.left_out.items() if count) or "none"
    print(
        f"{prefer.objective}: {len(lesson.train)} rows to learn from, {len(lesson.validation)} held back; not: {left}"
    )
    if not lesson.train:
        raise UserError(f"prefer.objective: {prefer.objective} has no row to learn from; see docs/preferences.md")
    if not lesson.validation and prefer.early_stopping_patience is not None:
        raise UserError(
            "prefer.early_stopping_patience needs rows that are held back and there are none; raise "
            "prefer.validation_share or split.validation_share, or set the patience to null"
        )
    folder = checkpoint_folder(run_key("prefer"))
    samples = Samples(chat, read_records(paths.VALIDATION)[: params.train.sample_prompts])
    with measured("prefer") as notes:
        trainer = _trainer(params, settings, chat, lesson, like, folder, samples)
        if checkpoint := newest_checkpoint(folder):
            samples.go_on_from(Path(checkpoint))
        # What the SFT model is worth is where the run begins; one that goes on has measured it.
        trainer.args.eval_on_start = bool(lesson.validation) and not checkpoint
        trainer.train(resume_from_checkpoint=checkpoint)
        notes |= {"steps": trainer.state.global_step, "computed": {"micro_batch": trainer.args.train_batch_size}}
    model = trainer.model
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")  # the SFT model, which DPO and KTO hold beside it
    refuse_not_finite(dict(model.named_parameters()), "the trained model")
    with atomic(paths.ADAPTER) as partial:
        save_trained(model, chat.tokenizer, partial)
    write_rows(paths.PREFERENCE_SAMPLES, samples.rows)
    write_json(paths.PREFER_METRICS, summarise(prefer.objective, trainer, lesson))
    for tracked in (one for one in trainer.callback_handler.callbacks if isinstance(one, Tracked)):
        tracked.remember(paths.ADAPTER)
    confirm()
    shutil.rmtree(folder)
    PartialState().destroy_process_group()


def _trainer(
    params: Params, settings: Train, chat: Chat, lesson: Lesson, like: bool, folder: Path, samples: Samples
) -> Any:
    prefer, seed = params.prefer, params.seed
    curves = Curves(paths.PREFER / "curves")
    beside: list[Any] = [samples, curves, Progress(), StopsAtNaN(), WholeCheckpoints(), *trackers()]
    if prefer.early_stopping_patience:
        beside.append(EarlyStoppingCallback(early_stopping_patience=prefer.early_stopping_patience))
    if prefer.objective == "distil" and not like:  # the teacher's answers are rows as any others
        examples = (make_examples(chat, rows, settings.max_tokens) for rows in (lesson.train, lesson.validation))
        return build_trainer("trl", load_sft(settings), settings, seed, chat.tokenizer, *examples, folder, beside)
    teacher = load_model(Path(prefer.teacher or ""), dtype=choose_precision(settings)) if like else None
    contract = rewards(lesson.records, Tasks(params.task), chat) if lesson.records else None
    rows = lesson.train, lesson.validation
    trainer = make_objective(prefer, settings, seed, chat, *rows, folder, beside, teacher, contract)
    trainer.remove_callback(PrinterCallback)
    return trainer


def make_lesson(params: Params, chat: Chat, like: bool) -> Lesson:
    """The rows of the objective. Raises UserError for rows that the model could not learn as they are."""
    prefer, limit = params.prefer, params.train.max_tokens
    if prefer.objective in ("dpo", "kto"):
        given = read_preferences(paths.PREFERENCES)
        kept, near = apart_from(read_records(paths.HOLDOUT), given, params.dedup.threshold)
        usable = [row for row in kept if prefer.objective == "kto" or row.rejected is not None]
        parts = held_back(usable, prefer.validation_share, params.seed)
        encode = _pairs if prefer.objective == "dpo" else _thumbs
        wanted = [row for part in parts for row in part]
        _refuse_faults(chat, [row.record for row in wanted])
        whole = [[row for one in part for row in encode(chat, one)] for part in parts]
        fits = [[row for row in part if _longest(row) <= limit] for part in whole]
        left = {
            "near_the_holdout": len(near),
            "thumbs_without_a_pair": len(kept) - len(usable),
            "too_long": sum(map(len, whole)) - sum(map(len, fits)),
        }
        return Lesson(fits[0], fits[1], left, near)
    records, held = read_records(paths.TRAIN), read_records(paths.VALIDATION)
    held = sorted(held, key=lambda record: rank(params.seed, "prefer", record.id))[: prefer.validation_rows]
    general = [record for record in records if record.source == REPLAY]
    if prefer.objective == "grpo":  # general rows are held to no contract
        records = [record for record in records if record.source != REPLAY]
    asked = {record.id: len(chat.prompt_ids(record)) + prefer.max_new_tokens for record in [*records, *held]}
    short = [[record for record in part if asked[record.id] <= limit] for part in (records, held)]
    left = {
        "general": len(general) if prefer.objective == "grpo" else 0,
        "too_long": len(records) + len(held) - sum(map(len, short)),
    }
    if prefer.objective == "distil" and not like:
        taught = [_answers_of(params, part) for part in short]
        unfinished = sum(map(len, short)) - sum(map(len, taught))
        return Lesson(taught[0], taught[1], left | {"unfinished_by_the_teacher": unfinished})
    every = [record for part in short for record in part]
    rows: list[Row] = [{"prompt": json.dumps(chat.prompt_ids(one)), "row": index} for index, one in enumerate(every)]
    learnt = len(short[0])
    return Lesson(rows[:learnt], rows[learnt:], left, records=every if prefer.objective == "grpo" else [])


def _pairs(chat: Chat, row: Preference) -> Iterator[Row]:
    chosen, rejected = (chat.completion_ids(text) for text in (row.record.completion, row.rejected or ""))
    yield {"prompt_ids": chat.prompt_ids(row.record), "chosen_ids": chosen, "rejected_ids": rejected}


def _thumbs(chat: Chat, row: Preference) -> Iterator[Row]:
    for text, good in row.thumbs():
        yield {"prompt_ids": chat.prompt_ids(row.record), "completion_ids": chat.completion_ids(text), "label": good}


def _longest(row: Row) -> int:
    answers = (len(row[key]) for key in ("chosen_ids", "rejected_ids", "completion_ids") if key in row)
    return len(row["prompt_ids"]) + max(answers)


def _refuse_faults(chat: Chat, records: Sequence[Record]) -> None:
    faults: dict[str, list[str]] = {}
    for record in records:
        for fault in chat.encoded(record)[2]:
            faults.setdefault(fault, []).append(record.origin)
    if faults:
        said = [f"{len(where)} rows {fault}, such as {', '.join(where[:3])}" for fault, where in faults.items()]
        raise UserError(f"{paths.PREFERENCES}: " + "; ".join(said))


def checked_teacher(params: Params) -> Path:
    """The teacher's folder. Raises UserError when it is none, or another one than the parameters say."""
    folder = Path(params.prefer.teacher or "")
    if not (folder / "config.json").is_file():
        raise UserError(f"prefer.teacher: {folder} is no folder with a model (config.json is missing)")
    if (digest := tree_digest(folder)) != params.prefer.teacher_sha256:
        raise UserError(f"prefer.teacher_sha256: {folder} hashes to {digest}; write that if it is the one you mean")
    return folder


def same_vocabulary(teacher: Path, chat: Chat) -> bool:
    """Whether the teacher's next tokens are the model's: the same tokens by the same numbers, in as wide an output."""
    sizes = [read_json(folder / "config.json") for folder in (teacher, paths.BASE)]
    widths = {config.get("text_config", config).get("vocab_size") for config in sizes}
    return len(widths) == 1 and bool(load_tokenizer(teacher).get_vocab() == chat.tokenizer.get_vocab())


def _answers_of(params: Params, records: Sequence[Record]) -> list[Record]:
    """The rows with the teacher's answers as their completions; those that it did not end are left out."""
    folder = Path(params.prefer.teacher or "")
    chat, generation = (
        task_chat(load_tokenizer(folder), params.task),
        Generation(max_new_tokens=params.prefer.max_new_tokens),
    )
    said = answer(Weights(folder), chat, records, generation, "teacher")
    both = zip(records, said, strict=True)
    return [replace(record, completion=one.output) for record, one in both if one.stopped and one.output.strip()]


def summarise(objective: str, trainer: Any, lesson: Lesson) -> dict[str, Any]:
    """metrics/prefer.json. The loss of GRPO is what its rewards lack of 1; its own loss says nothing of progress."""
    history: list[Mapping[str, Any]] = list(trainer.state.log_history)
    shown = [_as_loss(entry) for entry in history] if objective == "grpo" else history
    found = outcome(trainer, shown)
    if "validation_first" in found["loss"]:
        best = (
            found["loss"]["validation_best"]
            if trainer.args.load_best_model_at_end
            else found["loss"]["validation_last"]
        )
        found["red_flags"]["no_gain"] = int(best >= found["loss"]["validation_first"])
    validations = [entry for entry in history if any(key in entry for key in _MEASURED)]
    measured_at = {
        name: {"first": values[0], "last": values[-1]}
        for key, name in _MEASURED.items()
        if (values := [entry[key] for entry in validations if entry.get(key) is not None])
    }
    rows = {"train": len(lesson.train), "validation": len(lesson.validation), **lesson.left_out}
    return {"objective": objective, "rows": rows, **found, "measured": measured_at}


def _as_loss(entry: Mapping[str, Any]) -> dict[str, Any]:
    names = {"reward": "loss", "eval_reward": "eval_loss"}
    return {name: 1 - entry[key] for key, name in names.items() if entry.get(key) is not None}
