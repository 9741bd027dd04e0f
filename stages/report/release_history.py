"""The history of releases for a reader: text for a terminal, one page, or rows with their headline metric."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stages.core.errors import visible
from stages.report.formats import between, number, percent
from stages.report.tables import look_up, main_metric, table_page, table_text
from stages.scoring.catalogue import is_interval

_SHOWN = 10  # digits of a hash


def with_headline(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `ship.release.registry` with the metric that speaks for the model in place of all its scores."""
    scores = row["scores"]
    metric = main_metric(scores)
    found = look_up(scores, metric.path)
    headline = {"metric": metric.path, **found} if is_interval(found) else None
    return {**{key: value for key, value in row.items() if key != "scores"}, "headline": headline}


def as_text(rows: Sequence[Mapping[str, Any]], doubts: Sequence[str]) -> str:
    """A table for a terminal, with the reasons, the faults and what it may lack below it."""
    notes = _notes(rows, doubts)
    return table_text(_table(rows), notes) if rows else "\n".join(notes)


def as_page(rows: Sequence[Mapping[str, Any]], doubts: Sequence[str]) -> str:
    """One HTML page without network: the table and the notes."""
    caption = "What was live from when to when, and each release that never was; times are UTC"
    return table_page(_table(rows), _notes(rows, doubts), "Releases", caption)


def _table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    cells = [
        {
            "Stage": row["stage"] or "never live",
            "Version": _version(row),
            "From": _day(row["from"]),
            "Until": _day(row["until"]) if row["until"] or not row["stage"] else "now",
            "Verdict": row["verdict"] or "unknown",
            "Headline": _headline(row["headline"]),
            "Commit": row["commit"][:_SHOWN],
            "Manifest": (row["manifest_sha256"] or "")[:_SHOWN],
            "Released by": visible(row["released_by"] or ""),
        }
        for row in rows
    ]
    table = pd.DataFrame(cells, dtype=object)
    return table.set_index("Stage") if cells else table


def _headline(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "unknown"
    name = found["metric"].rpartition(".")[2].replace("_", " ")
    form = percent if "count" in found else number
    return f"{name} {form(found['value'])} ({between(form, found['low'], found['high'])})"


def _notes(rows: Sequence[Mapping[str, Any]], doubts: Sequence[str]) -> list[str]:
    notes = (
        [] if rows else ["No release has a tag here; `git fetch --tags` may bring some, `tunetrail release` sets one."]
    )
    for row in rows:
        version = _version(row)
        if row["accepted_marginal"]:
            notes.append(f"{version} was released with MARGINAL gates: {row['accepted_marginal']}")
        if row["reason"]:
            notes.append(f"{row['stage']} went to {version} by {row['assigned_by']}: {row['reason']}")
        if row["fault"]:
            notes.append(f"{version} is not to be believed: {row['fault']}")
    return [" ".join(visible(note).split()) for note in dict.fromkeys([*notes, *doubts])]


def _version(row: Mapping[str, Any]) -> str:
    return str(row["version"] or row["commit"][:_SHOWN])


def _day(time: str | None) -> str:
    return (time or "")[:16].replace("T", " ")
