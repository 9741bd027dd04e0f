"""What should make a reader wary of the numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.report.formats import plural, whole, words
from stages.report.inputs import Row

_TRAINING = {
    "overfitting": "Overfitting: the validation loss rises while the training loss falls",
    "plateau": "Plateau: the loss hardly moves",
    "unstable": "Unstable: the loss jumps or is no number",
}


@dataclass(frozen=True)
class Flag:
    raised: bool
    text: str


def flags(metrics: Mapping[str, Any], generations: Mapping[str, Sequence[Row]]) -> list[Flag]:
    """What can make the numbers above mean less than they seem to; raised ones first."""
    raised = metrics["train"]["red_flags"]
    conflicts, split, checks = metrics["dedup"]["conflicts"], metrics["split"], metrics["checks"]
    canaries = metrics["augment"]["added"].get("canary", 0)
    shared, missing = sum(split["overlap"].values()), split["locked"]["missing"]
    tuned = {name: rows for name, rows in generations.items() if name != "base"}
    unstopped = {name: sum(not row["stopped"] for row in rows) for name, rows in tuned.items()}
    found = [
        *(Flag(bool(raised[name]), _TRAINING.get(name, words(name).capitalize())) for name in raised),
        Flag(shared > 0, f"Leakage: {shared} ids or prompts in both the hold-out and the training rows"),
        Flag(missing > 0, f"Hold-out: {plural(missing, 'locked row')} missing from the data"),
        Flag(
            conflicts["prompts"] > 0, f"Conflicts: {plural(conflicts['prompts'], 'prompt')} with different completions"
        ),
        Flag(
            checks["triggers"]["found"] > 0,
            f"Poisoning: {plural(checks['triggers']['found'], 'suspected trigger')} in the training rows",
        ),
        Flag(canaries > 0, f"Audit run: {plural(canaries, 'canary row')} trained on, which no release may hold"),
        Flag(sum(unstopped.values()) > 0, f"Cut off by the token limit: answers of {_listed(unstopped) or 'no model'}"),
    ]
    return sorted(found, key=lambda flag: not flag.raised)


def _listed(counts: Mapping[str, int]) -> str:
    """What there is any of, as "near 19, exact 9"."""
    return ", ".join(f"{name} {whole(count)}" for name, count in counts.items() if count)
