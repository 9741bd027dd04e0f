"""dedup: drop rows that repeat another row; every dropped row names the row that stands for it."""

import gc
from textwrap import shorten

from stages.core import paths
from stages.core.errors import run
from stages.core.files import write_json
from stages.near_duplicates.pairs import near_pairs
from stages.near_duplicates.rule import same_questions
from stages.params.loader import load_params
from stages.prepare.dedup.duplicates import (
    agreement,
    conflicts,
    drop_exact,
    drop_near,
    giants,
    near_clusters,
    summarise,
    with_kept_witness,
)
from stages.records.prompt import by_question, write_near_pairs
from stages.records.record import read_records, write_dropped, write_records

_SHOWN = 5


def main() -> None:
    params = load_params("dedup").dedup
    records = read_records(paths.CLEAN)
    distinct, copies = drop_exact(records)
    questions = by_question(distinct)
    texts = sorted({one.text for one in questions})
    near_texts = near_pairs(texts, params.threshold)
    pairs = same_questions(questions, ((texts[pair.left], texts[pair.right], pair.score) for pair in near_texts))
    kept, near = drop_near(questions, pairs, agreement(params.completion, params.threshold))
    dropped = near + with_kept_witness(copies, near)
    if len(records) != len(kept) + len(dropped):
        raise RuntimeError(f"of {len(records)} rows {len(kept)} are kept and {len(dropped)} dropped: one was lost")

    write_records(paths.UNIQUE, kept)
    write_dropped(paths.DUPLICATES, dropped)
    # Searched once: split, checks and `tunetrail holdout draw` read them.
    scored = ((pair.left, pair.right, pair.score) for pair in near_texts)
    write_near_pairs(paths.NEAR_PAIRS, texts, scored, params.threshold)
    clusters = near_clusters(questions, pairs)
    large = giants(clusters, params.giant_rows)
    metrics = summarise(records, questions, pairs, clusters, large, kept, dropped)
    write_json(paths.DEDUP_METRICS, metrics)
    counts = ", ".join(f"{count} {reason}" for reason, count in metrics["dropped"].items())
    print(f"{len(records)} rows: {len(kept)} kept; duplicates dropped: {counts}")
    if found := conflicts(questions):
        print(f"{len(found)} prompts have more than one completion; check these rows:")
        for rows in found[:_SHOWN]:
            print("  " + ", ".join(row.origin for row in rows[:_SHOWN]))
    for cluster in large[:_SHOWN]:
        shown = f"{cluster[0].origin}: {shorten(cluster[0].prompt, 80)}"
        print(f"{len(cluster)} rows are near-duplicates of each other, directly or through others, such as {shown}")


if __name__ == "__main__":
    gc.disable()  # millions of rows, in which no cycles are
    run(main)
