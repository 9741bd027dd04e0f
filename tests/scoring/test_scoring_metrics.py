"""The forms of numbers in metrics/*.json: what stands in a value is written, and what is not there is not."""

import json
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stages.scoring.intervals import share
from stages.scoring.metrics import (
    Change,
    ClassComparison,
    Classification,
    ClassMeans,
    Comparison,
    F1Shift,
    Interval,
    LabelScores,
    Preference,
    Ratio,
    Scores,
    Share,
    Shift,
    TextComparison,
    TextQuality,
    as_json,
)

NUMBERS = st.floats(-1e6, 1e6)
COUNTS = st.integers(0, 1000)
# Names that a path of words and dots would cut in pieces, or take for keys of its own.
NAMES = st.sampled_from(["refund", "re.fund", "two words", "value", "adapter", ".against_previous.", "", "ä"])
SHARES = st.lists(st.booleans(), min_size=1, max_size=9).map(lambda right: share(right, 0.95))
INTERVALS = st.builds(Interval, NUMBERS, NUMBERS, NUMBERS)
CHANGES = st.builds(Change, NUMBERS, NUMBERS, NUMBERS, COUNTS, COUNTS, NUMBERS)
SHIFTS = st.builds(Shift, NUMBERS, NUMBERS, NUMBERS)
RATIOS = st.builds(Ratio, NUMBERS, NUMBERS, NUMBERS)
MEANS = st.builds(ClassMeans, INTERVALS, INTERVALS, INTERVALS)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


def by_name(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(NAMES, values, max_size=2)


def scores(tasks: st.SearchStrategy[dict[str, Scores]]) -> st.SearchStrategy[Scores]:
    text = st.builds(TextQuality, *[INTERVALS] * 6, NUMBERS, by_name(SHARES))
    return st.builds(
        Scores,
        rows=COUNTS,
        exact_match=SHARES,
        valid=SHARES,
        output_tokens=NUMBERS,
        **{name: maybe(SHARES) for name in ("json_valid", "schema_valid", "label_accuracy")},
        **{name: maybe(INTERVALS) for name in ("field_match", "perplexity")},
        classification=maybe(st.builds(Classification, SHARES, MEANS, MEANS)),
        text=maybe(text),
        fields=by_name(SHARES),
        labels=by_name(st.builds(LabelScores, SHARES)),
        tasks=tasks,
    )


def comparisons(tasks: st.SearchStrategy[dict[str, Comparison]]) -> st.SearchStrategy[Comparison]:
    f1 = st.builds(F1Shift, SHIFTS)
    return st.builds(
        Comparison,
        *(COUNTS, CHANGES),
        **{name: maybe(CHANGES) for name in ("schema_valid", "label_accuracy")},
        field_match=maybe(SHIFTS),
        perplexity=maybe(RATIOS),
        classification=maybe(st.builds(ClassComparison, f1, f1)),
        text=maybe(st.builds(TextComparison, SHIFTS, SHIFTS, SHIFTS)),
        tasks=tasks,
    )


VALUES = st.one_of(
    *(SHARES, INTERVALS, CHANGES, SHIFTS, RATIOS),
    st.builds(Preference, NUMBERS, NUMBERS, NUMBERS, COUNTS),
    scores(by_name(scores(st.just({})))),
    comparisons(by_name(comparisons(st.just({})))),
)


@given(VALUES)
def test_what_has_no_value_is_not_written(value: Any) -> None:
    def nodes(node: Any) -> list[Any]:
        return [node, *(one for child in node.values() for one in nodes(child))] if isinstance(node, dict) else [node]

    assert not [node for node in nodes(as_json(value)) if node is None or node == {}]


@given(VALUES)
def test_every_number_of_a_value_is_written_under_its_name(value: Any) -> None:
    def same(kept: Any, written: Any) -> None:
        if isinstance(kept, Share):
            assert written == {"value": kept.count / kept.n, **asdict(kept)}
        elif is_dataclass(kept) or isinstance(kept, dict):
            parts = kept if isinstance(kept, dict) else {one.name: getattr(kept, one.name) for one in fields(kept)}
            there = {name: part for name, part in parts.items() if part is not None and part != {}}
            assert written.keys() == there.keys()
            for name, part in there.items():
                same(part, written[name])
        else:
            assert written == kept

    same(value, json.loads(json.dumps(as_json(value), allow_nan=False)))


def test_a_share_is_written_with_its_value_and_counts() -> None:
    written = as_json(Share(3, 4, 0.2, 0.99))
    assert written == {"value": 0.75, "low": 0.2, "high": 0.99, "count": 3, "n": 4}
