"""A tiny set of two labels that a random model of two layers can learn to tell apart, and a project to do so in."""

import hashlib
from pathlib import Path
from typing import Any

from project import set_params
from training_project import lay_out

from stages.core import paths
from stages.records.record import Record, make_record, write_records

LABELS = ["refund", "ship it"]
# What params.yaml needs for train.head: label, whatever else it says.
SETTINGS: dict[str, Any] = {
    "task": {"kind": "classification", "labels": LABELS, "instruction": "Label."},
    "augment": {"replay_share": 0, "malformed_every": None, "structured_share": 0},
    "quantize": {"formats": ["merged", "nf4", "int8", "lora"]},
}


def label_records(count: int, first: int = 0) -> list[Record]:
    """One word says the label; the words around it are of many lengths, which batches pad."""
    made = []
    for number in range(first, first + count):
        label, words = LABELS[number % 2], hashlib.sha256(str(number).encode()).hexdigest()
        prompt = f"{words[: number % 5]} {('money', 'PARCEL')[number % 2]}"
        made.append(make_record(f"{prompt} {words[5 : 7 + number % 3]}", label, label, "tickets", f"tickets:{number}"))
    return made


def lay_out_labels(folder: Path, **train: Any) -> Path:
    project = lay_out(folder)
    set_params(project, SETTINGS | {"train": {"head": "label", "early_stopping_patience": None, **train}})
    write_records(project / paths.TRAIN, label_records(64))
    write_records(project / paths.VALIDATION, label_records(24, first=1000))
    return project
