"""The picture of the data: every row is in it, and the lengths add up."""

from itertools import pairwise
from typing import Any

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from stages.report.findings import WIDTH, funnel

count = st.integers(0, 10_000)


def run(**change: int) -> dict[str, Any]:
    """Metrics whose numbers agree, from the counts that make them."""
    got = {
        **dict.fromkeys(("not_json", "exact", "near", "same_prompt", "near_prompt", "beyond", "restored"), 0),
        **dict.fromkeys(("malformed", "replay", "too_long", "holdout", "validation", "train"), 0),
        **change,
    }
    quarantined = {"same_prompt": got["same_prompt"], "near_prompt": got["near_prompt"]}
    into_split = got["train"] + got["validation"] + got["holdout"] + sum(quarantined.values()) + got["beyond"]
    unique = into_split - got["restored"]
    clean = unique + got["exact"] + got["near"]
    out = got["train"] + got["malformed"] + got["replay"]
    return {
        "clean": {"rows": {"in": clean + got["not_json"], "kept": clean}, "rejected": {"not_json": got["not_json"]}},
        "dedup": {"rows": {"in": clean, "kept": unique}, "dropped": {"exact": got["exact"], "near": got["near"]}},
        "split": {
            "rows": {
                "in": into_split,
                "train": got["train"],
                "validation": got["validation"],
                "holdout": got["holdout"],
                "quarantined": sum(quarantined.values()),
                "beyond_max": got["beyond"],
            },
            "quarantined": quarantined,
            "locked": {"restored": got["restored"]},
        },
        "augment": {"rows": {"out": out}, "added": {"malformed": got["malformed"], "replay": got["replay"]}},
        "train": {"rows": {"train": out - got["too_long"], "left_out_too_long": got["too_long"]}},
    }


def coming(bars: pd.DataFrame) -> dict[str, int]:
    """The rows that come to each step."""
    return {
        step: int(parts[parts["kind"] != "added"]["rows"].sum()) for step, parts in bars.groupby("step", sort=False)
    }


def test_the_steps_by_hand() -> None:
    bars = funnel(
        run(not_json=10, exact=4, near=6, train=50, validation=8, holdout=20, restored=2, near_prompt=3, replay=3)
    )
    assert list(coming(bars).items()) == [
        ("Raw rows", 99),
        ("Clean", 89),
        ("Without duplicates", 79),
        ("Training split", 50),
        ("With added rows", 53),
        ("Trained on", 53),
    ]
    third = bars[bars["step"] == "Without duplicates"]
    assert list(third[["kind", "name", "rows"]].itertuples(index=False, name=None)) == [
        ("kept", "go on", 50),
        ("aside", "validation", 8),
        ("aside", "hold-out", 18),
        ("dropped", "near prompt as in the hold-out", 3),
    ]
    last = bars[bars["step"] == "Raw rows"].iloc[-1]
    assert last["start"] + last["width"] == WIDTH


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("not_json", "exact", "near", "replay", "malformed"), count)))
def test_what_goes_on_is_what_comes(change: dict[str, int]) -> None:
    bars = funnel(run(train=40, validation=5, holdout=8, too_long=2, **change))
    comes = coming(bars)
    for before, after in pairwise(comes):
        parts = bars[bars["step"] == before]
        assert parts[parts["kind"].isin(["kept", "added"])]["rows"].sum() == comes[after]
        ends = parts["start"] + parts["width"]
        assert max(ends) <= WIDTH + 0.2
        assert all(abs(end - start) < 0.2 for end, start in zip(ends, parts["start"][1:], strict=False))


def test_no_rows_are_no_error() -> None:
    assert list(coming(funnel(run())).values()) == [0] * 6
