"""The picture of the data: every row is in it, and the lengths add up."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stages.report.funnel import WIDTH, funnel

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


def test_the_steps_by_hand() -> None:
    steps = funnel(
        run(not_json=10, exact=4, near=6, train=50, validation=8, holdout=20, restored=2, near_prompt=3, replay=3)
    )
    assert [(step.name, step.rows) for step in steps] == [
        ("Raw rows", 99),
        ("Clean", 89),
        ("Without duplicates", 79),
        ("Training split", 50),
        ("With added rows", 53),
        ("Trained on", 53),
    ]
    assert [(part.kind, part.name, part.rows) for part in steps[2].parts] == [
        ("kept", "go on", 50),
        ("aside", "validation", 8),
        ("aside", "hold-out", 18),
        ("dropped", "near prompt as in the hold-out", 3),
    ]
    assert steps[0].parts[-1].start + steps[0].parts[-1].width == WIDTH


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("not_json", "exact", "near", "replay", "malformed"), count)))
def test_what_goes_on_is_what_comes(change: dict[str, int]) -> None:
    steps = funnel(run(train=40, validation=5, holdout=8, too_long=2, **change))
    for before, after in pairwise(steps):
        assert sum(part.rows for part in before.of("kept", "added")) == after.rows
        assert before.rows == sum(part.rows for part in before.of("kept", "aside", "dropped"))
    for step in steps:
        ends = [part.start + part.width for part in step.parts]
        assert max(ends) <= WIDTH + 0.2
        assert all(abs(end - part.start) < 0.2 for end, part in zip(ends, step.parts[1:], strict=False))


def test_no_rows_are_no_error() -> None:
    assert [step.rows for step in funnel(run())] == [0] * 6
