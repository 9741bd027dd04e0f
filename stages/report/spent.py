"""What each stage took when it last ran on this machine, beside what `tunetrail estimate` said: metrics/env/spent.html.

A page of its own, outside the trail: the report is the same bytes for the same inputs, which seconds are not.
"""

from contextlib import suppress
from typing import Any

from stages.core import paths
from stages.core.files import read_json, write_text
from stages.report.formats import number
from stages.report.tables import ABSENT, frame, table_page

SPENT = paths.ENVIRONMENT / "spent.html"


def write_spent(steps: int) -> None:
    """The page, of all notes that can be read; `steps` are those of the training, which an estimate must be of."""
    notes: dict[str, Any] = {}
    for file in sorted(paths.ENVIRONMENT.glob("*.json")):
        with suppress(ValueError):
            notes[file.stem] = read_json(file)
    said = notes.pop("estimate", {})
    took = {name: note for name, note in notes.items() if isinstance(note, dict) and "seconds" in note}
    fits = isinstance(said, dict) and "train" in took and said.get("steps") == steps
    guessed = {"train": (said["training"], said["energy_kwh"])} if fits else {}
    rows = []
    for name, note in sorted(took.items(), key=lambda item: -item[1]["seconds"]):
        values = [
            note["seconds"],
            note.get("peak_memory_mib"),
            note.get("energy_kwh"),
            *guessed.get(name, (None, None)),
        ]
        rows.append((name, [ABSENT if value is None else number(value) for value in values]))
    columns = ["Seconds", "Memory, MiB", "Energy, kWh", "Seconds estimated", "Energy estimated, kWh"]
    lines = [f"{number(sum(note['seconds'] for note in took.values()))} seconds in all."]
    lines += ["`tunetrail estimate` before a run says what its training will take."] if not fits else []
    write_text(SPENT, table_page(frame(rows, columns, "Stage"), lines, "What the last run took", "By stage"))
