"""One reader of YAML, which agrees with DVC's."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import YAMLFileCorruptedError, dumps_yaml, modify_yaml, parse_yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from stages.core.errors import UserError
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
        ("a: 2026-13-45", "line 1, column 4: '2026-13-45' is no timestamp (month must be in 1..12)"),
        (f"a: {'9' * 5000}", "line 1, column 4: '9999999999999999999999999999999999999999…' is no int (Exceeds"),
        ("a: " + "[" * 800, "lists and maps stand too deep in each other"),
        ("a: !!int\nb: 1", "line 1, column 4: '' is no int"),
        ("%YAML 1.1\n---\na: yes", "leave the line %YAML out"),
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


SCALARS = st.one_of(
    st.text("0123456789-+.eExob_:~nulyesTrFa ", max_size=8),
    st.sampled_from(["010", "yes", "on", "NO", "off", "12:30", "1_000", "1e-3", "0x1f", ".5", "2026-01-02", "~"]),
    st.from_regex(r"[-+]?\d{1,20}(\.\d{0,20})?([eE][-+]?\d{1,3})?", fullmatch=True),
    st.text(max_size=12).map(json.dumps),
)
PLACES = ("key: {}\nother: 1\n", "key: [{}, x]\nother: 1\n", "key: {{a: {}}}\nother: 1\n", "{}: x\nother: 1\n")


@given(SCALARS, st.sampled_from(PLACES))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_a_stage_reads_is_what_dvc_records_and_what_an_experiment_leaves(
    tmp_path: Path, scalar: str, place: str
) -> None:
    """One value from the file, from dvc.lock, and from the file after DVC has written it anew."""
    path = tmp_path / "params.yaml"
    try:
        read = load_yaml(place.format(scalar))
    except ValueError:
        return
    assume(not re.search(r"[-+]0+(\.0*)?[eE]", scalar))  # DVC's writer stops at a zero with a sign and an exponent
    assume(not re.search("[\0\x85\u2028\u2029]", repr(read).encode().decode("unicode_escape", "ignore")))
    assert repr(load_yaml(dumps_yaml({"params": read}))["params"]) == repr(read)
    path.write_text(place.format(scalar), encoding="utf-8")
    with modify_yaml(path) as content:
        content["other"] = 2
    assert repr(load_yaml(path.read_bytes())) == repr({**read, "other": 2})


TEXTS = [
    "yes",
    "no",
    "on",
    "off",
    "NO",
    "12:30",
    "1:30",
    "010",
    "1e3",
    "null",
    "~",
    "2026-01-02",
    "true",
    "=",
    "<<",
    "",
]


def test_an_experiment_leaves_every_text_and_key_as_it_is(tmp_path: Path) -> None:
    """`dvc exp run -S` writes params.yaml anew, and takes the quotes off where YAML 1.2 needs none."""
    path = tmp_path / "params.yaml"
    values = load_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["task"] |= {"kind": "classification", "labels": TEXTS, "instructions": dict.fromkeys(TEXTS, "on")}
    values["clean"] |= {"languages": ["no"], "phone_region": "NO", "raw": "010"}
    path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML, every text in quotes
    before = load_params("task", "clean", path=path)
    apply_overrides(path, ["train.learning_rate=5e-4", "+train.dropout=0.1"])
    after = load_params("task", "clean", "train", path=path)
    assert '"yes"' not in path.read_text(encoding="utf-8")
    assert (after.task, after.clean) == (before.task, before.clean)
    assert (after.train.learning_rate, after.train.dropout) == (0.0005, 0.1)


@pytest.mark.parametrize("given", ["train.rank=010", "+clean.strip_html=yes"])
def test_what_dvc_records_as_text_is_no_number_and_no_truth(tmp_path: Path, given: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    apply_overrides(path, [given])
    key, _, value = given.removeprefix("+").partition("=")
    with pytest.raises(UserError, match=rf"{key}: '{value}' is not allowed: .*; write "):
        load_params(path=path)
