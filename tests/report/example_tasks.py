"""Rows of two further tasks for the example run: one of four moods, and a reply in free text."""

import hashlib
from pathlib import Path
from typing import Any

from dvc.utils.serialize import dumps_yaml

from stages.core.yaml_reader import load_yaml

_INSTRUCTIONS = {"mood": "Name the mood.", "reply": "Answer the customer."}
_TAGS = {
    "mood": {"kind": "classification", "labels": ["angry", "calm", "glad", "sad"]},
    "reply": {"kind": "text", "max_words": 14, "forbidden_phrases": ["guarantee"]},
}
_MOODS = ("angry", "calm", "glad", "sad")
_REPLIES = (
    ("My kettle leaks.", "Sorry about the leak. We will send you a new kettle today."),
    ("The watch stopped.", "Sorry to hear that. Please send the watch back and we will repair it."),
    ("No invoice came.", "Here is the invoice for your order. Sorry for the wait."),
    ("Wrong colour again!", "Sorry for the mistake. We will exchange it for the right colour."),
    ("Is it in stock?", "Yes, it is in stock and leaves tomorrow."),
    ("Great service", "Thank you for your kind words."),
)


def set_tags(params: Path) -> None:
    """Give params.yaml the two tasks."""
    values = load_yaml(params.read_bytes())
    values["task"] |= {"instructions": _INSTRUCTIONS, "tags": _TAGS}
    params.write_text(dumps_yaml(values), "utf-8")


def further_rows() -> list[dict[str, Any]]:
    moods = [("mood", f"Ticket {number}: I am {_MOODS[number % 4]} today.", _MOODS[number % 4]) for number in range(24)]
    rows = [*moods, *(("reply", prompt, answer) for prompt, answer in _REPLIES)]
    return [
        {
            "id": hashlib.sha256(prompt.encode()).hexdigest(),
            "prompt": prompt,
            "completion": answer,
            "label": answer if task == "mood" else None,
            "task": task,
        }
        for task, prompt, answer in rows
    ]


def further_outputs(rows: list[dict[str, Any]], model: str) -> list[str]:
    """The base calls everybody calm and promises much; the tuned models know most moods and are brief."""
    answer = {"mood": _mood, "reply": _reply}
    return [answer[row["task"]](number, row, model) for number, row in enumerate(rows)]


def _mood(number: int, row: dict[str, Any], model: str) -> str:
    if model == "base":
        return "calm"
    wrong = {"adapter": (5, 11), "int8": (5, 11), "previous": (5, 6, 7, 9, 11)}.get(model, (5, 11, 12))
    return "bored" if number == 11 else "glad" if number in wrong else str(row["completion"])


def _reply(number: int, row: dict[str, Any], model: str) -> str:
    if model == "base":
        return (
            f"We guarantee that everything about “{row['prompt']}” will be looked into by one of our teams very soon."
        )
    return str(row["completion"]) if model in ("adapter", "int8") else f"{row['completion'].split('.')[0]}."
