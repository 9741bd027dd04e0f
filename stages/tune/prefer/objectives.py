"""TRL's trainers beyond imitation, given our token ids: a model must read in training what it reads when it answers.

This file has every private name of TRL that the stage needs; a test looks them up.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from trl import (
    DistillationConfig,
    DistillationTrainer,
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
)

from stages.core import paths
from stages.core.machine import machine_settings
from stages.model.answers import as_rows, cut_at_stop
from stages.model.chat import Chat
from stages.model.loading import device, load_model, nf4_config
from stages.params.model import Prefer, Train
from stages.records.record import Record
from stages.scoring.rows import RowScore, score_row
from stages.text.json_schema import Tasks
from stages.tune.train.engine import schedule
from stages.tune.train.examples import SeededBatches, optimiser_steps
from stages.tune.train.plan import choose_precision

Row = dict[str, Any]
_BETA = {"dpo": 0.1, "kto": 0.1, "grpo": 0.0}  # TRL's own defaults
_TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 4096}  # of a micro-batch; more make none of today faster


class _OurIds:
    """TRL would render and encode texts by itself: here a row has token ids, and a prompt is the JSON of its own."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [json.loads(prompt) for prompt in prompts], None, {}

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """The release writes one, about what was measured."""


class PairTrainer(_OurIds, DPOTrainer):  # type: ignore[misc]
    """DPO (Rafailov et al. 2023, arXiv 2305.18290) on rows of prompt_ids, chosen_ids, rejected_ids."""


class ThumbTrainer(_OurIds, KTOTrainer):  # type: ignore[misc]
    """KTO (Ethayarajh et al. 2024, arXiv 2402.01306) on prompt_ids, completion_ids, KL_completion_ids, label."""


class ContractTrainer(_OurIds, GRPOTrainer):  # type: ignore[misc]
    """GRPO (Shao et al. 2024, arXiv 2402.03300): of several answers to a prompt, those of more reward grow likelier."""


class TeacherTrainer(_OurIds, DistillationTrainer):  # type: ignore[misc]
    """On-policy distillation (Agarwal et al. 2023, arXiv 2306.13649): the teacher's next tokens, on its words."""


def load_sft(train: Train) -> Any:
    """What `train` made, to be trained on as it was trained."""
    options: dict[str, Any] = {"dtype": torch.float32 if train.method == "full" else choose_precision(train)}
    if train.method == "full":
        return load_model(paths.SFT, **options)
    from peft import PeftModel

    if train.method == "qlora":
        options["quantization_config"] = nf4_config(options["dtype"])
    base = load_model(paths.BASE, **options)
    return PeftModel.from_pretrained(base, paths.SFT, is_trainable=True, use_safetensors=True)


def make_objective(
    prefer: Prefer,
    train: Train,
    seed: int,
    chat: Chat,
    rows: Sequence[Row],
    validation: Sequence[Row],
    folder: Path,
    beside: Sequence[Any],
    teacher: Any = None,
    contract: Callable[..., list[float]] | None = None,
) -> Any:
    """The trainer of `prefer.objective` around the SFT model; `train` has what both stages name, as this one has it.

    Rows come in the seeded order of `train`, so that a run goes on from any checkpoint with the batches that it would
    have had. The `contract` gives the rewards of GRPO; the `teacher` is a loaded model.
    """
    kind, machine = prefer.objective, machine_settings()
    answers = prefer.generations if kind == "grpo" else 1
    lengths = [length(row) for row in rows]
    batch = min(train.batch_size // answers, len(rows))
    steps = optimiser_steps(len(rows), batch, train.epochs)
    drawn = [rows[index] for indices in SeededBatches(lengths, batch, steps, seed) for index in indices]
    size, longest = batch * answers, max(lengths) * (2 if kind == "dpo" else 1)
    limit = _TOKENS_AT_ONCE[device().type] if machine.micro_batch_tokens == "auto" else machine.micro_batch_tokens
    at_once = max(n for n in range(1, size + 1) if size % n == 0 and (n == 1 or n * longest <= limit))
    if kind == "kto":  # its reference point is a mean over the rows that are computed together
        at_once, drawn, validation = size, _rotated(drawn, size), _rotated(validation, size)
    best = "eval_reward" if kind == "grpo" else "eval_loss"
    parts = at_once, size // at_once, machine.checkpointing is True
    options = schedule(train, seed, folder, steps, len(validation) > 0, *parts, best)
    # Of GRPO, whole groups of answers are measured at once.
    options["per_device_eval_batch_size"] = size if kind == "grpo" else at_once
    options["bf16"] = choose_precision(train) == torch.bfloat16
    said = {"max_completion_length": prefer.max_new_tokens, "temperature": prefer.temperature, "shuffle_dataset": False}
    beta = _BETA.get(kind, 0.0) if prefer.beta is None else prefer.beta

    model = load_sft(train)
    trained = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    reference = load_model(paths.SFT, dtype=torch.float32) if train.method == "full" else None
    disable_progress_bars()
    common = {
        "model": model,
        "train_dataset": Dataset.from_list(drawn),
        "eval_dataset": Dataset.from_list(list(validation)) if validation else None,
        "processing_class": chat.tokenizer,
        "callbacks": list(beside),
    }
    if kind == "dpo":
        arguments = DPOConfig(**options, beta=beta, max_length=None, train_sampling_strategy="sequential")
        trainer = PairTrainer(ref_model=reference, args=arguments, **common)
    elif kind == "kto":
        arguments = KTOConfig(**options, beta=beta, max_length=None)
        trainer = ThumbTrainer(ref_model=reference, args=arguments, **common)
    elif kind == "grpo":
        arguments = GRPOConfig(**options, **said, beta=beta, num_generations=answers)
        trainer = ContractTrainer(reward_funcs=contract, args=arguments, **common)
    else:
        trainer = TeacherTrainer(teacher_model=teacher, args=DistillationConfig(**options, **said), **common)
    for name, weight in model.named_parameters():
        if name in trained:  # TRL rounds the adapter on a 4-bit base to bfloat16
            weight.data = trained[name]
    return trainer


def length(row: Row) -> int:
    """Tokens of the row's longest sequence; of a prompt to answer, those of the prompt and of the longest answer."""
    answers = [len(row[key]) for key in ("chosen_ids", "rejected_ids", "completion_ids") if key in row]
    return len(row["prompt_ids"]) + max(answers) if answers else int(row["tokens"])


def _rotated(rows: Sequence[Row], size: int) -> list[Row]:
    """Each row with the answer of the one before it in its batch, which KTO's reference point is made of."""
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [
        row | {"KL_completion_ids": part[n - 1]["completion_ids"]} for part in batches for n, row in enumerate(part)
    ]


def reward(score: RowScore) -> float:
    """What an answer is worth to GRPO, 0 to 1, by the row's own contract and by nothing else.

    The mean of: the contract is kept, the answer is the reference, and the share of its fields that are right; of a
    text, which is rarely the reference to the letter, that the contract is kept, and each of its rules.
    """
    if score.kind == "text":
        parts = [float(score.valid), *map(float, score.rules.values())]
    else:
        parts = [float(score.valid), float(score.exact_match)]
        parts += [sum(score.fields.values()) / len(score.fields)] if score.fields else []
    return sum(parts) / len(parts)


def rewards(records: Sequence[Record], tasks: Tasks, chat: Chat) -> Callable[..., list[float]]:
    """The reward function of TRL: its rows name their record by number in the column `row`."""

    def contract(completion_ids: Sequence[list[int]], row: Sequence[int], **_: Any) -> list[float]:
        said = [cut_at_stop(ids, chat) for ids in completion_ids]
        return [reward(score_row(one, tasks)) for one in as_rows([records[number] for number in row], said)]

    return contract
