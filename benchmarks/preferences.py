"""What comes after imitation, on SNIPS and one CUDA card: the stage `prefer` beside the SFT model that it began from.

    python benchmarks/preferences.py --base models/base --data FOLDER --projects FOLDER [STEP ...]

FOLDER and models/base are those of benchmarks/snips.py, whose settings these are. `sft` trains the example; `teacher`
trains all weights of the same base; `pairs` asks the SFT model for answers to training prompts at temperature 1, each
wrong one the worse answer beside the reference; `dpo` learns from those pairs, and `distil` from the teacher's next
tokens, on the model's own answers. `schema` decodes the SFT model's answers under the contract. What a step made is
kept in --projects, so that the steps can run one by one; each is paired with the SFT model, row by row.
"""

import argparse
import importlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from dvc.utils.serialize import dumps_yaml

from stages.core.yaml_reader import load_yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.snips import change, prepare, use_template
from stages.core import paths
from stages.core.files import tree_digest
from stages.engines.in_process import in_process_rows
from stages.model.chat import task_chat
from stages.model.loading import Weights, load_tokenizer, load_tuned
from stages.params.loader import load_params
from stages.records.record import read_records, write_rows
from stages.scoring.intervals import mcnemar, paired_difference, proportion_interval
from stages.scoring.rows import score_row
from stages.ship.merge_quantize.served_answers import contracts
from stages.text.json_schema import Tasks

DPO = {"objective": "dpo", "learning_rate": 2e-5, "epochs": 1, "batch_size": 64, "evaluate_every": 10}
DISTIL = {"objective": "distil", "learning_rate": 1e-4, "epochs": 0.1, "batch_size": 64, "evaluate_every": 9}
TEACHER = {"train.method": "full", "train.learning_rate": 3e-4, "train.weight_decay": 0.1, "train.epochs": 2}
PROMPTS, ANSWERS = 3000, 4  # that pairs are looked for among


def trained(folder: Path, prepared: Path, changes: dict[str, Any]) -> None:
    shutil.copytree(prepared, folder, symlinks=True)
    change(folder, changes)
    os.chdir(folder)
    use_template(folder, load_params("model").model.chat_template)
    for stage in ("prepare.augment", "tune.train"):
        importlib.import_module(f"stages.{stage}.__main__").main()


def preferred(folder: Path, sft: Path, settings: dict[str, Any]) -> None:
    shutil.copytree(sft, folder, symlinks=True)
    file = folder / "params.yaml"
    file.write_text(dumps_yaml(load_yaml(file.read_text(encoding="utf-8")) | {"prefer": settings}), encoding="utf-8")
    os.chdir(folder)
    importlib.import_module("stages.tune.prefer.__main__").main()


def pairs() -> None:
    """data/preferences/own.jsonl of the project that is the working directory: one pair a prompt at most."""
    params = load_params("generation", "model", "task")
    chat, tasks = task_chat(load_tokenizer(paths.BASE), params.task), Tasks(params.task)
    records = sorted((r for r in read_records(paths.TRAIN)), key=lambda record: record.id)[:PROMPTS]
    model = load_tuned(paths.BASE, paths.SFT)
    torch.manual_seed(0)
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(records), 128):
        batch = records[start : start + 128]
        prompts = chat.tokenizer.pad(
            {"input_ids": [chat.prompt_ids(r) for r in batch]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        said = model.generate(
            **prompts,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            num_return_sequences=ANSWERS,
            max_new_tokens=params.generation.max_new_tokens,
            eos_token_id=chat.stop_id,
            pad_token_id=chat.tokenizer.pad_token_id,
        )[:, prompts["input_ids"].shape[1] :]
        for number, text in enumerate(chat.tokenizer.batch_decode(said, skip_special_tokens=True)):
            record = batch[number // ANSWERS]
            row = {"id": record.id, "prompt": record.prompt, "completion": record.completion, "label": record.label}
            score = score_row({**row, "output": text, "tokens": 1, "stopped": True}, tasks)
            if text.strip() and not score.exact_match:
                worse = {"prompt": record.prompt, "chosen": record.completion, "rejected": text, "source": "own errors"}
                found.setdefault(record.id, worse)
    write_rows(paths.PREFERENCES / "own.jsonl", list(found.values()))
    print(f"{len(found)} pairs of {len(records)} prompts")


def answered(adapter: Path, enforce: str = "none") -> dict[str, list[bool]]:
    """For validation and hold-out, whether each row is right, in the rows' order."""
    params = load_params("generation", "model", "task")
    chat, tasks = task_chat(load_tokenizer(paths.BASE), params.task), Tasks(params.task)
    right: dict[str, list[bool]] = {}
    for name, file in (("validation", paths.VALIDATION), ("holdout", paths.HOLDOUT)):
        records = read_records(file)
        rows = in_process_rows(
            Weights(paths.BASE, adapter),
            chat,
            records,
            params.generation,
            contracts(records, params, enforce),
            name,
        )
        right[name] = [score_row(row, tasks).exact_match for row in rows]
    return right


def beside(before: list[bool], after: list[bool]) -> str:
    n = len(after)
    won = sum(b > a for a, b in zip(before, after, strict=True))
    lost = sum(a > b for a, b in zip(before, after, strict=True))
    both = sum(a and b for a, b in zip(before, after, strict=True))
    low, high = proportion_interval(sum(after), n, 0.95)
    less, more = paired_difference(both, won, lost, n - both - won - lost, 0.95)
    change = f"{100 * (won - lost) / n:+.2f} ({100 * less:+.2f} to {100 * more:+.2f}) | {won} | {lost}"
    return f"{sum(after)} of {n}: {sum(after) / n:.2%} ({low:.1%} to {high:.1%}) | {change} | {mcnemar(won, lost):.3f}"


def judge(folder: Path, name: str, adapter: Path) -> None:
    right = answered(adapter, "schema" if name == "schema" else "none")
    (folder / f"{name}.json").write_text(json.dumps(right), encoding="utf-8")
    before = json.loads((folder / "sft.json").read_text(encoding="utf-8"))
    for rows, after in right.items():
        print(f"| {name} | {rows} | {beside(before[rows], after)} |", flush=True)


def make(folder: Path, step: str) -> Path:
    """Do the step in the project of its name; the model that came of it."""
    prepared, sft = folder / "prepared", folder / "sft"
    if step in ("sft", "teacher"):
        trained(folder / step, prepared, TEACHER if step == "teacher" else {})
        return paths.SFT
    if step in ("pairs", "schema"):
        os.chdir(sft)
        if step == "pairs":
            pairs()
        return paths.SFT
    settings = DPO
    if step == "distil":
        teacher = folder / "teacher" / paths.SFT
        settings = DISTIL | {"teacher": str(teacher), "teacher_sha256": tree_digest(teacher)}
    preferred(folder / step, sft, settings)
    print(paths.PREFER_METRICS.read_text(encoding="utf-8"))
    return paths.ADAPTER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "data", "projects"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("steps", nargs="*", default=["sft", "schema", "pairs", "dpo", "teacher", "distil"])
    given = parser.parse_args()
    folder, base, data = given.projects.absolute(), given.base.absolute(), given.data.absolute()
    if not folder.exists():
        prepare(folder / "prepared", base, data)
    for step in given.steps:
        at = time.perf_counter()
        model = make(folder, step)
        print(f"{step}: {time.perf_counter() - at:.0f} s", flush=True)
        if step != "pairs":
            judge(folder, step, model)


if __name__ == "__main__":
    main()
