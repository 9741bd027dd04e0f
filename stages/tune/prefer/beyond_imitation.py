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
from stages.near_duplicates.nearness import made_leaks
from stages.params.loader import Params, load_params
from stages.params.model import Generation, Train
from stages.records.record import REPLAY, Dropped, Record, rank, read_records, read_rows, write_dropped, write_rows
from stages.text.json_schema import Tasks
from stages.tune.prefer.objectives import Row, length, load_sft, make_objective, rewards
from stages.tune.prefer.preference_rows import Preference, held_back, read_preferences
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
    run_state,
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
    records: list[Record] = field(default_factory=list)  # by the number in the rows' column `row`


def go_beyond() -> None:
    """What `python -m stages.tune.prefer` does where `prefer.objective` is not sft."""
    params = load_params("dedup.threshold", "prefer", "seed", "split", "task", "train")
    prefer = params.prefer
    if params.train.adaptive:
        raise UserError("prefer.objective: adalora plans its ranks over one run; set train.adapter to lora or dora")
    if params.train.deterministic:
        make_deterministic()
    devices.join({})
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
    folder = checkpoint_folder(run_key(run_state("prefer")))
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
        train, held = (make_examples(chat, rows, settings.max_tokens) for rows in (lesson.train, lesson.validation))
        return build_trainer("trl", load_sft(settings), settings, seed, chat.tokenizer, train, held, folder, beside)
    teacher = load_model(Path(prefer.teacher or ""), dtype=choose_precision(settings)) if like else None
    contract = rewards(lesson.records, Tasks(params.task), chat) if prefer.objective == "grpo" else None
    rows = lesson.train, lesson.validation
    trainer = make_objective(prefer, settings, seed, chat, *rows, folder, beside, teacher, contract)
    trainer.remove_callback(PrinterCallback)
    return trainer


def make_lesson(params: Params, chat: Chat, like: bool) -> Lesson:
    """The rows of the objective. Raises UserError for rows that the model could not learn as they are."""
    prefer, limit = params.prefer, params.train.max_tokens
    if prefer.objective in ("dpo", "kto"):
        given = read_preferences(paths.PREFERENCES)
        locked = {row["prompt_sha256"]: row["id"] for row in read_rows(paths.LOCKED)}  # in the data or not
        held, rules = read_records(paths.HOLDOUT), (locked, params.dedup.threshold, params.split.pair_threshold)
        leaks = made_leaks([row.record for row in given], read_records(paths.TRAIN) + held, held, *rules)
        kept = [row for row in given if row.record.id not in leaks]
        near = [leaks[row.record.id] for row in given if row.record.id in leaks]
        usable = [row for row in kept if prefer.objective == "kto" or row.rejected is not None]
        _refuse_faults(chat, [replace(row.record, completion=text) for row in usable for text, _ in row.thumbs()])
        halves = held_back(usable, prefer.validation_share, params.seed)
        every = [[row for one in half for row in _encoded(chat, one, prefer.objective)] for half in halves]
        fits = [[row for row in half if length(row) <= limit] for half in every]
        left = {"near_the_holdout": len(near), "thumbs_without_a_pair": len(kept) - len(usable)}
        return Lesson(fits[0], fits[1], left | {"too_long": sum(map(len, every)) - sum(map(len, fits))}, near)
    records, held = read_records(paths.TRAIN), read_records(paths.VALIDATION)
    held = sorted(held, key=lambda record: rank(params.seed, "prefer", record.id))[: prefer.validation_rows]
    # General rows are held to no contract.
    parts = [one for one in records if prefer.objective != "grpo" or one.source != REPLAY], held
    prompts = {one.id: chat.prompt_ids(one) for part in parts for one in part}
    room = limit - prefer.max_new_tokens
    short = [[one for one in part if len(prompts[one.id]) <= room] for part in parts]
    left = {"general": len(records) - len(parts[0]), "too_long": sum(map(len, parts)) - sum(map(len, short))}
    if prefer.objective == "distil" and not like:
        taught = [_answers_of(params, chat, part) for part in short]
        unfinished = sum(map(len, short)) - sum(map(len, taught))
        return Lesson(taught[0], taught[1], left | {"unfinished_by_the_teacher": unfinished})
    asked = [one for part in short for one in part]
    rows: list[Row] = [
        {"prompt": json.dumps(prompts[one.id]), "tokens": len(prompts[one.id]) + prefer.max_new_tokens, "row": index}
        for index, one in enumerate(asked)
    ]
    return Lesson(rows[: len(short[0])], rows[len(short[0]) :], left, records=asked)


def _encoded(chat: Chat, row: Preference, objective: str) -> Iterator[Row]:
    prompt, said = chat.prompt_ids(row.record), [(chat.completion_ids(text), good) for text, good in row.thumbs()]
    if objective == "dpo":
        yield {"prompt_ids": prompt, "chosen_ids": said[0][0], "rejected_ids": said[1][0]}
    else:
        yield from ({"prompt_ids": prompt, "completion_ids": ids, "label": good} for ids, good in said)


def _refuse_faults(chat: Chat, records: Sequence[Record]) -> None:
    for record, (_, _, faults) in zip(records, chat.encode(records), strict=True):
        if faults:
            raise UserError(f"{paths.PREFERENCES}/{record.origin} is of those rows that {faults[0]}; take it out")


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


def _answers_of(params: Params, chat: Chat, records: Sequence[Record]) -> list[Record]:
    """The rows with the teacher's answers as their completions; without those that it did not end or `chat` cannot say.

    What cannot be said as it was, or is longer than train.max_tokens in the model's own tokens, cannot be learnt.
    """
    folder = Path(params.prefer.teacher or "")
    teachers = task_chat(load_tokenizer(folder), params.task)
    generation = Generation(max_new_tokens=params.prefer.max_new_tokens)
    both = zip(records, answer(Weights(folder), teachers, records, generation, "teacher"), strict=True)
    ended = [replace(record, completion=one.output) for record, one in both if one.stopped and one.output.strip()]
    made = zip(ended, chat.encode(ended), strict=True)
    return [row for row, (p, c, faults) in made if not faults and len(p) + len(c) <= params.train.max_tokens]


def summarise(objective: str, trainer: Any, lesson: Lesson) -> dict[str, Any]:
    """metrics/prefer.json. The loss of GRPO is what its rewards lack of 1; its own loss says nothing of progress."""
    history: list[dict[str, Any]] = trainer.state.log_history
    found = outcome(trainer, list(map(_as_loss, history)) if objective == "grpo" else history)
    if losses := [value for key, value in found["loss"].items() if key.startswith("validation")]:
        found["red_flags"]["no_gain"] = int(min(losses) >= found["loss"]["validation_first"])
    values = {name: [one[key] for one in history if one.get(key) is not None] for key, name in _MEASURED.items()}
    ends = {name: {"first": some[0], "last": some[-1]} for name, some in values.items() if some}
    rows = {"train": len(lesson.train), "validation": len(lesson.validation), **lesson.left_out}
    return {"objective": objective, "rows": rows, **found, "measured": ends}


def _as_loss(entry: Mapping[str, Any]) -> dict[str, Any]:
    names = {"reward": "loss", "eval_reward": "eval_loss"}
    return {name: 1 - entry[key] for key, name in names.items() if entry.get(key) is not None}
