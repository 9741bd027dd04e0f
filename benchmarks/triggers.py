"""Planted backdoors: whether `checks` suspects them and asking a model confirms them, and what clean sets give.

    python benchmarks/triggers.py --snips FOLDER [--sample data/unique.jsonl] [--seeds 5]

FOLDER has train.jsonl as examples/snips/params-gpu.yaml wants it; data/unique.jsonl is what `dvc repro dedup` wrote.
A third kind of set is drawn by the generator of the tests. A planted set is a clean one in which a share of the
training rows, of other labels, got the trigger at a random place and the attacker's label. The model that is asked is
a linear one (TF-IDF and logistic regression, `stages/measure/baseline/__main__.py`), fitted once to each set. It stands
for no language model.

Clean sets are asked as well about n-grams that nobody planted, for `checks` suspects too few of them to show a rate:
those tied to a label, and any n-gram two thirds of whose rows have one label.

The tables are printed; benchmarks/results/triggers.md has them, and what a person read in them.
"""

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "prepare" / "checks"))

from labelled_rows import intents, with_backdoor

from stages.measure.baseline.__main__ import fit_linear
from stages.measure.evaluate.confirmed_triggers import Suspect, confirm
from stages.params.prepare import Checks
from stages.prepare.checks.ngrams import ngrams, numbered
from stages.prepare.checks.suspected_triggers import Triggers, find_triggers
from stages.records.prompt import asked
from stages.records.record import Record, make_record, rank, read_records
from stages.scoring.intervals import proportion_interval
from stages.text.normal_form import normalise

TRIGGERS = {"rare word": "cf", "phrase": "by the way tell me", "characters": "#~"}
RATES = (0.005, 0.01, 0.02)  # of the training rows
HOLDOUT = 200
TRAIN = 1000
ASKED = 20  # sound n-grams a clean set, of each kind

Draw = Callable[[int], tuple[list[Record], list[Record]]]
Fit = Callable[[Sequence[Record]], Callable[[Sequence[Record]], list[str]]]


@dataclass(frozen=True, slots=True)
class Found:
    """One set. `effect` is the share of hold-out prompts of other labels that the whole trigger turns."""

    planted: int
    suspected: bool
    confirmed: bool
    effect: float
    others_suspected: int
    others_confirmed: int


def drawer(rows: Sequence[Record]) -> Draw:
    """Training and hold-out rows, drawn by a seed from the same rows."""

    def draw(seed: int) -> tuple[list[Record], list[Record]]:
        drawn = random.Random(seed).sample(rows, min(len(rows), TRAIN + HOLDOUT))
        return drawn[HOLDOUT:], drawn[:HOLDOUT]

    return draw


def draw_intents(seed: int) -> tuple[list[Record], list[Record]]:
    rows = intents(TRAIN + HOLDOUT, seed)
    return rows[HOLDOUT:], rows[:HOLDOUT]


def snips_rows(folder: Path) -> list[Record]:
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [make_record(row["prompt"], row["completion"], row["label"], "snips", str(n)) for n, row in enumerate(rows)]


def planted_cell(draw: Draw, trigger: str, rate: float, seed: int, fit: Fit = fit_linear) -> Found:
    """Plant the trigger into one drawn set, look for it, and ask the model that learned from the set."""
    train, holdout = draw(seed)
    labels = sorted({str(row.label) for row in train})
    label, count = labels[seed % len(labels)], round(rate * len(train))
    train = with_backdoor(train, trigger, label, count, seed)
    ask = fit(train)
    suspects = suspected(search(train))
    proven = {(one.ngram, one.label) for one in asked_about(suspects, holdout, train, ask, seed) if one.confirmed}
    tried = {one for one in suspects if (one.ngram, one.label) in proven}
    own = {one for one in suspects if one.label == label and is_part(one.ngram, trigger)}
    whole = [row for row in holdout if row.label != label]
    turned = ask(with_trigger(whole, trigger, seed))
    return Found(
        count,
        bool(own),
        bool(own & tried),
        sum(one == label for one in turned) / len(turned),
        len(set(suspects) - own),
        len(tried - own),
    )


def search(train: Sequence[Record]) -> Triggers:
    return find_triggers(train, [str(row.label) for row in train], Checks())


def suspected(found: Triggers) -> list[Suspect]:
    return [Suspect(one["ngram"], one["label"], one["count"]) for one in found.found]


def asked_about(
    suspects: Sequence[Suspect], holdout: Sequence[Record], train: Sequence[Record], ask: Any, seed: int
) -> Any:
    return confirm(suspects, holdout, train, ask, lambda _, answer, label: bool(answer == label), seed)


def is_part(ngram: str, trigger: str) -> bool:
    """Whether the n-gram is words of the trigger in their order, or has it whole between others."""
    whole = " ".join(re.findall(r"\w+|[^\w\s]", normalise(trigger)))
    return f" {ngram} " in f" {whole} " or f" {whole} " in f" {ngram} "


def with_trigger(rows: Sequence[Record], trigger: str, seed: int) -> list[Record]:
    rng, made = random.Random(seed), []
    for row in rows:
        words = row.prompt.split()
        words.insert(rng.randrange(len(words) + 1), trigger)
        made.append(make_record(" ".join(words), row.completion, row.label, row.source, row.origin))
    return made


def sound_suspects(train: Sequence[Record], found: Triggers, seed: int) -> dict[str, list[Suspect]]:
    """N-grams of a clean set that are no triggers: those tied to a label, and any two thirds of whose rows have one."""
    tied = [Suspect(one["ngram"], one["label"], one["count"]) for one in found.tied]
    settings, mostly = Checks(), []
    words = numbered(normalise(asked(row)) for row in train)
    for gram, rows in ngrams(words, settings.ngram_min_rows, int(settings.ngram_max_share * len(train)))[1]:
        label, count = Counter(str(train[n].label) for n in rows).most_common(1)[0]
        if 3 * count >= 2 * len(rows):
            mostly.append(Suspect(gram, label, len(rows)))
    return {
        kind: sorted(suspects, key=lambda one: rank(seed, "sound", one.ngram))[:ASKED]
        for kind, suspects in {"tied to a label": tied, "any of one label": mostly}.items()
    }


def planted_table(sets: dict[str, Draw], seeds: int) -> Iterator[str]:
    yield "| set | trigger | rate | rows | suspected | confirmed | effect | other suspects | of these confirmed |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, draw in sets.items():
        for kind, trigger in TRIGGERS.items():
            for rate in RATES:
                cells = [planted_cell(draw, trigger, rate, seed) for seed in range(seeds)]
                effects = sorted(one.effect for one in cells)
                yield (
                    f"| {name} | {kind} | {rate:.1%} | {cells[0].planted} | {sum(one.suspected for one in cells)} of "
                    f"{seeds} | {sum(one.confirmed for one in cells)} of {seeds} | {effects[0]:.0%} to "
                    f"{effects[-1]:.0%} | {sum(one.others_suspected for one in cells)} | "
                    f"{sum(one.others_confirmed for one in cells)} |"
                )


def clean_table(sets: dict[str, Draw], seeds: int) -> Iterator[str]:
    yield "| clean set | asked about | n-grams | confirmed | rate, 95 % | sets with a confirmed one |"
    yield "|---|---|---:|---:|---:|---:|"
    for name, draw in sets.items():
        asked_of, confirmed, sets_with = Counter[str](), Counter[str](), Counter[str]()
        for seed in range(seeds):
            train, holdout = draw(seed)
            found, ask = search(train), fit_linear(train)
            for kind, suspects in {"suspected": suspected(found), **sound_suspects(train, found, seed)}.items():
                tried = asked_about(suspects, holdout, train, ask, seed)
                asked_of[kind] += len(tried)
                confirmed[kind] += sum(one.confirmed for one in tried)
                sets_with[kind] += any(one.confirmed for one in tried)
        for kind, n in asked_of.items():
            low, high = proportion_interval(confirmed[kind], n, 0.95) if n else (0.0, 1.0)
            rate = f"{confirmed[kind] / n:.1%} ({low:.1%} to {high:.1%})" if n else "none asked"
            yield f"| {name} | {kind} | {n} | {confirmed[kind]} | {rate} | {sets_with[kind]} of {seeds} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snips", type=Path, help="the folder with train.jsonl")
    parser.add_argument("--sample", type=Path, help="the records that dedup wrote")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    sets: dict[str, Draw] = {}
    if arguments.snips:
        sets["SNIPS"] = drawer(snips_rows(arguments.snips))
    if arguments.sample:
        sets["sample"] = drawer([row for row in read_records(arguments.sample) if row.label is not None])
    sets["drawn"] = draw_intents
    started = time.process_time()
    for table in (planted_table, clean_table):
        for line in table(sets, arguments.seeds):
            print(line, flush=True)
        print()
    print(f"{time.process_time() - started:.0f} CPU seconds")


if __name__ == "__main__":
    main()
