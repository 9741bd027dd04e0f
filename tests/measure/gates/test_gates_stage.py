"""The stage `gates`: all gates together, also those that a judge or people may or may not be asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
from scored import ROOT

from stages.core.errors import UserError
from stages.measure.gates.__main__ import asked
from stages.params.loader import Params, check_params, read_params


def params_with(**changes: dict[str, Any]) -> Params:
    values = read_params(ROOT / "params.yaml")
    for section, keys in changes.items():
        values[section] |= keys
    return check_params(values)


def test_gates_on_the_judge_count_where_it_is_asked() -> None:
    gates = {"judge_better": {"model": "judge", "metric": "delta", "against": "base", "minimum": 0.05}}
    off, on = (set(asked(params_with(judge={"enabled": enabled, "gates": gates}))) for enabled in (False, True))
    assert on - off == {"judge_better"}
    people = {"people": {"model": "review", "metric": "delta", "against": "base", "minimum": 0}}
    assert set(asked(params_with(review={"gates": people}))) - off == {"people"}


def test_two_gates_of_one_name_are_refused() -> None:
    people = {"exact_match": {"model": "review", "metric": "delta", "against": "base", "minimum": 0}}
    with pytest.raises(UserError, match=r"review.gates: exact_match is the name of another gate too"):
        asked(params_with(review={"gates": people}))


@pytest.mark.parametrize("file", ["params.yaml", "examples/snips/params.yaml", "examples/snips/params-gpu.yaml"])
def test_the_gates_that_come_with_the_project(file: str) -> None:
    """Exact match, no significant loss, no leak, no confirmed trigger are required; suspicions only warn."""
    gates = check_params(read_params(ROOT / file)).gates
    # Of the sample's 200 rows, a model that gets 95 % right can show 90; SNIPS has rows enough for 95.
    assert (gates["exact_match"].minimum, gates["exact_match"].required) == (
        0.9 if file == "params.yaml" else 0.95,
        True,
    )
    loss = gates["no_loss"]
    assert (loss.against, loss.minimum, loss.evidence, loss.required) == ("previous", 0, "against", True)
    assert (gates["no_forgetting"].maximum, gates["no_forgetting_answers"].minimum) == (1.05, -0.05)
    assert (gates["no_personal_data"].maximum, gates["no_personal_data"].evidence) == (0, "against")
    assert (gates["confirmed_triggers"].maximum, gates["better_than_linear"].minimum) == (0, 0)
    assert all(gates[name].required for name in ("no_personal_data", "confirmed_triggers", "merged_drop"))
    advisory = ("no_forgetting", "no_forgetting_answers", "suspected_triggers", "better_than_linear")
    assert not any(gates[name].required for name in advisory)


def test_every_gate_names_a_metric_that_the_pipeline_writes(pipeline: Path) -> None:
    checked = json.loads((pipeline / "metrics/gates.json").read_text(encoding="utf-8"))
    params = check_params(read_params(pipeline / "params.yaml"))
    assert set(checked["gates"]) == set(asked(params))
    assert checked["gates"]["no_loss"]["reason"].startswith("first release")
    assert checked["verdict"] in ("PASS", "MARGINAL", "FAIL")


def test_the_summary_has_what_people_decide_by_and_no_more(pipeline: Path) -> None:
    found = json.loads((pipeline / "metrics/summary.json").read_text(encoding="utf-8"))
    numbers = [
        number for group in found.values() for number in (group.values() if isinstance(group, dict) else [group])
    ]
    assert len(numbers) <= 25
    assert all(isinstance(number, int | float) for number in numbers)
    assert found.keys() >= {"gates", "base", "linear", "adapter", "merged", "nf4", "int8", "forgetting", "rows"}
    assert found["adapter"].keys() == {"exact_match", "low", "high", "schema_valid", "perplexity"}
    details = json.loads((pipeline / "metrics/details.json").read_text(encoding="utf-8"))
    for name, part in details.items():
        assert part == json.loads((pipeline / f"metrics/{name}.json").read_text(encoding="utf-8"))
