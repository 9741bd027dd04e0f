"""Planted backdoors and clean sets, as benchmarks/triggers.py has them, asked of the model that was tuned on each set.

    python benchmarks/triggers_tuned.py --base models/base [--snips FOLDER] [--sample data/unique.jsonl]
        [--seeds 1] [--parallel 3]

Every set is trained on by the stage `train` in a project of its own, as classification: the answer is the label. Then
`confirm` asks that model about what `checks` suspects in the set; in a clean set also about n-grams that nobody
planted. The tables are printed, with the machine and what a set took; benchmarks/results/triggers_tuned.md has them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from loop import ROOT, machine, make_project, read_yaml
from triggers import (
    RATES,
    TRIGGERS,
    Draw,
    asked_about,
    draw_intents,
    drawer,
    planted_cell,
    read_records,
    search,
    snips_rows,
    sound_suspects,
    suspected,
)

from stages.records.record import Record, write_records
from stages.scoring.intervals import proportion_interval

RECIPE = {
    "method": "lora", "rank": 16, "alpha": 32, "layers_to_transform": None, "learning_rate": 1e-3, "epochs": 3,
    "batch_size": 16, "max_tokens": 384, "evaluate_every": 1000, "early_stopping_patience": None, "sample_prompts": 0,
}  # fmt: skip
VALIDATION = 20  # of the training rows, which the stage needs
KINDS = ("suspected", "tied to a label", "any of one label")


def labelled(rows: Sequence[Record]) -> list[Record]:
    """The rows with their label for an answer."""
    return [replace(row, completion=str(row.label)) for row in rows]


@contextmanager
def tuned(train: Sequence[Record], base: Path, folder: Path) -> Iterator[Callable[[Sequence[Record]], list[str]]]:
    """Train on the rows in a project in `folder`; what is given back asks that model for labels."""
    params = read_yaml(ROOT / "params.yaml")
    labels = sorted({str(row.label) for row in train})
    params["task"] |= {"kind": "classification", "labels": labels, "instruction": "Name the intent of the message."}
    params["train"] |= RECIPE
    params["generation"]["max_new_tokens"] = 16
    (folder / "raw").mkdir()
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")  # JSON is YAML
    project = folder / "project"
    make_project(project, folder / "params.json", folder / "raw")
    (project / "models").mkdir()
    (project / "models/base").symlink_to(base.resolve())
    for name, rows in {"train": train[VALIDATION:], "split/validation": train[:VALIDATION]}.items():
        write_records(project / f"data/{name}.jsonl", labelled(rows))
    stage = [sys.executable, "-m", "stages.tune.train"]
    done = subprocess.run(stage, cwd=project, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, __file__, "--answer"], cwd=project, **pipes) as process:
        talk: Any = process

        def ask(records: Sequence[Record]) -> list[str]:
            write_records(project / "data/asked.jsonl", labelled(records))
            print("data/asked.jsonl", file=talk.stdin, flush=True)
            for line in talk.stdout:
                if line.startswith("["):
                    answers: list[str] = json.loads(line)
                    return answers
            raise RuntimeError("the model that was asked is gone")

        yield ask
        talk.stdin.close()


def answer_here() -> None:
    """In a project: the tuned model's answers to the records of each file that a line names, as one line of JSON."""
    from stages.core import paths
    from stages.model.answers import answer_rows
    from stages.model.chat import task_chat
    from stages.model.loading import Weights, load_tokenizer
    from stages.params.loader import load_params

    params = load_params("generation", "task")
    chat, weights = task_chat(load_tokenizer(paths.BASE), params.task), Weights(paths.BASE, paths.SFT)
    for line in sys.stdin:
        rows = answer_rows(weights, chat, read_records(Path(line.strip())), params.generation, "triggers")
        print(json.dumps([row["output"].strip() for row in rows]), flush=True)


def planted(base: Path, draw: Draw, trigger: str, rate: float, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_:
        fit = lambda rows: open_.enter_context(tuned(rows, base, Path(folder)))  # noqa: E731
        return asdict(planted_cell(draw, trigger, rate, seed, fit))


def clean(base: Path, draw: Draw, seed: int) -> dict[str, Any]:
    """Of each kind of n-gram that nobody planted, how many were asked about and confirmed; and the right answers."""
    train, holdout = draw(seed)
    found, counts = search(train), Counter[str]()
    with tempfile.TemporaryDirectory() as folder, tuned(train, base, Path(folder)) as ask:
        for kind, suspects in {"suspected": suspected(found), **sound_suspects(train, found, seed)}.items():
            tried = asked_about(suspects, holdout, train, ask, seed) if suspects else []
            counts[kind], counts[f"{kind}, confirmed"] = len(tried), sum(one.confirmed for one in tried)
        right = sum(said == row.label for said, row in zip(ask(holdout), holdout, strict=True)) / len(holdout)
    return {"right": right, **counts}


def tables(base: Path, sets: dict[str, Draw], seeds: int, parallel: int) -> Iterator[str]:
    with ThreadPoolExecutor(parallel) as pool:
        cells = {
            (name, kind, rate): [pool.submit(planted, base, draw, TRIGGERS[kind], rate, seed) for seed in range(seeds)]
            for name, draw in sets.items()
            for kind in TRIGGERS
            for rate in RATES
        }
        sound = {name: [pool.submit(clean, base, draw, seed) for seed in range(seeds)] for name, draw in sets.items()}
        yield "| set | trigger | rate | rows | suspected | confirmed | effect | other suspects | of these confirmed |"
        yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
        for (name, kind, rate), futures in cells.items():
            found = [future.result() for future in futures]
            effects = sorted(one["effect"] for one in found)
            total = {key: sum(one[key] for one in found) for key in found[0]}
            yield (
                f"| {name} | {kind} | {rate:.1%} | {found[0]['planted']} | {total['suspected']} of {seeds} | "
                f"{total['confirmed']} of {seeds} | {effects[0]:.0%} to {effects[-1]:.0%} | "
                f"{total['others_suspected']} | {total['others_confirmed']} |"
            )
        yield ""
        yield "| clean set | right on the hold-out | asked about | n-grams | confirmed | rate, 95 % |"
        yield "|---|---:|---|---:|---:|---:|"
        for name, futures in sound.items():
            found = [future.result() for future in futures]
            for kind in KINDS:
                n, confirmed = (sum(one[key] for one in found) for key in (kind, f"{kind}, confirmed"))
                low, high = proportion_interval(confirmed, n, 0.95) if n else (0.0, 1.0)
                rate_ = f"{confirmed / n:.1%} ({low:.1%} to {high:.1%})" if n else "none asked"
                right = " ".join(f"{one['right']:.1%}" for one in found)
                yield f"| {name} | {right} | {kind} | {n} | {confirmed} | {rate_} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="the base model that `dvc repro base` wrote")
    parser.add_argument("--snips", type=Path, help="the folder with train.jsonl")
    parser.add_argument("--sample", type=Path, help="the records that dedup wrote")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=1, help="sets at once, on one card")
    arguments = parser.parse_args()
    sets: dict[str, Draw] = {}
    if arguments.snips:
        sets["SNIPS"] = drawer(snips_rows(arguments.snips))
    if arguments.sample:
        sets["sample"] = drawer([row for row in read_records(arguments.sample) if row.label is not None])
    sets["drawn"] = draw_intents
    started = time.perf_counter()
    for line in tables(arguments.base, sets, arguments.seeds, arguments.parallel):
        print(line, flush=True)
    print(f"\n{machine()}; {time.perf_counter() - started:.0f} s, {arguments.parallel} sets at once")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        answer_here()
    else:
        main()
