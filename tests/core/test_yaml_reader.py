"""One reader of YAML, which agrees with DVC's."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import YAMLFileCorruptedError, dumps_yaml, modify_yaml, parse_yaml
from hypothesis import given
from hypothesis import strategies as st

from stages.core.yaml_reader import load_yaml
from stages.params.loader import load_params

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("labels: [yes, no]", {"labels": ["yes", "no"]}),
        ("languages: [no, de]", {"languages": ["no", "de"]}),
        ("rank: 010", {"rank": 10}),
        ("rank: 08", {"rank": 8}),
        ("time: 1:30", {"time": "1:30"}),
        ("rate: 1e-3", {"rate": 0.001}),
        ("on: off", {"on": "off"}),
        ("y: n", {"y": "n"}),
        ("mode: 0o17", {"mode": 15}),
        ("rows: 1_000", {"rows": 1000}),
        ("none: ~", {"none": None}),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        ("", None),
        ("# nothing", None),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert repr(load_yaml(text)) == repr(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: this key is given twice; keep one"),
        ("train:\n  rank: 4\n  rank: 8\n", "line 3, column 3: this key is given twice; keep one"),
        ("a: [1\nb: 2\n", "line 2, column 2: expected ',' or ']', but got ':'"),
        ("a: 1\n\tb: 2\n", "line 2, column 1: found character '\\t' that cannot start any token"),
        ("a: !!python/object:os.system ls", "line 1, column 4: could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: but found another document"),
        ("a: 2026-13-45", "month must be in 1..12"),
        (b"a: \xff", "can't decode byte 0xff"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(text: str | bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        load_yaml(text)
    assert "\n" not in str(caught.value)


def test_what_is_read_is_the_callers_own() -> None:
    load_yaml("a: [1]")["a"].append(2)
    assert load_yaml("a: [1]") == {"a": [1]}


def as_dvc(text: str) -> Any:
    return parse_yaml(text, "params.yaml")


@given(
    st.one_of(
        st.text("0123456789-+.eExob_:~nulyesTrFa ", max_size=8),
        st.from_regex(r"[-+]?\d{1,3}(\.\d{0,3})?([eE][-+]?\d{1,2})?", fullmatch=True),
        st.sampled_from(["1e-3", "1e-05", "yes", "off", "null", "True", "0x1f", "0o17", ".inf", "1_000", "12:30:00"]),
        st.text(max_size=8),
    )
)
def test_every_text_reads_as_dvc_reads_it_or_fails_as_there(text: str) -> None:
    text = f"key: {text}"
    try:
        expected = as_dvc(text)
    except (YAMLFileCorruptedError, ValueError, TypeError, AttributeError):
        with pytest.raises(ValueError, match=r"\S"):
            load_yaml(text)
    else:
        assert repr(load_yaml(text) or {}) == repr(expected)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("abc"), values))
def test_what_dvc_writes_is_read_back(content: dict[str, object]) -> None:
    text = dumps_yaml(content)
    assert repr(load_yaml(text) or {}) == repr(as_dvc(text))


def test_an_experiment_leaves_labels_and_languages_as_they_are(tmp_path: Path) -> None:
    """`dvc exp run -S` writes params.yaml anew, and takes the quotes off where YAML 1.2 needs none."""
    path = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    values = load_yaml(text)
    values["task"] |= {"kind": "classification", "labels": ["yes", "no", "on", "1:30", "010", "null"]}
    values["clean"]["languages"] = ["no"]
    path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML, every text in quotes
    with modify_yaml(path) as content:
        content["train"]["learning_rate"] = 5e-4
    params = load_params("task", "clean", "train", path=path)
    assert params.task.labels == ["yes", "no", "on", "1:30", "010", "null"]
    assert params.clean.languages == ["no"]
    assert params.train.learning_rate == 0.0005
