"""checks: signs of poisoning and bias in the rows that training starts from.

A stage beside training and not before it: what it finds makes no model stale. The gates judge it.
"""

import gc
from typing import Any

from stages.core import paths
from stages.core.errors import UserError, run
from stages.core.files import atomic, write_json
from stages.params.loader import load_params
from stages.prepare.checks.conflicts_and_sources import by_source, conflicts, label_of, outcomes
from stages.prepare.checks.suspected_triggers import find_triggers
from stages.records.prompt import read_near_pairs
from stages.records.record import read_records, write_rows


def main() -> None:
    params = load_params("checks", "dedup.threshold", "task")
    settings = params.checks
    rows = sorted(read_records(paths.SPLIT_TRAIN), key=lambda row: row.id)
    if not rows:
        raise UserError(f"{paths.SPLIT_TRAIN} has no rows: all are hold-out, validation or quarantined; add raw rows")
    labels = [label_of(row, params.task) for row in rows]
    triggers = find_triggers(rows, outcomes(rows, labels), settings)
    clusters = conflicts(rows, labels, read_near_pairs(paths.NEAR_PAIRS, params.dedup.threshold))
    in_conflict = sum(len(cluster["rows"]) for cluster in clusters)
    found: dict[str, Any] = {
        "rows": len(rows),
        "sources": by_source(rows, labels, settings.source_min_rows),
        "triggers": {
            "tested": triggers.tested,
            "found": len(triggers.found),
            "rows": len({row["id"] for trigger in triggers.found for row in trigger["rows"]}),
            "tied": triggers.all_tied,
        },
        "conflicts": {"clusters": len(clusters), "rows": in_conflict, "share": in_conflict / len(rows)},
    }

    with atomic(paths.CHECKS) as folder:
        write_rows(folder / "triggers.jsonl", triggers.found)
        write_rows(folder / "tied.jsonl", triggers.tied)
        write_rows(folder / "conflicts.jsonl", clusters)
    write_json(paths.CHECKS_METRICS, found)
    print(
        f"{len(rows)} rows of {found['sources']['count']} sources: {len(triggers.found)} suspected triggers, "
        f"{len(clusters)} clusters with conflicting labels"
    )


if __name__ == "__main__":
    gc.disable()  # millions of rows, in which no cycles are
    run(main)
