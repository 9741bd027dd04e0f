"""task.metric: the user's own score of an answer, and the sentence where there is none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import ROOT, SCORING, generation, make_score

from stages.core.errors import UserError
from stages.core.yaml_reader import load_yaml
from stages.params.loader import check_params
from stages.params.task import Task
from stages.scoring.catalogue import catalogue_of
from stages.scoring.metrics import Change, Interval, Share, Shift, as_json
from stages.scoring.own_metric import ScoreRows, scorer
from stages.scoring.summary import compare, summarise

ROWS = [generation(f"answer {number}", f"answer {number % 3}", str(number)) for number in range(9)]
FILE = "data/metric/tïckets 2.py"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/metric").mkdir(parents=True)
    Path("data/schema.json").write_text("{}")


def own(code: str, name: str = "score") -> ScoreRows:
    Path(FILE).write_text(code, encoding="utf-8")
    return scorer(Task(kind="text", instruction="Answer.", metric=f"{FILE}:{name}"))


def of(function: str) -> list[Any]:
    return [score.own for score in own(f"score = lambda prompt, reference, answer: {function}")(ROWS)]


def test_the_function_gets_prompt_reference_and_answer_of_its_row() -> None:
    said = own("def score(*given):\n    open('given', 'a').write(repr(given))\n    return True")
    said([generation("  an answer\n", " the reference ")])
    assert Path("given").read_text() == "('Money back for order 7', 'the reference', 'an answer')"


def test_true_and_false_are_a_share_and_numbers_a_mean() -> None:
    truths, numbers = of("answer == reference"), of("int(answer[-1]) / 8")
    assert truths == [True] * 3 + [False] * 6
    scores = own("score = lambda prompt, reference, answer: answer == reference")(ROWS)
    assert summarise(scores, SCORING).custom == summarise(scores, SCORING).exact_match
    found = summarise(own("score = lambda prompt, reference, answer: int(answer[-1]) / 8")(ROWS), SCORING).custom
    assert isinstance(found, Interval)
    assert found.value == pytest.approx(sum(numbers) / 9)
    assert of("__import__('numpy').float32(0.5)") == [0.5] * 9
    assert of("__import__('numpy').bool_(1)") == [True] * 9
    assert of("1") == [1.0] * 9


_ROWS = st.lists(st.tuples(*[st.one_of(st.booleans(), st.floats(0, 1))] * 2), min_size=1, max_size=12)


@given(_ROWS)
def test_a_change_is_the_difference_of_the_values(pairs: Sequence[tuple[bool | float, bool | float]]) -> None:
    before, after = ([make_score(str(n), own=one) for n, one in enumerate(side)] for side in zip(*pairs, strict=True))
    values = [summarise(side, SCORING).custom for side in (before, after)]
    for value, side in zip(values, (before, after), strict=True):
        assert isinstance(value, Share if all(isinstance(one.own, bool) for one in side) else Interval)
    changed = compare(before, after, SCORING).custom
    assert isinstance(changed, Change if all(isinstance(value, Share) for value in values) else Shift)
    assert changed.difference == pytest.approx(values[1].value - values[0].value)  # type: ignore[union-attr]
    assert changed.low - 1e-9 <= changed.difference <= changed.high + 1e-9


def test_without_a_function_nothing_is_written() -> None:
    scores = scorer(Task(kind="text", instruction="Answer."))(ROWS)
    assert {score.own for score in scores} == {None}
    assert "custom" not in as_json(summarise(scores, SCORING)) | as_json(compare(scores, scores, SCORING))


def test_gates_know_it_by_its_name() -> None:
    scores = own("score = lambda prompt, reference, answer: 0.25")(ROWS)
    comparison = as_json(compare(scores, scores, SCORING))
    numbers = catalogue_of(
        {"evaluate": {"adapter": as_json(summarise(scores, SCORING)), "against_baseline": comparison}}
    )
    assert {str(key) for key in numbers if key.metric == "custom"} == {"adapter custom", "adapter custom against base"}


def test_what_lies_beside_the_file_can_be_imported() -> None:
    Path("data/metric/beside_it.py").write_text("def half(): return 0.5")
    assert [one.own for one in own("import beside_it\ndef score(a, b, c): return beside_it.half()")(ROWS)] == [0.5] * 9


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def score(a, b): return 1", "is given prompt, reference and answer: too many positional arguments"),
        ("def other(a, b, c): return 1", f"task.metric: {FILE} has no function score, but other"),
        ("score = 0.5", "has no function score$"),
        ("def score(a, b, c:\n", "cannot be loaded: SyntaxError: "),
        (
            "import a_package_that_nobody_has",
            "cannot be loaded: ModuleNotFoundError: No module named 'a_package_that_no",
        ),
        ("raise SystemExit(0)", "cannot be loaded: SystemExit: 0"),
        ("def score(a, b, c): return float('nan')", "gave nan on row 0, not a bool or a number from 0 to 1"),
        ("def score(a, b, c): return '1'", "gave '1' on row 0, not a bool"),
        ("def score(a, b, c): return None", "gave None on row 0"),
        ("def score(a, b, c): return 1.5", "gave 1.5 on row 0"),
        ("def score(a, b, c): return -1e-9", "gave -1e-09 on row 0"),
        ("def score(a, b, c): return float('inf')", "gave inf on row 0"),
        (
            "def score(a, b, c): return 1 / (c != 'answer 4')",
            f"{FILE}:score failed on row 4: ZeroDivisionError: division",
        ),
        ("def score(a, b, c): exit()", "failed on row 0: SystemExit"),
    ],
)
def test_what_is_no_score_is_a_sentence_and_never_a_zero(code: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        own(code)(ROWS)


def test_a_file_that_is_missing() -> None:
    with pytest.raises(UserError, match=r"task\.metric: data/metric/none\.py is missing"):
        scorer(Task(kind="text", instruction="Answer.", metric="data/metric/none.py:score"))


@pytest.mark.parametrize(
    "metric",
    ["score.py:score", "data/metric/../score.py:score", "data/metric/score.py", "data/metric/a.txt:f", ":", ""],
)
def test_a_file_that_no_stage_depends_on_is_refused(metric: str) -> None:
    params = load_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["task"]["metric"] = metric
    with pytest.raises(UserError, match=r"task\.metric: .*is no data/metric/FILE\.py:FUNCTION; only files below"):
        check_params(params)
