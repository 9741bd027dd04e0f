from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.records.prompt import among, components, digest, read_near_pairs, write_near_pairs
from stages.text.normal_form import normalise, prompt_hash

TEXTS = ["play some jazz", "play some jazz!", "play  jazz", "stop"]
PAIRS = [(0, 1, 96.55), (1, 2, 90.0)]


def test_pairs_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "near_pairs.jsonl"
    write_near_pairs(path, TEXTS, PAIRS, 90)
    found = read_near_pairs(path, 90)
    place = {digest(text): number for number, text in enumerate(TEXTS)}
    assert among(found, place) == PAIRS
    assert among(found, {digest(text): text for text in TEXTS[1:]}) == [(TEXTS[1], TEXTS[2], 90.0)]
    assert among(found, {digest(text): text for text in (TEXTS[0], TEXTS[2], "another")}) == []


def test_a_prompt_is_named_by_the_hash_that_a_lock_has() -> None:
    assert digest(normalise("Play  JAZZ ")).hex() == prompt_hash("Play  JAZZ ")


def test_no_pairs_are_no_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "near_pairs.jsonl"
    write_near_pairs(path, [], [], 90)
    assert path.stat().st_size
    assert read_near_pairs(path, 90) == []


def test_pairs_that_are_missing_cut_or_of_another_threshold_are_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "near_pairs.jsonl"
    with pytest.raises(UserError, match=r"has not the near pairs at dedup\.threshold 90; .*`dvc repro dedup`"):
        read_near_pairs(path, 90)
    write_near_pairs(path, TEXTS, PAIRS, 90)
    with pytest.raises(UserError, match=r"dedup\.threshold 91"):
        read_near_pairs(path, 91)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"dedup\.threshold 90"):
        read_near_pairs(path, 90)


def test_components_follow_chains() -> None:
    assert components(range(6), [(3, 4), (1, 3)]) == [[0], [1, 3, 4], [2], [5]]
    assert components([], []) == []


@given(edges=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_components_are_those_of_spreading_the_smallest_item(edges: list[tuple[int, int]]) -> None:
    labels = list(range(10))
    for _ in labels:
        for left, right in edges:
            labels[left] = labels[right] = min(labels[left], labels[right])
    expected = [[item for item in range(10) if labels[item] == label] for label in sorted(set(labels))]
    assert components(range(10), edges) == expected
