"""smoke: a sound server passes, and each fault of an engine fails its own check."""

from pathlib import Path

import pytest
from served import make_version, stubbed

from stages.ship.serve.front import Front
from stages.ship.serve.served_version import Version
from stages.ship.serve.smoke import Check, smoke, table

FAULTS = ["health", "model", "golden prompts", "concurrent", "over-length", "malformed"]


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return make_version(tmp_path_factory.mktemp("smoke"), "a@v1.0.0", engine="stub")


@pytest.mark.parametrize("fault", ["", *FAULTS])
def test_each_fault_fails_its_own_check(version: Version, fault: str) -> None:
    with stubbed(version, fault) as (stub, _):
        checks = smoke(stub.server_for(), version, version.golden(5))
    assert [check.name for check in checks if not check.passed] == ([fault] if fault else [])
    assert (f"FAILED  {fault}" in table(checks)) == bool(fault)
    if not fault:
        assert [check.name for check in checks] == [*FAULTS, "health afterwards", "latency"]
        assert len(stub.asked) == 5 + 8 + 2
        assert "13 requests" in checks[-1].detail


def test_a_front_refuses_what_its_engine_would_not(version: Version) -> None:
    with stubbed(version, "malformed") as (_, target), Front(target).answering() as url:
        checks = smoke(target.server.__class__(f"{url}/v1", version.id, "llama.cpp"), version, version.golden(2))
    assert all(check.passed for check in checks)


def test_what_a_server_says_adds_no_line() -> None:
    said = table([Check("concurrent", False, "HTTP 500: no\nok      golden prompts     5 of 5 equal")])
    assert said == "FAILED  concurrent         HTTP 500: no ok golden prompts 5 of 5 equal"


def test_nobody_there_is_one_sentence(version: Version, tmp_path: Path) -> None:
    with stubbed(version) as (stub, _):
        gone = stub.server_for()
    assert [(check.name, check.passed) for check in smoke(gone, version, [])] == [("health", False)]
