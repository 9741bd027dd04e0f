"""Many labels, few rows each: recipes for a small tuned model beside the linear baseline, on the same rows.

    python benchmarks/intents.py --tune --base models/base --snips FOLDER --results FILE [SET ...]
    python benchmarks/intents.py --render FILE [FILE ...]

FOLDER has the train.jsonl of examples/snips/params-gpu.yaml; models/base is what `dvc repro base` wrote; the sets are
those of intent_rows.py. The pipeline's own stages clean, deduplicate and split each set once: a fifth of its training
rows are validation rows, and the test rows are the hold-out. `--tune` tries one change of examples/intents at a time,
then the changes that helped together, and takes for each size what has the most validation rows right. Without it the
settings of examples/intents are taken as they are. What was taken is trained on all training rows, those for validation
among them, and asked the hold-out once. Each result is a line of FILE at once; what stands there is not measured again.
`--render` writes benchmarks/results/intents.md.
"""

import argparse
import gc
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dvc.utils.serialize import dumps_yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.intent_rows import draw_rows
from benchmarks.intents_table import page
from benchmarks.workers import RESULTS, Lines
from stages.core import paths
from stages.core.yaml_reader import load_yaml
from stages.records.record import read_records, write_records

ROOT = Path(__file__).parents[1]
SETTINGS = ROOT / "examples" / "intents" / "params.yaml"
# NAME: (where the rows come from, training rows of each label, whether a recipe is chosen by its validation rows)
SETS = {
    "generated, 100 rows": ("generated", 100, False),  # the longest first
    "SNIPS, 100 rows": ("snips", 100, True),
    "generated, 30 rows": ("generated", 30, True),
    "SNIPS, 30 rows": ("snips", 30, True),
    "generated, 10 rows": ("generated", 10, True),
    "SNIPS, 10 rows": ("snips", 10, True),
    "generated, 5 rows": ("generated", 5, True),
    "codes, 30 rows": ("codes", 30, False),
    "codes, 10 rows": ("codes", 10, False),
}
# Rows of each label: what `train` begins with. Fewer rows, more epochs.
SIZES: dict[int, dict[str, Any]] = {
    5: {"epochs": 12},
    10: {"epochs": 16},
    30: {"epochs": 5},
    100: {"epochs": 6, "batch_size": 64},
}
# A chat template: a model that reads from left to right reads the message a second time with all of it in mind
# (Springer et al. 2024, "Repetition improves language model embeddings", arXiv 2402.15449).
TWICE = """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] }}
    {%- if message['role'] == 'user' %}{{ '\\n' + message['content'] }}{% endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
FULL = {"method": "full", "learning_rate": 1e-4, "weight_decay": 0.1}
# RECIPE: (what it changes: of one kind at most one is combined with others; the changes), the most promising first
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "as it stands": ("", {}),
    "learning rate 3e-4": ("weights", {"learning_rate": 3e-4}),
    "twice the epochs": ("epochs", {"epochs": 2}),
    "the message twice": ("prompt", {"template": TWICE}),
    "all weights, learning rate 1e-4": ("weights", FULL),
    "a head of labels": ("head", {"head": "label", "batch_size": 128}),
    "no dropout": ("dropout", {"dropout": 0.0}),
    "rank 16": ("rank", {"rank": 16, "alpha": 32}),
    "learning rate 2e-3": ("weights", {"learning_rate": 2e-3}),
    "half the epochs": ("epochs", {"epochs": 0.5}),
    "weight decay 0.1": ("decay", {"weight_decay": 0.1}),
}
HEAD_ROWS = 30  # a head is tried with so many rows a label: with fewer it lost to written labels by 7 and 19 points
DECODED_ROWS = (10, 30)
SCORED = 15_000  # pairs of a validation row and a label whose likelihood is measured
SEEDS = (17, 18, 19)
READY, WAIT = "ready", 200  # seconds

Line = dict[str, Any]


def prepare(project: Path, base: Path, source: str, rows: int, snips: Path, told: dict[str, Any]) -> Line:
    """The project up to `augment`, with all test rows as the hold-out."""
    params = load_yaml(SETTINGS.read_text(encoding="utf-8"))
    params["split"]["validation_share"] = 0.2
    # No samples, validations and checkpoints on the way: they change no weight, and take longer than the training.
    params["train"] |= {"head": "completion", "evaluate_every": 10**6, "sample_prompts": 0, **SIZES[rows]}
    for section, values in told.get("changes", {}).items():
        params[section] |= values
    (project / "data" / "raw").mkdir(parents=True)
    try:
        train, test = draw_rows(source, rows, snips, told.get("labels"))
        params["task"]["labels"] = sorted({row["label"] for row in train})
        lay_out(project, base, params, {"train": train, "test": test})
        os.chdir(project)
        for stage in ("clean", "dedup"):
            run_stage(f"prepare.{stage}")
        draw = ["-m", "stages.cli", "holdout", "draw", "--source", "test.jsonl"]
        subprocess.run([sys.executable, *draw], check=True)
        for stage in ("split", "augment"):
            run_stage(f"prepare.{stage}")
    finally:  # what waits for it ends at once, then
        (project / READY).touch()
    parts = {"train": paths.TRAIN, "validation": paths.VALIDATION, "holdout": paths.HOLDOUT}
    counts = {name: len(read_records(file)) for name, file in parts.items()}
    return {**counts, "labels": len(params["task"]["labels"])}


def lay_out(project: Path, base: Path, params: dict[str, Any], raw: dict[str, list[dict[str, str]]]) -> None:
    for name in ("stages", "examples", "constraints", "dvc.yaml"):
        (project / name).symlink_to(ROOT / name)
    for name in ("chat_template.jinja", "schema.json", "replay.jsonl"):
        shutil.copy(ROOT / "data" / name, project / "data")
    for name, rows in raw.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (project / "data" / "raw" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (project / paths.BASE).mkdir(parents=True)
    for file in base.iterdir():
        (project / paths.BASE / file.name).symlink_to(file.resolve())
    (project / "params.yaml").write_text(dumps_yaml(params), encoding="utf-8")


def ready(project: Path) -> Path:
    """The project, as soon as another process has prepared it."""
    end = time.monotonic() + WAIT
    while not (project / READY).is_file():
        if time.monotonic() > end:
            raise TimeoutError(f"{project} was not prepared within {WAIT} s")
        time.sleep(0.2)
    return project


def run_stage(name: str) -> None:
    importlib.import_module(f"stages.{name}.__main__").main()


def linear(project: Path) -> Line:
    """Which rows of the hold-out the linear baseline of all training rows has right."""
    from stages.measure.baseline.__main__ import linear_answers

    os.chdir(ready(project))
    train, start = [*read_records(paths.TRAIN), *read_records(paths.VALIDATION)], time.perf_counter()
    right = [int(one["right"]) for one in linear_answers(train, read_records(paths.HOLDOUT))]
    return {"right": right, "seconds": round(time.perf_counter() - start, 1)}


def trained(prepared: Path, project: Path, changes: dict[str, Any], all_rows: bool) -> float:
    """Train a recipe in a copy of the prepared project, which is the working directory then; the seconds that took."""
    shutil.copytree(ready(prepared), project, symlinks=True)
    os.chdir(project)
    file = Path("params.yaml")
    params = load_yaml(file.read_text(encoding="utf-8"))
    for key, value in changes.items():
        if key == "template":
            template = paths.BASE / "chat_template.jinja"
            template.unlink(missing_ok=True)  # a link to the base's own
            template.write_text(value, encoding="utf-8")
        elif key == "seed":
            params["seed"] = value
        else:
            params["train"][key] = value * params["train"]["epochs"] if key == "epochs" else value
    file.write_text(dumps_yaml(params), encoding="utf-8")
    if all_rows:
        write_records(paths.TRAIN, [*read_records(paths.TRAIN), *read_records(paths.VALIDATION)])
        write_records(paths.VALIDATION, [])
    start = time.perf_counter()
    run_stage("tune.train")
    return round(time.perf_counter() - start, 1)


def asked(file: Path, enforce: str = "none", rows: int | None = None, model: Any = None) -> tuple[list[int], float]:
    """Which of a file's first rows are answered with their label, and the mean nats of the labels.

    `enforce` "likeliest" takes the label with the largest likelihood, however many there are.
    """
    from stages.engines import in_process
    from stages.model.chat import task_chat
    from stages.model.loading import Weights, load_tokenizer
    from stages.params.loader import load_params
    from stages.ship.merge_quantize.served_answers import contracts

    in_process.MOST_LABELS = 10**6 if enforce == "likeliest" else 0
    params, records = load_params("generation", "task"), read_records(file)[:rows]
    held = contracts(records, params, "none" if enforce == "none" else "labels")
    weights, chat = model or Weights(paths.BASE, paths.SFT), task_chat(load_tokenizer(paths.BASE), params.task)
    answers = in_process.in_process_rows(weights, chat, records, params.generation, held, file.stem)
    right = [int(row["output"] == row["completion"]) for row in answers]
    return right, round(sum(row["nats"] for row in answers) / len(answers), 4)


def validated(prepared: Path, changes: dict[str, Any], decodings: bool) -> Line:
    with tempfile.TemporaryDirectory() as folder:
        seconds = trained(prepared, Path(folder) / "project", changes, all_rows=False)
        right, nats = asked(paths.VALIDATION)
        line: Line = {"right": sum(right), "n": len(right), "nats": nats, "seconds": seconds}
        if decodings:
            rows = max(1, SCORED // len(load_yaml(Path("params.yaml").read_text(encoding="utf-8"))["task"]["labels"]))
            line["decodings"] = {"none": sum(right[:rows]), "rows": len(right[:rows])}
            for enforce in ("labels", "likeliest"):
                with suppress(Exception):  # a package that is not installed, such as llguidance
                    line["decodings"][enforce] = sum(asked(paths.VALIDATION, enforce, rows)[0])
        os.chdir(prepared)
    return line


def averaged(prepared: Path, changes: dict[str, Any]) -> Line:
    """Of models that differ in the seed: how many validation rows each has right, and the mean of their weights."""
    from benchmarks.snips import mean_model

    with tempfile.TemporaryDirectory() as folder:
        projects, each = [Path(folder) / str(seed) for seed in SEEDS], []
        for seed, project in zip(SEEDS, projects, strict=True):
            trained(prepared, project, {**changes, "seed": seed}, all_rows=False)
            each.append(sum(asked(paths.VALIDATION)[0]))
        right, nats = asked(paths.VALIDATION, model=mean_model(projects))
        os.chdir(prepared)
    return {"right": sum(right), "n": len(right), "nats": nats, "each": each}


def final(prepared: Path, changes: dict[str, Any]) -> Line:
    with tempfile.TemporaryDirectory() as folder:
        seconds = trained(prepared, Path(folder) / "project", changes, all_rows=True)
        right, nats = asked(paths.HOLDOUT)
        rows = len(read_records(paths.TRAIN))
        os.chdir(prepared)
    return {"right": right, "nats": nats, "seconds": seconds, "train": rows}


def described() -> Line:
    import torch

    from stages.core.run_notes import library_versions

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores, no card"
    return {"card": card, "versions": library_versions(), "date": time.strftime("%Y-%m-%d")}


WORK = {f.__name__: f for f in (prepare, linear, validated, averaged, final, described)}


def work(kind: str, *args: Any) -> Line:
    """The line of one piece of work; a fault is a line, too, and ends nothing else."""
    try:
        return WORK[kind](*args)
    except BaseException as error:  # a stage may end by SystemExit
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    finally:
        gc.collect()
        if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
            torch.cuda.empty_cache()  # for the processes beside this one


def recipes_of(results: Lines, rows: int, sets: list[str]) -> Iterator[tuple[str, int, float]]:
    """(recipe, validation rows right, minus their mean nats) of each that all sets of a size have been asked."""
    for recipe in dict.fromkeys(line["recipe"] for line in results.find("validated", rows=rows)):
        found = results.find("validated", rows=rows, recipe=recipe)
        if {line["set"] for line in found} == {*sets}:
            yield recipe, sum(line["right"] for line in found), -sum(line["nats"] for line in found)


def changes_of(recipe: str) -> dict[str, Any]:
    """Of one recipe, or of several in one: "NAME + NAME"."""
    return {key: value for name in recipe.split(" + ") for key, value in RECIPES[name][1].items()}


def combined(scores: list[tuple[str, int, float]]) -> list[str]:
    """All changes that helped, the best of each kind, in one recipe; and the two that helped most."""
    start = next((right for recipe, right, _ in scores if recipe == next(iter(RECIPES))), None)
    best: dict[str, str] = {}
    for recipe, right, _ in sorted(scores, key=lambda score: score[1:], reverse=True):
        if start is not None and right > start and recipe in RECIPES and RECIPES[recipe][0] not in ("", "head"):
            best.setdefault(RECIPES[recipe][0], recipe)
    helped = [*best.values()]
    return [*dict.fromkeys(" + ".join(some) for some in (helped, helped[:2]) if len(some) > 1)]


class Study:
    """What is measured of the sets of these names, in which order."""

    def __init__(self, results: Lines, names: list[str], folder: Path) -> None:
        self.results, self.names = results, names
        self.projects = {name: folder / str(number) for number, name in enumerate(names)}
        self.sizes = {rows: [name for name in names if SETS[name][1:] == (rows, True)] for rows in SIZES}
        self.tuned = [(rows, name) for rows, sets in self.sizes.items() for name in sets]

    def prepare(self, base: Path, snips: Path, told: Line) -> None:
        """Each set in a project; the trainings that are begun next wait for theirs."""
        self.results.begin("described", "", ())
        for name in reversed(self.names):  # the quickest first
            args = (self.projects[name], base, *SETS[name][:2], snips, told)
            self.results.begin("prepare", name, args, folder=str(self.projects[name]))

    def tune(self) -> None:
        """One change at a time in half of the time, then those that helped together until two thirds.

        Not of a size whose hold-out was asked: what was chosen for it stands.
        """
        tuned = [
            (rows, name)
            for rows, name in self.tuned
            if not any(SETS[line["set"]][1] == rows for line in self.results.find("final"))
        ]
        for number, recipe in enumerate(RECIPES):
            for rows, name in tuned:
                if RECIPES[recipe][0] != "head" or rows == HEAD_ROWS:
                    self._validate(recipe, rows, name, decodings=not number and rows in DECODED_ROWS)
            for name in self.names[number : number + 1]:  # needs no card, and takes one process at a time
                self.results.begin("linear", name, (self.projects[name],))
        self.results.wait(0.5)
        for rows, name in tuned:
            for recipe in combined([*recipes_of(self.results, rows, self.sizes[rows])]):
                self._validate(recipe, rows, name)
        self.results.wait(0.66)

    def _validate(self, recipe: str, rows: int, name: str, decodings: bool = False) -> None:
        args = (self.projects[name], changes_of(recipe), decodings)
        self.results.begin("validated", name, args, rows=rows, recipe=recipe)

    def ask(self) -> None:
        """The hold-out of each set, once; then, as time allows, the same recipe with other seeds on validation rows."""
        chosen = {rows: self._chosen(rows) for rows in SIZES}
        for name in self.names:
            recipe = chosen[SETS[name][1]]
            if not self.results.find("final", set=name):
                self.results.begin("final", name, (self.projects[name], changes_of(recipe)), recipe=recipe)
            self.results.begin("linear", name, (self.projects[name],))
        for rows, name in self.tuned if self.results.find("validated") else ():
            args = (self.projects[name], changes_of(chosen[rows]))
            self.results.begin("averaged", name, args, rows=rows, recipe=chosen[rows])
        self.results.wait(1)

    def _chosen(self, rows: int) -> str:
        scores = [*recipes_of(self.results, rows, self.sizes[rows])]
        return max(scores, key=lambda score: score[1:])[0] if scores else next(iter(RECIPES))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", type=Path, nargs="+", metavar="FILE", help="write the page of these results")
    parser.add_argument("--tune", action="store_true", help="choose recipes by validation rows first")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--snips", type=Path)
    parser.add_argument("--results", type=Path, default=Path("intents.jsonl"))
    parser.add_argument("--workers", type=int, default=5, help="processes on the card; 0: none but this one")
    parser.add_argument("--seconds", type=float, default=3600, help="what has not ended by then is left out")
    trial = '{"labels": N, "changes": {SECTION: {KEY: VALUE}}}: a small one, without a card'
    parser.add_argument("--trial", type=json.loads, default={}, help=trial)
    parser.add_argument("sets", nargs="*", metavar="SET", help=", ".join(SETS))
    given = parser.parse_args(arguments)
    if given.render:
        lines = [json.loads(line) for file in given.render for line in file.read_text(encoding="utf-8").splitlines()]
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "intents.md").write_text(page(lines, RECIPES), encoding="utf-8")
        return
    if not given.base or not given.snips or {*given.sets} - {*SETS}:
        parser.error("--base and --snips are needed, and each SET is one of those above")
    base, snips = given.base.absolute(), given.snips.absolute()
    results, home = Lines(given.results, work, given.workers, given.seconds), Path.cwd()
    names = [name for name in SETS if name in (given.sets or SETS)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            study = Study(results, names, Path(folder))
            study.prepare(base, snips, given.trial)
            if given.tune:
                study.tune()
            study.ask()
        finally:
            results.close()
            os.chdir(home)


if __name__ == "__main__":
    main()
