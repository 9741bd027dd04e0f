"""The command line itself; what its commands do is tested with their rooms."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
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


def tunetrail(root: Path, words: Sequence[str | bytes]) -> "subprocess.CompletedProcess[bytes]":
    """The command in a repository that has no more than such commands ask for."""
    (root / "dvc.yaml").write_text("artifacts:\n  m: {path: models/release/manifest.json}\n")
    (root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    for path in ("data/unique.jsonl", "data/split/holdout.jsonl", "data/schema.json"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("{}" if path.endswith("n") else "\n")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    program = [sys.executable, "-m", "stages.cli", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(program, capture_output=True, cwd=root, env=environment, check=False)


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
    done = tunetrail(tmp_path, words)
    err = done.stderr.decode(errors="replace")
    assert done.returncode == 2
    assert said in err
    assert "Traceback" not in err


HOSTILE = "one\r\x1b[2J\x9b31m\u202etwo\u2028"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["append", "rows.jsonl"], 0),
        (["data", "check", f"{HOSTILE}.jsonl"], 2),
        (["trace", HOSTILE], 2),
        (["drift", f"{HOSTILE}.jsonl"], 2),
        (["canary", "log.jsonl"], 0),
        (["gates", HOSTILE], 2),  # of argparse's own
    ],
    ids=lambda value: str(value)[:9],
)
def test_what_others_wrote_steers_no_terminal(words: list[str], code: int, tmp_path: Path) -> None:
    row = {"prompt": "p", "completion": "", "source": "inbox-1", "skipped": HOSTILE}
    served = [{"canary": one, "release": f"{HOSTILE}{one}", "status": 200, "seconds": 1.0} for one in (True, False)]
    for name, rows in (("rows.jsonl", [row]), ("log.jsonl", served * 500), (f"{HOSTILE}.jsonl", [{HOSTILE: HOSTILE}])):
        (tmp_path / name).write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows))
    done = tunetrail(tmp_path, words)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == code, said
    assert not re.search("[^\n\t\x20-\x7e\xa0-\u2027\u202f-\u205f\u2070-\uffff]", said)
    assert "Traceback" not in said
    assert "⟨U+001B⟩[2J" in said
