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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["append", b"log\xff.jsonl"], "is no UTF-8; rename the file"),
        (["append", "x" * 300], "File name too long"),
        (["history", "--html", "dvc.yaml/page.html"], "dvc.yaml"),
        (["annotate", "x.jsonl", "--overlap", "-1"], "argument --overlap: -1 is less than 0"),
        (["why", "1", "--rows", "many"], "argument --rows: 'many' is no whole number"),
    ],
)
def test_what_no_argument_can_be_is_a_sentence(words: list[str | bytes], said: str, tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("artifacts:\n  m: {path: models/release/manifest.json}\n")
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    for path in ("data/unique.jsonl", "data/split/holdout.jsonl", "data/schema.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("{}" if path.endswith("n") else "\n")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    program = [sys.executable, "-m", "stages.cli", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, capture_output=True, cwd=tmp_path, env=environment, check=False)
    err = done.stderr.decode(errors="replace")
    assert done.returncode == 2
    assert said in err
    assert "Traceback" not in err
