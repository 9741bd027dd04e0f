"""What a command says, and how one ends that cannot go on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stages.core.errors import visible

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


@given(st.text())
@example("one\u2028two")
def test_invisible_characters_are_made_visible(text: str) -> None:
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ufeff]", visible(text)
    )


def test_what_others_wrote_steers_no_terminal() -> None:
    program = """
import sys
from stages.core.errors import UserError, run
def main():
    print("one\\ttwo\\n\\x1b[2Jthree\\r", "\\u202efour\\udc80", "\\u2060five")
    print("\\x9b1m", file=sys.stderr, flush=True)
    if len(sys.argv) > 1:
        raise ValueError("\\x1b]0;title\\x07")
    raise UserError("\\x1b[1A\\rno")
run(main)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.stdout.decode() == "one\ttwo\n⟨U+001B⟩[2Jthree⟨U+000D⟩ ⟨U+202E⟩four⟨U+DC80⟩ \u2060five\n"
    assert (done.returncode, done.stderr.decode()) == (2, "⟨U+009B⟩1m\nerror: ⟨U+001B⟩[1A⟨U+000D⟩no\n")
    few = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    plain = subprocess.run(command, cwd=ROOT, env=few, capture_output=True, check=False)
    assert plain.stdout.startswith(b"one\ttwo\n\\u27e8U+001B\\u27e9[2J")
    assert plain.returncode == 2
    fault = subprocess.run([*command, "fault"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert fault.returncode == 1
    assert fault.stderr.endswith("ValueError: ⟨U+001B⟩]0;title⟨U+0007⟩\n")
