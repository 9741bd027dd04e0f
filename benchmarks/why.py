"""Planted wrong labels, and how high `tunetrail why` ranks them among the rows behind the wrong answers.

    python benchmarks/why.py --base models/base --data FOLDER [--project NEW_FOLDER]

FOLDER has SNIPS' train.jsonl; models/base is what `dvc repro base` wrote. Of its rows, pairs of unlike but resembling
prompts with one intent are drawn: one of a pair is held out, the other stays in training, with another intent. The
stage `train` trains on them and on clean rows. Where the tuned model gives a held-out row the planted intent, the
planted row is behind the answer, and every way to rank the training rows is asked for its first ten.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dvc.utils.serialize import dumps_yaml
from rapidfuzz import fuzz, process

sys.path.insert(0, str(Path(__file__).parents[1]))

from stages.core import paths
from stages.core.run_notes import machine_notes
from stages.core.yaml_reader import load_yaml
from stages.model.answers import answer_rows
from stages.model.chat import task_chat
from stages.model.loading import Weights, causal_of, load_tokenizer, load_tuned
from stages.params.loader import load_params
from stages.records.prompt import asked
from stages.records.record import Record, make_record, read_records, read_rows, write_records, write_rows
from stages.weekly.why import WIDTH, Influence, NearestRows

ROOT = Path(__file__).parents[1]
PLANTED, CLEAN, VALIDATION, POOL = 60, 200, 10, 4000
BEHIND = 20  # planted rows behind wrong answers that are counted, in the order of the held-out rows' ids
ALIKE = (70, 90)  # rapidfuzz ratio of a planted row to its held-out one: below `dedup.threshold`
PARAMS: dict[str, dict[str, Any]] = {
    "task": {
        "kind": "classification",
        "instruction": "Name the intent.",
        "schema_file": "data/schema.json",
    },
    "train": {"epochs": 7, "batch_size": 8, "learning_rate": 2e-3, "early_stopping_patience": None},
    "generation": {"max_new_tokens": 12},
}


def lay_out(project: Path, base: Path, data: Path, seed: int = 17) -> dict[str, str]:
    """The project as `augment` leaves it; the planted row's id by the id of its held-out row."""
    draw = random.Random(seed)
    rows = list(read_rows(data / "train.jsonl"))
    draw.shuffle(rows)
    pool = rows[:POOL]
    labels = sorted({row["label"] for row in pool})
    near = process.cdist([row["prompt"] for row in pool[:1000]], [row["prompt"] for row in pool], scorer=fuzz.ratio)
    taken: set[int] = set()
    holdout: list[Record] = []
    train: list[Record] = []
    planted: dict[str, str] = {}
    for one in range(1000):
        if one in taken or len(holdout) == PLANTED:
            continue
        for other in np.argsort(-near[one]).tolist():
            if other == one or near[one][other] >= ALIKE[1]:
                continue
            if near[one][other] < ALIKE[0]:
                break
            if other in taken or pool[one]["label"] != pool[other]["label"]:
                continue
            wrong = draw.choice([label for label in labels if label != pool[one]["label"]])
            held, bad = record(pool[one], "holdout", one), record(pool[other], "planted", other, wrong)
            holdout.append(held)
            train.append(bad)
            planted[held.id] = bad.id
            taken |= {one, other}
            break
    rest = [(n, row) for n, row in enumerate(rows) if n not in taken]
    train += [record(row, "snips", n) for n, row in rest[:CLEAN]]
    params = load_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, values in PARAMS.items():
        params[section] = params[section] | values
    params["task"]["labels"] = labels
    project.mkdir(parents=True)
    for name in ("constraints", "dvc.yaml"):
        (project / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "stages", project / "stages")  # `train` refuses code that changes while it runs
    (project / "params.yaml").write_text(dumps_yaml(params), encoding="utf-8")
    (project / "models").mkdir()
    (project / paths.BASE).symlink_to(base.resolve())
    draw.shuffle(train)
    write_records(project / paths.TRAIN, train)
    write_records(project / paths.HOLDOUT, holdout)
    write_records(project / paths.VALIDATION, [record(row, "snips", n) for n, row in rest[CLEAN:][:VALIDATION]])
    return planted
    return planted


def record(row: dict[str, Any], source: str, line: int, label: str | None = None) -> Record:
    label = label or row["label"]
    return make_record(row["prompt"], label, label, source, f"train.jsonl:{line + 1}")


def tune(project: Path) -> None:
    """`train`, with its own model as what ships, and its answers to the hold-out."""
    git = ["git", "-c", "user.name=b", "-c", "user.email=b@example.org"]
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "rows"], cwd=project, check=True)
    subprocess.run([sys.executable, "-m", "stages.tune.train"], cwd=project, check=True)
    os.chdir(project)
    paths.ADAPTER.symlink_to(paths.SFT.name)
    params = load_params("generation", "task")
    chat = task_chat(load_tokenizer(paths.BASE), params.task)
    rows = answer_rows(
        load_tuned(paths.BASE, paths.ADAPTER), chat, read_records(paths.HOLDOUT), params.generation, "hold-out"
    )
    write_rows(paths.ADAPTER_GENERATIONS, rows)


def rankings() -> Iterator[tuple[str, Callable[[Record, str], Any]]]:
    """Each way by its name, as scores of the training rows for a held-out row and its answer; to be called at once."""
    params = load_params("task", "train")
    chat, train = task_chat(load_tokenizer(paths.BASE), params.task), read_records(paths.TRAIN)
    texts = [asked(row) for row in train]
    near = NearestRows(texts)

    def by_words(held: Record, said: str) -> Any:
        found = dict(near.nearest(asked(held), len(train)))
        return np.array([found.get(place, 0.0) for place in range(len(train))])

    yield "TF-IDF of the prompts (`why`)", by_words

    def by_letters(held: Record, said: str) -> Any:
        return process.cdist([asked(held)], texts, scorer=fuzz.ratio)[0]

    yield "rapidfuzz ratio of the prompts (the report)", by_letters
    weights = Weights(paths.BASE, paths.ADAPTER)
    gradients = Influence(weights, [(chat.prompt_ids(row), chat.completion_ids(row.completion)) for row in train])
    start = time.perf_counter()
    rows = gradients.rows
    print(f"gradients of {len(rows)} rows: {time.perf_counter() - start:.0f} s", flush=True)
    length = rows.norm(dim=1)
    damping = 0.1 * float((length**2).mean()) / WIDTH  # Kwon et al. 2024, section 5: a tenth of the mean square

    @cache
    def sketch(held: Record, said: str, contrast: bool) -> Any:
        prompt = chat.prompt_ids(held)
        found = gradients.asked((prompt, chat.completion_ids(said)))
        return found - gradients.asked((prompt, chat.completion_ids(held.completion))) if contrast else found

    def by_gradients(measure: Any, contrast: bool) -> Callable[[Record, str], Any]:
        return lambda held, said: (rows @ sketch(held, said, contrast) / measure).numpy()

    yield "gradients, cosine, the answer less the reference", by_gradients(length, True)
    yield "gradients, cosine (`why`)", by_gradients(length, False)
    yield "gradients, dot product, less the reference (TracIn)", by_gradients(1.0, True)

    def by_datainf(held: Record, said: str) -> Any:
        one = sketch(held, said, True)
        return (rows @ (one - (rows @ one / (damping + length**2)) @ rows / len(rows))).numpy()

    yield "gradients, DataInf, less the reference", by_datainf
    states = torch.stack([state(weights.model, chat.prompt_ids(row)) for row in train])

    def by_state(held: Record, said: str) -> Any:
        one = state(weights.model, chat.prompt_ids(held)) - states.mean(0)
        return torch.nn.functional.cosine_similarity(states - states.mean(0), one[None]).numpy()

    yield "cosine of the model's last hidden state, centred", by_state


@torch.no_grad()
def state(model: Any, prompt: list[int]) -> torch.Tensor:
    """What the model has read, where it begins to answer."""
    found: torch.Tensor = causal_of(model).base_model(torch.tensor([prompt])).last_hidden_state[0, -1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--project", type=Path, help="a new folder that keeps the project")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        project = (arguments.project or Path(scratch) / "project").absolute()
        planted = lay_out(project, arguments.base, arguments.data.absolute())
        start = time.perf_counter()
        tune(project)
        trained = time.perf_counter() - start
        measure(planted, trained)


def measure(planted: dict[str, str], trained: float) -> None:
    """Print the table, in the project's folder."""
    rows = read_records(paths.TRAIN)
    place, wrong = {row.id: at for at, row in enumerate(rows)}, [row.source == "planted" for row in rows]
    holdout = {row.id: row for row in read_records(paths.HOLDOUT)}
    answers = sorted(read_rows(paths.ADAPTER_GENERATIONS), key=lambda row: row["id"])
    cases = [(holdout[row["id"]], row["output"], place[planted[row["id"]]]) for row in answers]
    behind = [case for case in cases if case[1] == rows[case[2]].completion]
    print(f"{machine_notes()}, {os.cpu_count()} cores; stage `train` and answers {trained:.0f} s")
    failed = sum(row["output"] != row["completion"] for row in answers)
    print(f"{len(rows)} training rows, {len(planted)} of them planted; of {len(answers)} held-out rows {failed} are")
    print(f"answered wrongly, {len(behind)} with the planted intent.\n")
    print("| way | its planted row among the first ten | first | median place | planted rows in a first ten |")
    print("|---|---:|---:|---:|---:|")
    behind = behind[:BEHIND]
    for name, scores in rankings():
        found = [(np.asarray(scores(held, said)), bad) for held, said, bad in behind]
        places = [1 + int((one > one[bad]).sum()) for one, bad in found]
        tens = np.mean([sum(wrong[at] for at in np.argsort(-one, kind="stable")[:10]) for one, _ in found])
        ten, first = sum(at <= 10 for at in places), sum(at == 1 for at in places)
        print(f"| {name} | {ten} of {len(places)} | {first} | {np.median(places):g} | {tens:.1f} |", flush=True)
    ten, first = len(behind) * 10 / len(rows), len(behind) / len(rows)
    tens = 10 * sum(wrong) / len(rows)
    print(f"| chance | {ten:.1f} of {len(behind)} | {first:.1f} | {(len(rows) + 1) / 2:g} | {tens:.1f} |")


if __name__ == "__main__":
    main()
