"""How a command ends that cannot go on."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stage", ["prepare.dedup", "tune.train", "measure.gates"])
def test_another_python_is_a_sentence(stage: str) -> None:
    """`.venv/bin/dvc repro` runs `python -m ...` with the first Python of PATH; -S hides the packages of this one."""
    command = [sys.executable, "-S", "-m", f"stages.{stage}"]
    done = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sys.executable} has no package ")
    assert done.stderr.endswith(
        "activate its environment (source .venv/bin/activate) and run again, or run `make repro`\n"
    )
    assert "Traceback" not in done.stderr


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    program = "import stages.core.errors; import stages.core.no_such_module"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "No module named 'stages.core.no_such_module'" in done.stderr
