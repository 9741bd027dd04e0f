"""The parts of the report alone: words, charts, tables, the trail of rows."""

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_check import Page

from stages.report import wording
from stages.report.charts import WIDTH, LossChart, interval_chart, loss_chart
from stages.report.page import environment
from stages.report.tables import confusion, verdict
from stages.report.trail import funnel

finite = st.floats(-50, 1e6, allow_nan=False)
curves = st.lists(st.tuples(st.integers(0, 10_000).map(float), finite), max_size=20).map(sorted)


def test_numbers_in_words() -> None:
    assert wording.percent(0.97916) == "97.9 %"
    assert wording.points(-0.0417) == "−4.2 points"
    assert wording.points(0.5) == "+50.0 points"
    assert wording.points(-0.0) == wording.points(0.00004).removeprefix("+") == "0.0 points"
    assert wording.p_value(0.0004) == "p < 0.001"
    assert wording.size(999) == "999 bytes"
    assert wording.size(269_060_552) == "269.1 MB"
    assert wording.size(5e12) == "5000.0 GB"
    assert wording.plural(1, "row") == "1 row"
    assert wording.plural(1200, "row") == "1,200 rows"


def test_long_text_is_cut_and_says_so() -> None:
    assert wording.excerpt("x" * 20, 10) == "x" * 10 + " … (the first 10 of 20 characters)"
    assert wording.excerpt("x" * 10, 10) == "x" * 10


@given(st.text())
def test_invisible_characters_are_made_visible(text: str) -> None:
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]", wording.visible(text)
    )


@given(st.text(alphabet="`|\\a \n<*", max_size=30))
def test_a_code_span_stays_in_its_cell(text: str) -> None:
    span = wording.markdown_code(text)
    assert "\n" not in span
    fence = re.match("`*", span)
    assert fence is not None
    inner = span[len(fence[0]) : -len(fence[0])] if fence[0] else span
    assert span.endswith(fence[0])
    assert fence[0] not in inner or "`" not in text
    assert not re.search(r"(?<!\\)\|", span)


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_no_text_changes_the_structure_of_a_chart(name: str) -> None:
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    chart = interval_chart({wording.visible(name): {"exact_match": share}}, None, 0.95)
    source = str(environment().get_template("charts.html.j2").module.interval_svg(chart))  # type: ignore[attr-defined]
    assert len(Page(source).root.all("text")) == len(chart.ticks) + 2


@given(curves, curves)
@settings(deadline=None)
def test_every_point_of_a_curve_lies_inside_the_chart(train: Any, validation: Any) -> None:
    chart = loss_chart({"train": train, "validation": validation}, None)
    if not train and not validation:
        assert chart is None
        return
    assert chart is not None
    for line in chart.lines:
        for point in line.path.split():
            x, y = map(float, point.split(","))
            assert LossChart.left <= x <= LossChart.right
            assert LossChart.top <= y <= LossChart.bottom
    assert all(LossChart.left <= tick.at <= LossChart.right for tick in chart.x_ticks)
    assert len({tick.text for tick in chart.y_ticks}) == len(chart.y_ticks) >= 2
    assert chart.right < WIDTH


def test_a_curve_that_falls_far_gets_a_logarithmic_axis() -> None:
    chart = loss_chart({"train": [(0.0, 3.0), (10.0, 0.02)], "validation": []}, best_step=10.0)
    assert chart is not None
    assert [tick.text for tick in chart.y_ticks] == ["0.01", "0.1", "1", "10"]
    assert "logarithmic" in chart.y_label
    assert chart.best_x == LossChart.right
    assert chart.description == "Train: from 3 at step 0 to 0.02 at step 10."
    linear = loss_chart({"train": [(0.0, 3.0), (10.0, 1.5)], "validation": []}, None)
    assert linear is not None
    assert [tick.text for tick in linear.y_ticks] == ["0", "1", "2", "3"]


def test_names_of_curves_do_not_cover_each_other() -> None:
    chart = loss_chart({"train": [(0.0, 1.0)], "validation": [(0.0, 1.0)]}, None)
    assert chart is not None
    first, second = (line.label_y for line in chart.lines)
    assert second - first >= 15


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


@pytest.mark.parametrize(
    ("states", "state", "sentence"),
    [
        ({"a": ("PASS", True), "b": ("PASS", True)}, "PASS", "All gates hold."),
        ({"a": ("PASS", True), "b": ("MARGINAL", False)}, "PASS", "All required gates hold."),
        (
            {"a": ("PASS", True), "b": ("FAIL", False)},
            "MARGINAL",
            "All required gates hold, but an advisory one fails.",
        ),
        ({"a": ("MARGINAL", True), "b": ("PASS", True)}, "MARGINAL", "No required gate fails, but these rows"),
        ({"a": ("FAIL", True), "b": ("FAIL", True)}, "FAIL", "2 required gates of 2 fail."),
        ({}, "PASS", "No gates are set."),
    ],
)
def test_the_verdict_in_words(states: Any, state: str, sentence: str) -> None:
    gates = {
        name: {"state": one, "kind": "minimum", "threshold": 0.5, "required": required, "reason": "measured"}
        for name, (one, required) in states.items()
    }
    said = verdict({"verdict": state, "gates": gates}, {"verdict": "PASS", "gates": {}})
    assert said.state == state
    assert said.sentence.startswith(sentence)
    assert [row.name for row in said.open] == [name for name, (one, _) in states.items() if one != "PASS"]


def test_the_funnel_accounts_for_every_row() -> None:
    metrics: dict[str, Any] = {
        "clean": {"rows": {"in": 100, "kept": 90, "rejected": 10}, "rejected": {"not_json": 10}},
        "dedup": {"rows": {"in": 90, "kept": 80, "dropped": 10}, "dropped": {"exact": 4, "near": 6}},
        "split": {
            "rows": {"in": 82, "train": 50, "validation": 8, "holdout": 20, "quarantined": 3, "beyond_max": 1},
            "quarantined": {"same_prompt": 1, "near_prompt": 2},
            "locked": {"restored": 2},
        },
        "augment": {"rows": {"in": 50, "out": 53}, "added": {"malformed": 3, "replay": 0}},
        "train": {"rows": {"train": 52, "left_out_too_long": 1}},
    }
    steps = funnel(metrics)
    assert [step.rows for step in steps] == [100, 90, 80, 50, 53, 52]
    assert [step.change for step in steps] == [0, -10, -10, -30, 3, -1]
    assert all(before.rows + step.change == step.rows for before, step in pairwise(steps))
    for said in ("restored for the hold-out 2", "hold-out 20", "quarantined (near prompt) 2", "beyond the maximum 1"):
        assert said in steps[3].why
    assert steps[4].why == "malformed 3"
