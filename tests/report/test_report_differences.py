"""Marks between two texts."""

import json

from hypothesis import given
from hypothesis import strategies as st

from stages.report.changed_examples import Piece, differences

texts = st.text(alphabet="ab <&\n\u202e1", max_size=40)


def test_only_what_differs_is_marked() -> None:
    left, right = differences('"B-3941 red"', '"B-3914 red"')
    assert left == [Piece('"B-', False), Piece("3941", True), Piece(' red"', False)]
    assert right == [Piece('"B-', False), Piece("3914", True), Piece(' red"', False)]


def test_texts_that_have_little_in_common_are_not_marked() -> None:
    left, right = differences('{"intent": "refund"}', "Sure! Here is what you asked for:")
    assert not any(piece.marked for piece in [*left, *right])


@given(texts, texts)
def test_no_character_is_lost(left: str, right: str) -> None:
    found = differences(left, right)
    assert ["".join(piece.text for piece in side) for side in found] == [left, right]


@given(texts, texts)
def test_what_is_not_marked_is_the_same(left: str, right: str) -> None:
    before, after = differences(left, right)
    if any(piece.marked for piece in [*before, *after]) or left == right:
        kept = [json.dumps([p.text for p in side if not p.marked]) for side in (before, after)]
        assert "".join(json.loads(kept[0])) == "".join(json.loads(kept[1]))
