"""benchmarks/results/intents.md from the lines that intents.py measured."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.preferences import beside
from stages.scoring.intervals import paired_difference

Line = dict[str, Any]


def page(lines: Sequence[Line], recipes: Iterable[str]) -> str:
    """Markdown: the learning curve on the hold-out, what it was chosen by, decodings and means of seeds, faults."""
    sound = [line for line in lines if "error" not in line]
    machines = {
        f"{line['card']}, " + ", ".join(f"{name} {line['versions'][name]}" for name in ("torch", "transformers"))
        + f", {line['date']}": None
        for line in sound
        if line["kind"] == "described"
    }  # fmt: skip
    parts = [
        "# Intents",
        "`python benchmarks/intents.py`: its docstring says of what; measured on " + "; ".join(machines) + ".",
        *_curve(sound),
        *_choices(sound, [*recipes]),
        *_decodings(sound),
        *_means(sound),
    ]
    done = {_name(line) for line in sound}
    if faults := [line for line in lines if "error" in line and _name(line) not in done]:
        parts.append("Not measured: " + "; ".join(f"{_name(line)} ({line['error']})" for line in faults) + ".")
    return "\n\n".join(parts) + "\n"


def _name(line: Line) -> str:
    return " ".join(str(line[key]) for key in ("kind", "set", "recipe") if line.get(key))


def _order(name: str) -> tuple[str, int]:
    """Sets by source, then by their number of rows."""
    source, _, rows = name.partition(", ")
    return source, int("".join(re.findall("[0-9]+", rows)) or 0)


def _table(head: str, rows: Iterable[str]) -> str:
    columns = head.split(" | ")
    rule = "|".join("---" if number < 1 else "---:" for number in range(len(columns)))
    return "\n".join([f"| {head} |", f"|{rule}|", *rows])


def _curve(lines: Sequence[Line]) -> list[str]:
    """One row of each set that both models were asked; whether the tuned one is better, by the interval."""
    finals = {line["set"]: line for line in lines if line["kind"] == "final"}
    linear = {line["set"]: line for line in lines if line["kind"] == "linear"}
    labels = {line["set"]: line["labels"] for line in lines if line["kind"] == "prepare"}
    rows, better = [], []
    for name in sorted(finals.keys() & linear.keys(), key=_order):
        line, before = finals[name], linear[name]["right"]
        pairs = [*zip(before, line["right"], strict=True)]
        both, won, lost, neither = (pairs.count(pair) for pair in ((1, 1), (0, 1), (1, 0), (0, 0)))
        if paired_difference(both, won, lost, neither, 0.95)[0] > 0:
            better.append(name)
        shares = beside([bool(one) for one in before], [bool(one) for one in line["right"]])
        rows.append(
            f"| {name} | {labels.get(name, '')} | {line['train']} | {sum(before) / len(before):.2%} | {shares} | "
            f"{line['recipe']} | {line['seconds']:.0f} |"
        )
    if not rows:
        return []
    words = (
        f"On {len(better)} of {len(rows)} sets the whole interval of the tuned model against the linear one lies above "
        "0. The hold-out was asked once by each. Both models learnt from all training rows, those for validation among "
        "them. Shares have exact intervals of 95 %, changes on the same rows Newcombe's; the seconds are those of the "
        "training with others beside it on the card."
    )
    head = "set | labels | training rows | linear | tuned | against linear | won | lost | McNemar p | recipe | seconds"
    return ["## Learning curve", words, _table(head, rows)]


def _choices(lines: Sequence[Line], known: list[str]) -> list[str]:
    """Validation rows right, a recipe a row and a set a column."""
    found = [line for line in lines if line["kind"] == "validated"]
    if not found:
        return []
    sets = sorted({line["set"] for line in found}, key=_order)
    recipes = [*known, *dict.fromkeys(line["recipe"] for line in found if line["recipe"] not in known)]
    cells = {(line["recipe"], line["set"]): f"{line['right']} ({line['nats']:.3f})" for line in found}
    n = {line["set"]: line["n"] for line in found}
    chosen = {(line["recipe"], line["set"]) for line in lines if line["kind"] == "final"}
    rows = []
    for recipe in recipes:
        texts = [cells.get((recipe, name), "") for name in sets]
        if any(texts):
            told = [f"**{text}**" if (recipe, name) in chosen else text for text, name in zip(texts, sets, strict=True)]
            rows.append(f"| {recipe} | " + " | ".join(told) + " |")
    words = (
        "Validation rows right, and the mean nats of their labels; models of four fifths of the training rows. A "
        "recipe is chosen for a size, by the rows right of all its sets together and then by the nats (bold, where the "
        "hold-out was asked). An empty cell was not reached in the time."
    )
    head = " | ".join(["recipe", *(f"{name}: of {n[name]}" for name in sets)])
    return ["## What it was chosen by", words, _table(head, rows)]


def _decodings(lines: Sequence[Line]) -> list[str]:
    found = {line["set"]: line["decodings"] for line in lines if line.get("decodings")}
    rows = []
    for name in sorted(found, key=_order):
        said = [str(found[name].get(key, "not measured")) for key in ("none", "labels", "likeliest")]
        rows.append(f"| {name} | {found[name]['rows']} | " + " | ".join(said) + " |")
    words = (
        "The first validation rows, answered by one model in three ways: freely, held to the labels by a grammar "
        "(`generation.enforce: labels` beyond 50 labels), and by the likeliest of all labels (up to 50)."
    )
    return ["## Decoding", words, _table("set | rows | freely | held | likeliest", rows)] if rows else []


def _means(lines: Sequence[Line]) -> list[str]:
    found = {line["set"]: line for line in lines if line["kind"] == "averaged"}
    rows = [
        f"| {name} | {found[name]['n']} | {', '.join(map(str, found[name]['each']))} | {found[name]['right']} |"
        for name in sorted(found, key=_order)
    ]
    words = "Validation rows right of three models that differ in the seed, and of the mean of their weights."
    return ["## Seeds", words, _table("set | rows | each seed | mean of the weights", rows)] if rows else []
