"""What the page says of duplicates."""

from typing import Any

from stages.report.rows import duplicate_facts

FOUND: dict[str, Any] = {
    "pairs": {"exact": 1, "near": 31},
    "clusters": {"count": 24, "largest": 4, "giant": 0, "giant_rows": 0},
}


def test_an_exact_search_says_so() -> None:
    assert duplicate_facts({**FOUND, "search": {"comparisons": 61218, "exact": 1}}) == [
        "1 pair of the same row, 31 of prompts that are near or the same",
        "24 clusters of near-duplicates; the largest has 4 rows",
        "searched exactly, as by comparing all pairs; 61,218 comparisons",
    ]


def test_a_search_by_hashing_says_what_it_misses() -> None:
    recall = {"value": 0.92, "low": 0.84, "high": 0.97, "count": 92, "of": 100}
    search = {"comparisons": 10**9, "exact": 0, "recall": recall}
    assert duplicate_facts({**FOUND, "search": search})[-1] == (
        "searched by hashing, which found 92.0 % of the near pairs of a sample (84.0 to 97.0 % of 100)"
    )
    nothing = {**search, "recall": {"count": 0, "of": 0}}
    assert "no near pairs" in duplicate_facts({**FOUND, "search": nothing})[-1]


def test_a_giant_cluster_is_named() -> None:
    clusters = {"count": 2, "largest": 900, "giant": 1, "giant_rows": 900}
    facts = duplicate_facts({**FOUND, "clusters": clusters, "search": {"comparisons": 1, "exact": 1}})
    assert facts[2] == "1 cluster is suspiciously large: 900 rows"
