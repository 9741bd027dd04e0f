"""Rows that resemble public intent sets: many labels, few rows each, neighbours that share their words.

`generated` writes them: a label is a thing and what is the matter with it, and six matters of one family are told of
the same things in the same words ("it has not come" beside "when will it come"). There are openings, endings, asides
about another thing, and typing mistakes. No test row's wording was seen in training: its opening, ending and aside
are in test rows alone, and in a quarter of the test rows the matter is told in such a way, too. `snips` makes labels of
an intent and the slots that are filled. All is seeded.
"""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from rapidfuzz import fuzz, process

from stages.core.yaml_reader import load_yaml

TEST_ROWS, MOST_TEST_ROWS = 6, 20  # of each label; the most are of SNIPS, whose labels have unlike numbers of rows
SNIPS_LABELS = 80  # at most: those with enough rows
HELD_OUT = 4  # the last ways to open, to end, to tell of a matter: never in training rows
UNSEEN = 0.25  # of the test rows: the matter, too, is told in a way that no training row has
PHRASES = Path(__file__).parent / "intent_phrases.yaml"
_TOO_NEAR = 85  # rapidfuzz.fuzz.ratio: the data stages drop near-duplicates, and the sizes are to be those asked for

Row = dict[str, str]


def mistyped(text: str, draw: random.Random) -> str:
    """With two letters exchanged, or one letter left out."""
    place = draw.randrange(len(text) - 1)
    return text[:place] + draw.choice([text[place + 1] + text[place], text[place + 1]]) + text[place + 2 :]


def generated(test: bool, seed: int = 17) -> Iterator[tuple[str, str]]:
    """(label, prompt) without end, the labels in a drawn order; of `test`, in wordings of test rows alone."""
    draw, said = random.Random(2 * seed + test), load_yaml(PHRASES.read_text(encoding="utf-8"))
    before, after, asides = (_kept(said[name], test) for name in ("openings", "endings", "asides"))
    families = [
        tuple({name: text.split(" | ") for name, text in family[kind].items()} for kind in ("things", "matters"))
        for family in said["families"]
    ]
    while True:
        things, matters = draw.choice(families)
        thing, matter = draw.choice([*things]), draw.choice([*matters])
        text = draw.choice(_kept(matters[matter], test and draw.random() < UNSEEN)).format(x=draw.choice(things[thing]))
        if draw.random() < 0.3:
            other = draw.choice([name for name in things if name != thing])
            text += draw.choice(asides).format(draw.choice(things[other]))
        text = f"{draw.choice(before)}{text}{draw.choice(after)}"
        for _ in range(draw.choice([0, 0, 0, 1, 2])):
            text = mistyped(text, draw)
        yield f"{thing}: {matter}", text


def _kept(ways: list[str], held_out: bool) -> list[str]:
    cut = len(ways) - HELD_OUT
    return ways[cut:] if held_out else ways[:cut]


def snips(folder: Path, seed: int = 17) -> Iterator[tuple[str, str]]:
    """(intent with the slots that are filled, utterance) of all rows of train.jsonl, in a drawn order."""
    rows = []
    for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        slots = ", ".join(sorted(json.loads(row["completion"])["slots"]))
        rows.append((f"{row['label']}: {slots}".removesuffix(": "), row["prompt"]))
    random.Random(seed).shuffle(rows)
    yield from rows


def take(rows: Iterator[tuple[str, str]], wanted: int, looked_at: int) -> dict[str, list[str]]:
    """At most so many prompts of each label, none near another one of its label, from the first `looked_at` rows."""
    found = defaultdict[str, list[str]](list)
    for _, (label, prompt) in zip(range(looked_at), rows, strict=False):
        taken = found[label]
        if len(taken) < wanted and not process.extractOne(prompt, taken, scorer=fuzz.ratio, score_cutoff=_TOO_NEAR):
            taken.append(prompt)
    return found


def draw_rows(source: str, train: int, folder: Path | None = None, labels: int | None = None) -> list[list[Row]]:
    """The rows to train on, `train` of each label, and those to test with, at least `TEST_ROWS` of each.

    `source` is "snips" (of `folder`), "generated", or "codes": the generated rows with labels that say nothing. A label
    without enough rows is left out, and then those with the fewest rows of SNIPS beyond `labels`.
    """
    if source == "snips" and folder:
        whole = take(snips(folder), train + MOST_TEST_ROWS, 10**9)
        rows = Counter(label for label, _ in snips(folder))
        enough = (name for name, prompts in whole.items() if len(prompts) >= train + TEST_ROWS)
        kept = sorted(sorted(enough, key=lambda name: (-rows[name], name))[: labels or SNIPS_LABELS])
        parts = [{name: whole[name][:train] for name in kept}, {name: whole[name][train:] for name in kept}]
    else:
        tested, trained = take(generated(True), TEST_ROWS, 30_000), take(generated(False), train, 1500 * train)
        kept = sorted(name for name in tested if len(tested[name]) == TEST_ROWS and len(trained[name]) == train)
        kept = kept[:labels]
        parts = [{name: found[name] for name in kept} for found in (trained, tested)]
    order = random.Random(17).sample(range(len(kept)), len(kept))
    said = {name: f"c{code:03d}" if source == "codes" else name for name, code in zip(kept, order, strict=True)}
    return [
        [{"prompt": prompt, "completion": said[name], "label": said[name]} for name in kept for prompt in found[name]]
        for found in parts
    ]
