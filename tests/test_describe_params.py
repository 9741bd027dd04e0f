"""`tunetrail params` and docs/parameters.md say what the schema says."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from stages.core.machine import Machine
from stages.describe_params import describe, parameters
from stages.params.loader import check_params, read_params

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parameters_page", ROOT / "docs/parameters.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_schema_says(docs: ModuleType) -> None:
    page = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert page == docs.page(), "run: python docs/parameters.py"


def test_every_parameter_is_on_the_page_with_a_meaning(docs: ModuleType) -> None:
    found = {one.key: one for one in [*parameters(), *parameters(Machine)]}
    assert {"seed", "train.rank", "judge.price.input", "gates.NAME.minimum", "clean.sources.NAME.shape"} <= found.keys()
    assert [key for key, one in found.items() if not one.meaning] == []
    assert found["train.rank"].default == "16"
    assert docs.may_be(found["train.rank"].field) == "whole number, at least 1, at most 16384"
    assert found["model.source"].default == ""
    assert docs.may_be(found["dedup.completion"].field) == "equal, fuzzy, ignore"


def test_values_are_shown_and_defaults_beside_those_that_differ() -> None:
    values = read_params(ROOT / "params.yaml")
    values["train"] |= {"rank": 7, "alpha": 32, "dropout": 0.5}
    lines = describe(check_params(values)).splitlines()
    assert "train.rank: 7  (default: 16)" in lines
    assert "train.alpha: 32" in lines
    assert "train.dropout: 0.5  (default: 0.0)" in lines
    assert f"model.source: {json.dumps(values['model']['source'])}" in lines
    assert "    rank of the adapter's matrices" in lines
