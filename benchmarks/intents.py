"""Many labels, few rows each: a classification head beside written labels and the linear baseline, on the same rows.

    python benchmarks/intents.py --base models/base --snips FOLDER [SET ...]

FOLDER has the train.jsonl of examples/snips/params-gpu.yaml; models/base is what `dvc repro base` wrote. A set is
intent-like: labels of SNIPS that are an intent with the slots that are filled, or labels of a seeded generator that
combines what a customer wants with what it is about, in many words. The settings are those of examples/intents. The
pipeline's own stages clean, deduplicate, split and train in a project of each set; the hold-out is judged once. Writes
benchmarks/results/intents.md.
"""

import argparse
import importlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from dvc.utils.serialize import dumps_yaml
from rapidfuzz import fuzz, process

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.preferences import beside
from benchmarks.snips import use_template
from benchmarks.workers import RESULTS
from stages.core import paths
from stages.core.errors import UserError
from stages.core.yaml_reader import load_yaml
from stages.engines.in_process import in_process_rows
from stages.measure.baseline.__main__ import linear_answers
from stages.model.chat import task_chat
from stages.model.loading import Weights, load_tokenizer
from stages.params.loader import load_params
from stages.records.record import read_records
from stages.ship.merge_quantize.served_answers import contracts

ROOT = Path(__file__).parents[1]
SETTINGS = ROOT / "examples" / "intents" / "params.yaml"
TEST_ROWS = 6  # of each label
SNIPS_LABELS, GENERATED_LABELS = 80, 100
# NAME: (where the rows come from, training rows of each label, epochs: fewer rows, more of them)
SETS = {
    "SNIPS, 10 rows": ("snips", 10, 8),
    "generated, 5 rows": ("generated", 5, 10),
    "generated, 10 rows": ("generated", 10, 8),
    "generated, 30 rows": ("generated", 30, 5),
}
_TOO_NEAR = 85  # rapidfuzz.fuzz.ratio: the data stages drop near-duplicates, and the sizes are to be those above

WANTS = {
    "cancel": ["cancel", "call off", "get rid of", "stop", "end", "back out of", "I no longer want", "drop"],
    "change": ["change", "modify", "edit", "adjust", "make a correction to", "update", "switch something on", "amend"],
    "find": [
        "find",
        "locate",
        "where do I see",
        "look up",
        "I can't see",
        "show me",
        "where did you put",
        "track down",
    ],
    "pay for": ["pay for", "settle", "what do I owe on", "cover the cost of", "use my card for", "make a payment on"],
    "dispute": ["dispute", "that is not mine:", "I never agreed to", "challenge", "there is a mistake in", "contest"],
    "renew": ["renew", "extend", "keep going with", "prolong", "sign up again for", "continue", "get another year of"],
    "share": ["share", "give my wife access to", "send a friend", "add a person to", "pass on", "let someone else use"],
    "compare": ["compare", "which is better,", "what sets apart", "tell me the differences of", "weigh up", "choose"],
    "repair": ["repair", "fix", "it is broken:", "sort out the fault in", "get working again", "mend", "troubleshoot"],
    "insure": ["insure", "protect", "get cover for", "what if I lose", "add a guarantee to", "make safe", "warrant"],
}
THINGS = {
    "order": ["my order", "the things I bought", "my purchase", "what I ordered last week", "the basket I checked out"],
    "subscription": [
        "my subscription",
        "the monthly plan",
        "my membership",
        "the package I am on",
        "what I pay monthly",
    ],
    "card": ["my card", "the plastic you sent", "my debit card", "the visa", "the thing I pay with in shops"],
    "flight": ["my flight", "the plane to Oslo", "my trip by air", "the seat on Monday's plane", "my boarding"],
    "loan": ["my loan", "the money I borrowed", "my credit", "the mortgage", "what I am paying off"],
    "phone": ["my phone", "the handset", "my mobile", "the device in my pocket", "my new smartphone"],
    "hotel": ["my hotel room", "the place I am staying", "my reservation in Rome", "the suite", "my overnight stay"],
    "delivery": ["my delivery", "the parcel", "the package on its way", "my shipment", "what the courier has"],
    "invoice": ["my invoice", "the bill", "the statement from May", "the paper with the total", "my receipt"],
    "car": ["my car", "the vehicle I rent", "my hire car", "the van for the weekend", "my ride"],
}
BEFORE = [
    "",
    "hi, ",
    "please help: ",
    "quick question, ",
    "I have been trying all day to ",
    "is there a way to ",
    "so ",
]
BEFORE += [
    "my sister said you could ",
    "I already did the other thing, now ",
    "not urgent, but ",
    "how can I ",
    "can you ",
]
AFTER = ["", " please", " before the weekend", ", is that possible?", " and not the other one", " as soon as you can"]
AFTER += [
    ", thanks",
    " since I moved house",
    " because it costs too much",
    ", the app would not let me",
    " for my mother",
]

Row = dict[str, str]


def generated(seed: int = 17) -> Iterator[tuple[str, str]]:
    """(label, prompt) without end, the labels in a drawn order."""
    draw = random.Random(seed)
    labels = [(want, thing) for want in WANTS for thing in THINGS][:GENERATED_LABELS]
    while True:
        want, thing = draw.choice(labels)
        what = f"{draw.choice(WANTS[want])} {draw.choice(THINGS[thing])}"
        if draw.random() < 0.3:  # of something else, which is settled
            other = draw.choice([one for one in THINGS if one != thing])
            what += draw.choice([", {} is fine", ", it is not about {}", " that came with {}"]).format(
                draw.choice(THINGS[other])
            )
        yield f"{want} {thing}", f"{draw.choice(BEFORE)}{what}{draw.choice(AFTER)}"


def snips(folder: Path, seed: int = 17) -> Iterator[tuple[str, str]]:
    """(intent with the slots that are filled, utterance): the combinations that most rows have."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        slots = ", ".join(sorted(json.loads(row["completion"])["slots"]))
        by_label[f"{row['label']}: {slots}".removesuffix(": ")].append(row["prompt"])
    kept = sorted(by_label, key=lambda label: (-len(by_label[label]), label))[:SNIPS_LABELS]
    rows = [(label, prompt) for label in kept for prompt in by_label[label]]
    random.Random(seed).shuffle(rows)
    yield from rows


def draw_rows(rows: Iterator[tuple[str, str]], labels: int, train: int) -> tuple[list[Row], list[Row]]:
    """So many rows of each label to train on, and TEST_ROWS to test with; none near another one of any label.

    At most 200 times as many rows are looked at; a label that has too few then is left out.
    """
    wanted, found = train + TEST_ROWS, defaultdict[str, list[str]](list)
    taken: list[str] = []
    for _, (label, prompt) in zip(range(200 * labels * wanted), rows, strict=False):
        if len(found[label]) < wanted and not (
            taken and process.extractOne(prompt, taken, scorer=fuzz.ratio, score_cutoff=_TOO_NEAR)
        ):
            found[label].append(prompt)
            taken.append(prompt)
            if len(taken) == labels * wanted:
                break
    whole = {label: prompts for label, prompts in sorted(found.items()) if len(prompts) == wanted}
    made = {
        label: [{"prompt": p, "completion": label, "label": label} for p in prompts] for label, prompts in whole.items()
    }
    test = [row for of_label in made.values() for row in of_label[:TEST_ROWS]]
    return [row for of_label in made.values() for row in of_label[TEST_ROWS:]], test


def prepare(project: Path, base: Path, train: list[Row], test: list[Row], changes: dict[str, Any]) -> None:
    """The project up to `augment`, with all of test.jsonl as the hold-out."""
    (project / "data" / "raw").mkdir(parents=True)
    for name in ("stages", "examples", "constraints", "dvc.yaml"):
        (project / name).symlink_to(ROOT / name)
    for name in ("chat_template.jinja", "schema.json", "replay.jsonl"):
        shutil.copy(ROOT / "data" / name, project / "data")
    for name, rows in (("train", train), ("test", test)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (project / "data" / "raw" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (project / paths.BASE).mkdir(parents=True)
    for file in base.iterdir():
        (project / paths.BASE / file.name).symlink_to(file.resolve())
    params = load_yaml(SETTINGS.read_text(encoding="utf-8"))
    params["task"]["labels"] = sorted({row["label"] for row in train})
    for section, values in changes.items():
        params[section] |= values
    (project / "params.yaml").write_text(dumps_yaml(params), encoding="utf-8")
    os.chdir(project)
    use_template(project, load_params("model").model.chat_template)
    for stage in ("clean", "dedup"):
        run_stage(f"prepare.{stage}")
    draw = ["-m", "stages.cli", "holdout", "draw", "--source", "test.jsonl"]
    subprocess.run([sys.executable, *draw], check=True)
    for stage in ("split", "augment"):
        run_stage(f"prepare.{stage}")


def run_stage(name: str) -> None:
    importlib.import_module(f"stages.{name}.__main__").main()


def trained(head: str) -> float:
    """Train a head in the working directory's project; the seconds that took."""
    file = Path("params.yaml")
    params = load_yaml(file.read_text(encoding="utf-8"))
    params["train"]["head"] = head
    file.write_text(dumps_yaml(params), encoding="utf-8")
    start = time.perf_counter()
    run_stage("tune.train")
    return time.perf_counter() - start


def answered(enforce: str) -> list[bool]:
    """Whether what the project's model says to each row of the hold-out is its label."""
    params, records = load_params("generation", "task"), read_records(paths.HOLDOUT)
    chat, held = task_chat(load_tokenizer(paths.BASE), params.task), contracts(records, params, enforce)
    rows = in_process_rows(Weights(paths.BASE, paths.SFT), chat, records, params.generation, held, "holdout")
    return [row["output"] == row["completion"] for row in rows]


def measure(name: str) -> Iterator[str]:
    """The table's rows of one set, in the working directory's project."""
    train, test = read_records(paths.TRAIN), read_records(paths.HOLDOUT)
    linear = [one["right"] for one in linear_answers(train, test)]
    labels = len({record.label for record in train})
    of_set = f"| {name} | {labels} | {len(train)} |"
    yield f"{of_set} linear | {beside(linear, linear)} | |"
    seconds = trained("completion")
    for enforce in ("none", "labels"):
        try:
            yield f"{of_set} completion, enforce: {enforce} | {beside(linear, answered(enforce))} | {seconds:.0f} |"
        except UserError as error:
            yield f"{of_set} completion, enforce: {enforce} | not measured: {error} | | | | {seconds:.0f} |"
    seconds = trained("label")
    yield f"{of_set} label | {beside(linear, answered('none'))} | {seconds:.0f} |"


def main(changes: dict[str, Any] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--snips", type=Path, required=True)
    parser.add_argument("--projects", type=Path, help="a new folder that keeps the sets' projects")
    parser.add_argument("sets", nargs="*", metavar="SET", help=", ".join(SETS))
    given = parser.parse_args()
    base, data, start = given.base.absolute(), given.snips.absolute(), time.perf_counter()
    lines = [
        "| set | labels | training rows | model | right | against linear | won | lost | McNemar p | seconds to train |",
        "|---|---:|---:|---|---|---|---:|---:|---:|---:|",
    ]
    with (
        nullcontext(given.projects and given.projects.absolute())
        if given.projects
        else tempfile.TemporaryDirectory() as folder
    ):
        for number, name in enumerate(given.sets or SETS):
            source, rows, epochs = SETS[name]
            told = {**(changes or {}), "train": {"epochs": epochs, **(changes or {}).get("train", {})}}
            drawn = snips(data) if source == "snips" else generated()
            parts = draw_rows(drawn, SNIPS_LABELS if source == "snips" else GENERATED_LABELS, rows)
            prepare(Path(folder) / str(number), base, *parts, told)
            for line in measure(name):
                lines.append(line)
                print(line, flush=True)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    words = (
        f"{card}, Python {platform.python_version()}, torch {torch.__version__}; {time.perf_counter() - start:.0f} s."
    )
    RESULTS.mkdir(exist_ok=True)
    text = (
        "# Intents\n\n`python benchmarks/intents.py`: its docstring says of what. Intervals of 95 %, exact for shares "
    )
    text += f"and Newcombe's for changes on the same rows.\n\n{words}\n\n"
    (RESULTS / "intents.md").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
