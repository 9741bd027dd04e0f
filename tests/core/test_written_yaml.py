"""What DVC wrote is read quickly, and is what the one reader of YAML reads: values, types and mistakes."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import ROOT

from stages.core.yaml_reader import load_written_yaml, load_yaml

ODD = [
    "yes",
    "no",
    "1:30",
    "0o7",
    "010",
    "1e3",
    "1_0",
    "null",
    "~",
    "<<",
    "=",
    "- a",
    "a: b",
    "#x",
    "2026-01-01",
    "\x85",
    "ü",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False).filter(math.isfinite)
    | st.text(max_size=8)
    | st.text(alphabet="0123456789eE_+-.:~<=yntfx", max_size=6)
    | st.sampled_from(ODD)
)
KEYS = st.text(max_size=5) | st.sampled_from(ODD)
VALUES = st.recursive(
    SCALARS, lambda one: st.lists(one, max_size=3) | st.dictionaries(KEYS, one, max_size=3), max_leaves=8
)


def answer(read: Callable[[str], Any], text: str) -> str:
    """The value with its types, or what is wrong."""
    try:
        return repr(read(text))
    except ValueError as error:
        return f"error: {error}"


@settings(max_examples=100)
@given(VALUES)
def test_what_dvc_writes_is_read_as_the_one_reader_does(value: Any) -> None:
    text = dumps_yaml({"a": value})
    assert answer(load_written_yaml, text) == answer(load_yaml, text)


LOCK = dumps_yaml(
    {"schema": "2.0", "stages": {"a": {"cmd": "run", "outs": [{"path": "b", "md5": "0" * 32, "size": 7}]}}}
)


@settings(max_examples=100)
@given(
    st.integers(0, len(LOCK)),
    st.integers(0, 9),
    st.sampled_from(["", "\n", " ", ":", "x", "1", "<<<<<<< HEAD\n", LOCK, "a: 1\n"]),
)
def test_so_is_what_was_spoiled(at: int, cut: int, put: str) -> None:
    text = LOCK[:at] + put + LOCK[at + cut :]
    assert answer(load_written_yaml, text) == answer(load_yaml, text)


@pytest.mark.parametrize("name", ["dvc.lock", "dvc.yaml", "params.yaml"])
def test_so_are_the_files_of_the_project(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert answer(load_written_yaml, text) == answer(load_yaml, text)
