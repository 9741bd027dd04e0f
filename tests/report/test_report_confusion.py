"""The confusion table alone."""

from stages.report.confusion import confusion


def test_confusion_counts_by_hand() -> None:
    table = confusion([("a", "a"), ("a", "b"), ("b", "b"), ("b", "b"), ("c", "")])
    assert table is not None
    assert table.values == ["(empty)", "a", "b", "c"]
    assert table.counts == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 2, 0], [1, 0, 0, 0]]
    assert (table.rows, table.right, table.left_out) == (5, 3, 0)
    assert confusion([]) is None


def test_a_large_confusion_table_keeps_the_mistakes() -> None:
    pairs = [(f"label{n:02}", f"label{n:02}") for n in range(20)] + [("label03", "label07")]
    table = confusion(pairs)
    assert table is not None
    assert table.values == ["label03", "label07"]
    assert table.counts == [[1, 1], [0, 1]]
    assert (table.right, table.rows, table.left_out) == (20, 21, 18)
