"""What a run will take, from a few timed steps of it."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from project import ROOT
from training_project import lay_out

from stages.cli import main
from stages.core import paths
from stages.core.files import write_json
from stages.core.run_notes import energy_used, measured
from stages.tune.estimate import Estimate, Prices, estimate, sentences


def files(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lay_out(tmp_path, epochs=3)
    for name in ("data/schema.json", "data/chat_template.jinja"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_steps_of_the_run_are_counted_and_some_are_timed(project: Path) -> None:
    for name, seconds in (("baseline", 10.0), ("evaluate", 20.0), ("train", 999.0)):
        write_json(project / paths.ENVIRONMENT / f"{name}.json", {"seconds": seconds})
    before = files(project)
    found = estimate(3)
    assert files(project) == before  # nothing that a run reads or writes
    assert (found.steps, found.timed_steps, found.validations) == (30, 3, 8)
    assert found.seconds_a_step > 0
    training = 30 * found.seconds_a_step + 8 * found.seconds_a_validation
    assert found.training == pytest.approx(training)
    assert found.training_low <= found.training <= found.training_high
    assert found.other_stages == 30.0
    assert found.hours == pytest.approx((found.training + 30) / 3600)


def test_a_run_of_fewer_steps_is_timed_whole(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["estimate", "--steps", "500", "--json"])
    printed = capfd.readouterr().out
    found = json.loads(printed[printed.index("{\n") :])
    assert found["steps"] == found["timed_steps"] + 2 == 30


def test_what_is_missing_is_named_with_its_stage(project: Path) -> None:
    (project / paths.TRAIN).unlink()
    with pytest.raises(SystemExit):
        main(["estimate"])


def made(**changed: Any) -> Estimate:
    facts: dict[str, Any] = {
        "engine": "trl",
        "devices": 2,
        "steps": 100,
        "timed_steps": 8,
        "seconds_a_step": 36.0,
        "training": 3600.0,
        "training_low": 3000.0,
        "training_high": 4200.0,
        "validations": 0,
        "seconds_a_validation": 0.0,
        "other_stages": 3600.0,
        "memory_mib": 2048,
        "energy_kwh": 0.5,
        "on_card": True,
    }
    return Estimate(**(facts | changed))


def test_sentences_give_time_memory_energy_and_price() -> None:
    text = "\n".join(sentences(made(), Prices("EUR", 0.1, 0.4, 2.5, 0.4)))
    assert "60.0 minutes (50.0 to 70.0)" in text
    assert "2.00 hours, 4.00 card hours" in text
    assert "0.500 kWh" in text
    assert "price: 10.20 EUR" in text  # 2 hours of 2 cards at 2.50, half a kWh at 0.40
    text = "\n".join(sentences(made(energy_kwh=None, other_stages=None, on_card=False), None))
    assert "not measured" in text
    assert "no run on this machine" in text
    assert "price" not in text


def fake_codecarbon(monkeypatch: pytest.MonkeyPatch, processor: bool, card: bool) -> list[str]:
    """The calls that the meter makes, in place of codecarbon, which is an extra."""
    called: list[str] = []

    class Tracker:
        def __init__(self, **settings: Any) -> None:
            assert settings["save_to_file"] is False
            self.final_emissions_data = SimpleNamespace(cpu_energy=0.25, gpu_energy=0.5)

        def start(self) -> None:
            called.append("start")

        def stop(self) -> None:
            called.append("stop")

    parts: dict[str, dict[str, Any]] = {"codecarbon": {"OfflineEmissionsTracker": Tracker}, "codecarbon.core": {}}
    parts |= {"codecarbon.core.cpu": {"is_rapl_available": lambda: processor}}
    parts |= {"codecarbon.core.gpu_nvidia": {"is_nvidia_system": lambda: card}}
    for name, values in parts.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "codecarbon")
    return called


@pytest.mark.parametrize(
    ("processor", "card", "wanted"), [(True, False, 0.25), (False, True, 0.5), (True, True, 0.75), (False, False, None)]
)
def test_energy_is_of_what_the_hardware_counts(
    monkeypatch: pytest.MonkeyPatch, processor: bool, card: bool, wanted: float | None
) -> None:
    called = fake_codecarbon(monkeypatch, processor, card)
    with energy_used() as used:
        pass
    assert used.kilowatt_hours == wanted
    assert called == ([] if wanted is None else ["start", "stop"])


def test_the_energy_that_came_true_stands_in_the_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with measured("plain"):
        pass
    assert "energy_kwh" not in json.loads((tmp_path / paths.ENVIRONMENT / "plain.json").read_text())
    fake_codecarbon(monkeypatch, True, False)
    with measured("train"):
        pass
    assert json.loads((tmp_path / paths.ENVIRONMENT / "train.json").read_text())["energy_kwh"] == 0.25
