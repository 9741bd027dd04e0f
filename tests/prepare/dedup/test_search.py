"""The budget of the search for near pairs, and the recall of what it falls back to."""

import random
from typing import Any

import pytest

from stages.near_duplicates import near_pairs
from stages.params.split import Dedup
from stages.prepare.dedup import search as module
from stages.prepare.dedup.search import sampled_recall, search


def params(max_comparisons: int) -> Dedup:
    return Dedup(threshold=90, completion="equal", max_comparisons=max_comparisons, giant_rows=100)


def prompts(count: int = 400) -> list[str]:
    """Distinct prompts, every fourth but for its last letters the one before."""
    rng = random.Random(3)
    texts: list[str] = []
    for number in range(count):
        base = texts[-1] if number % 4 == 3 else "".join(rng.choices("abcdefgh ", k=60))
        texts.append(base[:-2] + rng.choice("xyz") + str(number % 10))
    return list(dict.fromkeys(texts))


def test_within_the_budget_the_search_is_exact() -> None:
    texts = prompts()
    pairs, how = search(texts, params(10**6))
    assert pairs == near_pairs(texts, 90)
    assert how == {"comparisons": len(texts) * (len(texts) - 1) // 2, "exact": 1}


def test_beyond_the_budget_it_says_so_and_measures_its_recall(capsys: pytest.CaptureFixture[str]) -> None:
    texts = prompts()
    exact = near_pairs(texts, 90)
    pairs, how = search(texts, params(1000))
    assert set(pairs) <= set(exact)
    recall = how["recall"]
    assert (how["exact"], recall["of"]) == (0, len(exact))  # all texts are in the sample
    assert recall["count"] == len(pairs)
    assert 0.8 < recall["low"] <= recall["value"] <= recall["high"] <= 1
    printed = capsys.readouterr().out
    assert "more than dedup.max_comparisons allows (1,000)" in printed
    assert f"found {len(pairs)} of the {len(exact)} near pairs" in printed


def test_a_missed_pair_lowers_the_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = prompts()
    exact = near_pairs(texts, 90)
    assert sampled_recall(texts, 90, exact)["value"] == 1
    assert sampled_recall(texts, 90, exact[::2])["value"] == pytest.approx(0.5, abs=0.02)
    monkeypatch.setattr(module, "_SAMPLE", 40)
    sampled = sampled_recall(texts, 90, exact)
    assert 0 < sampled["of"] < len(exact)
    assert sampled["value"] == 1


def test_the_order_of_the_prompts_does_not_change_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAMPLE", 40)

    def measured(texts: list[str]) -> dict[str, Any]:
        return sampled_recall(texts, 90, [])

    texts = prompts()
    assert measured(texts) == measured(texts[::-1])
    assert measured(texts)["value"] == 0


def test_prompts_without_near_duplicates_have_no_recall() -> None:
    assert search(["abc", "xyz", "uvw"], params(1))[1]["recall"] == {"count": 0, "of": 0}
