"""The confusion table alone."""

from typing import Any

import pandas as pd

from stages.report.tables import confusion_table


def confusion(pairs: list[tuple[str, str]]) -> dict[str, Any] | None:
    return confusion_table(pd.DataFrame(pairs, columns=["actual", "predicted"]))


def test_confusion_counts_by_hand() -> None:
    table = confusion([("a", "a"), ("a", "b"), ("b", "b"), ("b", "b"), ("c", "")])
    assert table is not None
    assert list(table["counts"].columns) == ["(empty)", "a", "b", "c"]
    assert table["counts"].to_numpy().tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 2, 0], [1, 0, 0, 0]]
    assert (table["rows"], table["right"], table["left_out"]) == (5, 3, 0)
    assert confusion([]) is None


def test_a_large_confusion_table_keeps_the_mistakes() -> None:
    pairs = [(f"label{n:02}", f"label{n:02}") for n in range(20)] + [("label03", "label07")]
    table = confusion(pairs)
    assert table is not None
    assert list(table["counts"].index) == ["label03", "label07"]
    assert table["counts"].to_numpy().tolist() == [[1, 1], [0, 1]]
    assert (table["right"], table["rows"], table["left_out"]) == (20, 21, 18)
