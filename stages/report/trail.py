"""Where the rows went, what should make a reader wary, and the hashes that lead back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.report.inputs import Row
from stages.report.wording import excerpt, plural, size, whole, words


@dataclass(frozen=True)
class Step:
    """One step of the data: rows that go on, rows set aside or added, and why."""

    name: str
    rows: int
    change: int
    why: str


@dataclass(frozen=True)
class Flag:
    raised: bool
    text: str


@dataclass(frozen=True)
class HashedFile:
    path: str
    size: str
    sha256: str


@dataclass(frozen=True)
class SetAside:
    """A row that a data stage set aside."""

    where: str
    reason: str
    text: str
    detail: str


def funnel(metrics: Mapping[str, Any]) -> list[Step]:
    """From the raw rows to the rows that were trained on."""
    clean, dedup, split, augment, train = (metrics[n] for n in ("clean", "dedup", "split", "augment", "train"))
    rows = split["rows"]
    why_split = {
        "restored for the hold-out": split["locked"]["restored"],
        "hold-out": rows["holdout"],
        "validation": rows["validation"],
        **{f"quarantined ({words(reason)})": count for reason, count in split["quarantined"].items()},
        "beyond the maximum": rows["beyond_max"],
    }
    steps = [
        ("Raw rows", clean["rows"]["in"], {}),
        ("Clean", clean["rows"]["kept"], clean["rejected"]),
        ("Without duplicates", dedup["rows"]["kept"], dedup["dropped"]),
        ("Training split", rows["train"], why_split),
        ("With added rows", augment["rows"]["out"], augment["added"]),
        ("Trained on", train["rows"]["train"], {"too long": train["rows"]["left_out_too_long"]}),
    ]
    before = [steps[0][1], *(count for _, count, _ in steps)]
    return [
        Step(name, count, count - old, _listed(why)) for (name, count, why), old in zip(steps, before, strict=False)
    ]


def flags(metrics: Mapping[str, Any], generations: Mapping[str, Sequence[Row]]) -> list[Flag]:
    """What can make the numbers above mean less than they seem to; raised ones first."""
    raised = metrics["train"]["red_flags"]
    conflicts, split = metrics["dedup"]["conflicts"], metrics["split"]
    shared, missing = sum(split["overlap"].values()), split["locked"]["missing"]
    tuned = {name: rows for name, rows in generations.items() if name != "base"}
    unstopped = {name: sum(not row["stopped"] for row in rows) for name, rows in tuned.items()}
    found = [
        Flag(bool(raised["overfitting"]), "Overfitting: the validation loss rises while the training loss falls"),
        Flag(bool(raised["plateau"]), "Plateau: the loss hardly moves"),
        Flag(bool(raised["unstable"]), "Unstable: the loss jumps or is no number"),
        Flag(shared > 0, f"Leakage: {shared} ids or prompts in both the hold-out and the training rows"),
        Flag(missing > 0, f"Hold-out: {plural(missing, 'locked row')} missing from the data"),
        Flag(
            conflicts["prompts"] > 0, f"Conflicts: {plural(conflicts['prompts'], 'prompt')} with different completions"
        ),
        Flag(sum(unstopped.values()) > 0, f"Cut off by the token limit: answers of {_listed(unstopped) or 'no model'}"),
    ]
    return sorted(found, key=lambda flag: not flag.raised)


def changes(metrics: Mapping[str, Any]) -> list[str]:
    """What cleaning changed in the rows that it kept."""
    clean = metrics["clean"]
    changed = [f"{words(name)} in {plural(count, 'row')}" for name, count in clean["changed"].items() if count]
    masked = [f"{words(name)} {count}" for name, count in clean["personal_data"].items() if count]
    return changed + ([f"personal data masked: {', '.join(masked)}"] if masked else [])


def rejected_lines(rows: Iterable[Row]) -> list[SetAside]:
    """Raw lines that cleaning rejected."""
    return [
        SetAside(
            where=f"{row['file']}, line {row['line']}",
            reason=words(row["reason"]),
            text=excerpt(row["raw"]) if "raw" in row else f"in base 64: {excerpt(row['raw_base64'])}",
            detail=excerpt(row["detail"]),
        )
        for row in rows
    ]


def set_aside(rows: Iterable[Row]) -> list[SetAside]:
    """Duplicates or quarantined rows, with the row that each one repeats."""
    return [
        SetAside(
            where=row["record"]["origin"],
            reason=words(row["reason"]),
            text=excerpt(row["record"]["prompt"]),
            detail=_witness(row),
        )
        for row in rows
    ]


def hashed_files(entries: Mapping[str, Any]) -> list[HashedFile]:
    """A part of the manifest as rows; code has hashes without sizes."""
    return [
        HashedFile(path, "", entry)
        if isinstance(entry, str)
        else HashedFile(path, size(entry["bytes"]), entry["sha256"])
        for path, entry in entries.items()
    ]


def _listed(counts: Mapping[str, int]) -> str:
    """What there is any of, as "near 19, exact 9"."""
    return ", ".join(f"{words(name)} {whole(count)}" for name, count in counts.items() if count)


def _witness(row: Row) -> str:
    if not row["witness"]:
        return ""
    score = "" if row["score"] is None else f", similarity {row['score']:g}"
    return f"matches row {row['witness'][:12]}{score}"
