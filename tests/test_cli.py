"""The command line itself; what its commands do is tested with their rooms."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages import cli

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("command", ["gates", "trace metrics/gates.json"])
def test_a_reader_that_stops_reading_is_no_fault(command: str) -> None:
    """As in `tunetrail gates | head -1`, without the race: the reader is gone before the first line."""
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-m", "stages.cli", *command.split()]
    done = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = capsys.readouterr().out
    for command in (
        "trace",
        "verify",
        "gates",
        "release",
        "history",
        "rollback",
        "compare",
        "review",
        "preflight",
        "holdout",
        "data",
    ):
        assert command in said
