"""What the hold-out is and how far it is from what was trained on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.report.formats import excerpt, plural, whole

_PARTS = ("train", "validation", "holdout")


@dataclass(frozen=True)
class LabelRow:
    """The rows of one label in training, validation and hold-out."""

    name: str
    counts: list[int]


def holdout_facts(split: Mapping[str, Any]) -> list[str]:
    """Sentences from metrics/split.json."""
    return list(_facts(split))


def label_rows(split: Mapping[str, Any]) -> list[LabelRow]:
    return [
        LabelRow(excerpt(label, 80), [counts.get(part, 0) for part in _PARTS])
        for label, counts in split["labels"].items()
    ]


def _facts(split: Mapping[str, Any]) -> Iterator[str]:
    locked, overlap = split["locked"], split["overlap"]
    yield f"{plural(locked['rows'], 'row')} locked; {whole(locked['missing'])} of them missing from the data"
    yield (
        f"shared with training and validation: {plural(overlap['shared_ids'], 'id')}, "
        f"{plural(overlap['shared_prompts'], 'prompt')}"
    )
    for part, found in split.get("shared_13_grams", {}).items():
        yield (
            f"13 words in a row that a trained row has too: in {whole(found['rows'])} of "
            f"{plural(found['of'], part)} long enough"
        )
    short = {part: sum(counts.values()) for part, counts in split.get("kept_back_by_groups", {}).items()}
    for part, count in short.items():
        if count:
            name = {"holdout": "the hold-out"}.get(part, part)
            yield f"{plural(count, 'row')} fewer than wanted in {name}, because near-duplicates stay together"
