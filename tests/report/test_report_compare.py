"""What `compare` takes for a change."""

import pandas as pd
import pytest

from stages.report.compare import _compared
from stages.report.formats import render
from stages.scoring.catalogue import Key


@pytest.mark.parametrize(
    ("then", "now"),
    [(0.0, -0.0), (0.0, 1e-17), (12.34561, 12.34562), ({"value": 1e-12, "low": -1e-13, "high": 0.0},) * 2],
)
def test_what_differs_in_digits_that_are_not_shown_is_counted_and_not_listed(then: float, now: float) -> None:
    key = Key("adapter", "perplexity")
    moved, tests, rest, unseen = _compared({"then": {key: then}, "now": {key: now}})
    assert not moved + tests + rest
    assert unseen == (then != now)


def test_what_differs_in_digits_that_are_shown_is_listed() -> None:
    key = Key("adapter", "perplexity")
    assert len(_compared({"then": {key: 1.0}, "now": {key: 1.1}})[2]) == 1


def test_the_name_of_a_slice_is_text_in_the_comment_of_a_pull_request() -> None:
    none = pd.DataFrame()
    view = {
        "names": ["main", "now"],
        "lock": "",
        "verdicts": {},
        "unseen": 0,
        "gates": None,
        "notes": [],
        "paired": None,
    }
    said = "Hold-out: 1 row added to 1, a slice of <img src=x> @team."
    made = render(
        "compare.md.j2",
        {**view, "data": [("now", [said], none)], **dict.fromkeys(["changed", "summary", "rest"], none)},
    )
    assert "slice of &lt;img src=x&gt; @\u2060team" in made.replace("\\>", "&gt;")
