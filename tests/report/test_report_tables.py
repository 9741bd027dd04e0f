"""The tables of confusion and of formats, alone."""

from typing import Any

import pandas as pd

from stages.report.tables import confusion_table, format_table


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


def test_a_format_that_was_held_to_a_contract_is_shown_both_ways() -> None:
    def asked(right: int, stopped: float, enforce: str) -> dict[str, Any]:
        share = {"value": right / 40, "low": 0.1, "high": 0.9, "count": right, "n": 40}
        scores = {"exact_match": share, "valid": {**share, "value": 1.0}}
        return {
            "scores": scores,
            "agreement": {"same": right, "rows": 40},
            "stopped": stopped,
            "decoding": {"enforce": enforce},
        }

    facts = {"engine": "llama.cpp", "bytes": 145_000_000, "types": {"F32": 61, "Q8_0": 211}}
    table = format_table({"gguf": {**facts, **asked(36, 1.0, "schema"), "free": asked(32, 0.975, "none")}})
    shown = table.map(str)
    assert list(shown.index) == ["gguf", "gguf, free"]
    assert list(shown["Held to"]) == ["schema", "none"]
    assert list(shown["Tensors"]) == ["61 F32, 211 Q8_0"] * 2
    assert list(shown["As the adapter"]) == ["36 of 40", "32 of 40"]
    assert list(shown["Ended by stop token"]) == ["100.0 %", "97.5 %"]
    assert [cell.value for cell in table["Exact match"]] == ["90.0 %", "80.0 %"]
