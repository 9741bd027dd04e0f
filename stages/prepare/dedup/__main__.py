"""dedup: drop rows that repeat another row; every dropped row names the row that stands for it."""

from collections.abc import Mapping, Sequence
from textwrap import shorten

from stages.core import paths
from stages.core.errors import run
from stages.core.files import write_json
from stages.params import load_params
from stages.prepare.dedup.agreement import agreement
from stages.prepare.dedup.duplicates import drop_exact, drop_near, with_kept_witness
from stages.prepare.dedup.search import search
from stages.prepare.dedup.summary import conflicts, giants, near_clusters, summarise
from stages.records.dropped import write_rejected
from stages.records.record import Record, read_records, write_records
from stages.text.normal_form import by_prompt

_CONFLICTS_SHOWN = 5
_GIANTS_SHOWN = 5


def main() -> None:
    params = load_params("dedup").dedup
    records = read_records(paths.CLEAN)
    distinct, copies = drop_exact(records)
    prompts = by_prompt(distinct)
    texts = list(prompts)
    pairs, how = search(texts, params)
    kept, near = drop_near(distinct, texts, pairs, agreement(params.completion, params.threshold))
    dropped = near + with_kept_witness(copies, near)
    assert len(records) == len(kept) + len(dropped), "a row is neither kept nor dropped"

    write_records(paths.UNIQUE, kept)
    write_rejected(paths.DUPLICATES, dropped)
    clusters = near_clusters(prompts, pairs)
    large = giants(clusters, params.giant_rows)
    metrics = summarise(records, prompts, pairs, clusters, large, kept, dropped)
    write_json(paths.DEDUP_METRICS, {**metrics, "search": how})
    counts = ", ".join(f"{count} {reason}" for reason, count in metrics["dropped"].items())
    print(f"{len(records)} rows: {len(kept)} kept; duplicates dropped: {counts}")
    _show_conflicts(prompts)
    _show_giants(large)


def _show_conflicts(prompts: Mapping[str, Sequence[Record]]) -> None:
    found = conflicts(prompts)
    if not found:
        return
    print(f"{len(found)} prompts have more than one completion; check these rows:")
    for rows in list(found.values())[:_CONFLICTS_SHOWN]:
        print("  " + ", ".join(row.origin for row in rows[:_CONFLICTS_SHOWN]))


def _show_giants(large: Sequence[Sequence[Record]]) -> None:
    for rows in large[:_GIANTS_SHOWN]:
        shown = f"{rows[0].origin}: {shorten(rows[0].prompt, 80)}"
        print(f"{len(rows)} rows are near-duplicates of each other, directly or through others, such as {shown}")


if __name__ == "__main__":
    run(main)
