"""The charts alone: nothing leaves its box, no text changes their structure."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from page_check import Page

from stages.core.errors import visible
from stages.report.charts import BOTTOM, LEFT, RIGHT, TOP, WIDTH, interval_chart, loss_chart
from stages.report.formats import environment
from stages.report.tables import main_metric

finite = st.floats(-50, 1e6, allow_nan=False)
curves = st.lists(st.tuples(st.integers(0, 10_000).map(float), finite), max_size=20).map(sorted)


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_no_text_changes_the_structure_of_a_chart(name: str) -> None:
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    scores = {visible(name): {"exact_match": share}}
    chart = interval_chart(scores, main_metric(scores), None, 0.95)
    source = str(environment().get_template("sections/charts.html.j2").module.interval_svg(chart))  # type: ignore[attr-defined]
    assert len(Page(source).root.all("text")) == len(chart.ticks) + 2


@given(curves, curves)
@example([], [(0.0, 5e-324), (0.0, 1.0)])
@example([(0.0, 1.1e-12), (1.0, 1e6)], [])
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
            assert LEFT <= x <= RIGHT
            assert TOP <= y <= BOTTOM
    assert all(LEFT <= at <= RIGHT for at, _ in chart.x_ticks)
    assert len({text for _, text in chart.y_ticks}) == len(chart.y_ticks) >= 2
    assert chart.right < WIDTH


def test_a_curve_that_falls_far_gets_a_logarithmic_axis() -> None:
    chart = loss_chart({"train": [(0.0, 3.0), (10.0, 0.02)], "validation": []}, best_step=10.0)
    assert chart is not None
    assert [text for _, text in chart.y_ticks] == ["0.01", "0.1", "1", "10"]
    assert "logarithmic" in chart.y_label
    assert chart.best_x == RIGHT
    assert chart.description == "Train: from 3 at step 0 to 0.02 at step 10."
    linear = loss_chart({"train": [(0.0, 3.0), (10.0, 1.5)], "validation": []}, None)
    assert linear is not None
    assert [text for _, text in linear.y_ticks] == ["0", "1", "2", "3"]


def test_names_of_curves_do_not_cover_each_other() -> None:
    chart = loss_chart({"train": [(0.0, 1.0)], "validation": [(0.0, 1.0)]}, None)
    assert chart is not None
    first, second = (line.label_y for line in chart.lines)
    assert second - first >= 15


def test_a_score_out_of_a_hundred_gets_an_axis_to_a_hundred() -> None:
    rouge = {"text": {"rougeL": {"value": 41.5, "low": 38.0, "high": 45.0}}}
    chart = interval_chart({"adapter": rouge}, main_metric(rouge), None, 0.95)
    assert [text for _, text in chart.ticks] == ["0", "25", "50", "75", "100"]
    assert chart.left < chart.bars[0].low < chart.bars[0].value < chart.bars[0].high < chart.right
    assert chart.bars[0].text == "41.5"
