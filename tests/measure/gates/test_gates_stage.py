"""The stage `gates`: all gates together, also those that a judge or people may or may not be asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
from scored import ROOT

from stages.core.errors import UserError
from stages.measure.gates.__main__ import asked
from stages.params import Params, check_params, read_params


def params_with(**changes: dict[str, Any]) -> Params:
    values = read_params(ROOT / "params.yaml")
    for section, keys in changes.items():
        values[section] |= keys
    return check_params(values)


def test_gates_on_the_judge_count_where_it_is_asked() -> None:
    gates = {"judge_better": {"metric": "judge.against_baseline.delta", "minimum": 0.05}}
    off, on = (set(asked(params_with(judge={"enabled": enabled, "gates": gates}))) for enabled in (False, True))
    assert on - off == {"judge_better"}
    people = {"people": {"metric": "review.against_baseline.delta", "minimum": 0}}
    assert set(asked(params_with(review={"gates": people}))) - off == {"people"}


def test_two_gates_of_one_name_are_refused() -> None:
    people = {"exact_match": {"metric": "review.against_baseline.delta", "minimum": 0}}
    with pytest.raises(UserError, match=r"review.gates: exact_match is the name of another gate too"):
        asked(params_with(review={"gates": people}))


@pytest.mark.parametrize("file", ["params.yaml", "examples/snips/params.yaml", "examples/snips/params-gpu.yaml"])
def test_the_gates_that_come_with_the_project(file: str) -> None:
    """Exact match of 95 %, no significant loss, no forgetting beyond 5 %, no leak: all of them required."""
    gates = check_params(read_params(ROOT / file)).gates
    assert (gates["exact_match"].minimum, gates["exact_match"].required) == (0.95, True)
    loss = gates["no_loss"]
    assert (loss.comparison, loss.minimum, loss.evidence, loss.required) == ("previous", 0, "against", True)
    assert (gates["no_forgetting"].maximum, gates["no_forgetting_answers"].minimum) == (1.05, -0.05)
    assert (gates["no_personal_data"].maximum, gates["no_personal_data"].evidence) == (0, "against")
    assert all(gates[name].required for name in ("no_forgetting", "no_forgetting_answers", "no_personal_data"))


def test_every_gate_names_a_metric_that_the_pipeline_writes(pipeline: Path) -> None:
    checked = json.loads((pipeline / "metrics/gates.json").read_text(encoding="utf-8"))
    params = check_params(read_params(pipeline / "params.yaml"))
    assert set(checked["gates"]) == set(asked(params))
    assert checked["gates"]["no_loss"]["reason"].startswith("first release")
    assert checked["verdict"] in ("PASS", "MARGINAL", "FAIL")
