"""Recipes for SNIPS on one CUDA card: records that are right as a whole, on validation rows and on the published ones.

    python benchmarks/snips.py --base models/base --data FOLDER [RECIPE ...]

FOLDER has train.jsonl and validate.jsonl as examples/snips/params-gpu.yaml wants them; models/base is what
`dvc repro base` wrote. The pipeline's own stages clean, deduplicate and split the rows once, with all of
validate.jsonl as the hold-out; then each recipe, a change of that file's parameters, runs `augment` and `train` in a
project of its own, and its adapter answers. A recipe is chosen by the validation rows; what the hold-out says is
written beside it and is not for choosing. `CUDA_VISIBLE_DEVICES` says on which card.
"""

import argparse
import csv
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from dvc.utils.serialize import dumps_yaml

from stages.core.yaml_reader import load_yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.workers import Table, Workers, machine
from stages.core import paths
from stages.model.answers import answer_rows
from stages.model.chat import task_chat
from stages.model.loading import compute_dtype, load_tokenizer, load_tuned
from stages.params.loader import load_params
from stages.records.record import read_records
from stages.scoring.intervals import proportion_interval
from stages.scoring.rows import score_row
from stages.text.json_schema import Tasks
from stages.tune.base.model_source import read_template

ROOT = Path(__file__).parents[1]
SETTINGS = ROOT / "examples" / "snips" / "params-gpu.yaml"
OWN_TEMPLATE = {"model.chat_template": "data/chat_template.jinja"}
FULL = {"train.method": "full", "train.learning_rate": 3e-4, "train.weight_decay": 0.1}
TWO = {"augment.value_swapped_per_row": 2, "train.epochs": 4}
NO_SWAP = {"augment.value_swapped_per_row": 0}
RECIPES: dict[str, dict[str, Any]] = {
    "the example": {},
    "plain prompts, no exchanged values": OWN_TEMPLATE | NO_SWAP,
    "no exchanged values": NO_SWAP,
    "plain prompts": OWN_TEMPLATE,
    "two exchanges a row": TWO,
    "8 epochs": {"train.epochs": 8},
    "dropout 0.1": {"train.dropout": 0.1},
    "rank 128": {"train.rank": 128, "train.alpha": 256, "train.learning_rate": 5e-4},
    "batches of 128": {"train.batch_size": 128, "train.learning_rate": 1.5e-3},
    "three exchanges a row": {"augment.value_swapped_per_row": 3, "train.epochs": 3},
    "two exchanges a row, 6 epochs": {"augment.value_swapped_per_row": 2, "train.epochs": 6},
    "two exchanges a row, rank 128": TWO | {"train.rank": 128, "train.alpha": 256, "train.learning_rate": 5e-4},
    "two exchanges a row, batches of 32": TWO | {"train.batch_size": 32, "train.learning_rate": 7e-4},
    "two exchanges a row, weight decay 0.1": TWO | {"train.weight_decay": 0.1},
    **{f"two exchanges a row, seed {seed}": TWO | {"seed": seed} for seed in (18, 19, 20)},
    **{f"all weights, two exchanges a row, seed {seed}": FULL | TWO | {"seed": seed} for seed in (17, 18, 19)},
    "all weights": FULL | {"train.epochs": 3},
    "all weights, 5 epochs": FULL | {"train.epochs": 5},
}


def prepare(project: Path, base: Path, data: Path) -> None:
    """The project up to `split`; every later one is a copy of it."""
    (project / "data").mkdir(parents=True)
    for name in ("stages", "examples", "constraints", "dvc.yaml"):
        (project / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "data" / "chat_template.jinja", project / "data")
    shutil.copytree(data, project / "data" / "snips")
    (project / paths.BASE).mkdir(parents=True)
    for file in base.iterdir():
        (project / paths.BASE / file.name).symlink_to(file.resolve())
    shutil.copy(SETTINGS, project / "params.yaml")
    change(project, {"holdout.lock": "data/holdout.lock"})  # that of the example may lie in the repository
    for command in ("prepare.clean", "prepare.dedup", "cli holdout draw --source validate.jsonl", "prepare.split"):
        module, *arguments = command.split()
        subprocess.run([sys.executable, "-m", f"stages.{module}", *arguments], cwd=project, check=True)


def change(project: Path, changes: dict[str, Any]) -> None:
    file = project / "params.yaml"
    params = load_yaml(file.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *section, name = key.split(".")
        place = params[section[0]] if section else params
        assert name in place, key
        place[name] = value
    file.write_text(dumps_yaml(params), encoding="utf-8")


def use_template(project: Path, template: str) -> None:
    """As `base` does it; beside the model's own files, which are links."""
    if text := read_template(project / template):
        file = project / paths.BASE / "chat_template.jinja"
        file.unlink(missing_ok=True)
        file.write_text(text, encoding="utf-8")


def run(prepared: Path, project: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """One recipe: what `augment` and `train` make of it, and how its adapter answers."""
    shutil.copytree(prepared, project, symlinks=True)
    change(project, changes)
    os.chdir(project)
    params = load_params("generation", "model", "task")
    use_template(project, params.model.chat_template)
    for stage in ("prepare.augment", "tune.train"):
        importlib.import_module(f"stages.{stage}.__main__").main()
    notes = json.loads((paths.ENVIRONMENT / "train.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {
        "rows": len(read_records(paths.TRAIN)),
        "seconds": notes["seconds"],
        "tokens_per_second": notes.get("late_tokens_per_second"),
        "loss": {name: curve(name) for name in ("train", "validation")},
    }
    return found | answered(load_tuned(paths.BASE, paths.SFT))


def average(projects: list[Path]) -> dict[str, Any]:
    os.chdir(projects[0])
    return answered(mean_model(projects))


def mean_model(projects: list[Path]) -> Any:
    """The mean of several tuned models' weights (Wortsman et al. 2022, "Model soups", arXiv 2203.05482)."""
    mean: Any = None
    for project in projects:
        model = load_tuned(project / paths.BASE, project / paths.SFT, dtype=torch.float32)
        model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        weights = {name: weight / len(projects) for name, weight in model.state_dict().items()}
        mean = {name: mean[name] + weight for name, weight in weights.items()} if mean else weights
    model.load_state_dict(mean)
    return model.to(compute_dtype())


def answered(model: Any) -> dict[str, Any]:
    """How many records of the working directory's project a model gets right, and the interval."""
    params, found = load_params("generation", "model", "task"), {}
    chat = task_chat(load_tokenizer(paths.BASE), params.task)
    for name, file in (("validation", paths.VALIDATION), ("holdout", paths.HOLDOUT)):
        answers = answer_rows(model, chat, read_records(file), params.generation, name)
        right = sum(score_row(row, Tasks(params.task)).exact_match for row in answers)
        low, high = proportion_interval(right, len(answers), 0.95)
        found[name] = {"right": right, "n": len(answers), "low": round(low, 4), "high": round(high, 4)}
    return found


def curve(name: str) -> list[tuple[int, float]]:
    """At most some 20 points of a loss curve, each a step and a loss."""
    file = paths.CURVES / "plots" / "metrics" / name / "loss.tsv"
    if not file.exists():
        return []
    with file.open(encoding="utf-8") as lines:
        points = [(int(row["step"]), round(float(row["loss"]), 5)) for row in csv.DictReader(lines, delimiter="\t")]
    return points[:: max(1, len(points) // 20)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--projects", type=Path, help="a folder that keeps the recipes' projects")
    parser.add_argument("--average", action="store_true", help="and the mean of these recipes' weights")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=", ".join(RECIPES))
    arguments = parser.parse_args()
    workers, table = Workers(), Table("snips")
    described = workers.do(100, machine)
    with nullcontext(arguments.projects) if arguments.projects else tempfile.TemporaryDirectory() as name:
        folder = Path(name).absolute()
        if not (folder / "prepared").exists():
            prepare(folder / "prepared", arguments.base, arguments.data)
        done = []
        for recipe in arguments.recipes or RECIPES:
            done.append(folder / recipe.replace(" ", "_"))
            table.add(recipe, workers.do(600, run, folder / "prepared", done[-1], RECIPES[recipe]))
            table.write(described)
        if arguments.average:
            table.add(f"mean of the {len(done)}", workers.do(300, average, done))
            table.write(described)
    workers.close()


if __name__ == "__main__":
    main()
