"""A stage that is forked from the server of stages is run as the interpreter itself runs it."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stage_server import programs

PROBE = """
import atexit, os, signal, sys
from stages import kin
assert __name__ == "__main__" and __spec__.name == "stages.probe" and kin
print(sys.argv, os.getcwd(), sys.path[0], sys.executable, dict(sorted(os.environ.items())))
print(sys.stdin.read(), os.isatty(0), signal.getsignal(signal.SIGCHLD), file=sys.stderr)
atexit.register(print, "at exit")
exec(sys.argv[1])
"""
ENDS = {
    "well": "",
    "code": "sys.exit(3)",
    "words": "sys.exit('error: words')",
    "true": "sys.exit(True)",
    "error": "raise ValueError('no')",
    "hard": "os._exit(7)",
    "killed": "sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)",
    "terminated": "sys.stdout.flush(); os.kill(os.getpid(), signal.SIGTERM)",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    (folder / "stages").mkdir()
    for name, text in {"__init__": "", "kin": "", "probe": PROBE}.items():
        (folder / "stages" / f"{name}.py").write_text(text)
    return folder


def start(python: Path, folder: Path, end: str) -> "subprocess.Popen[str]":
    environment = {"PATH": os.environ["PATH"], "ODD": "a=b\nc ü", "PYTHONPATH": ""}
    pipe = subprocess.PIPE
    words = [str(python), "-m", "stages.probe", end, "", "two words"]
    return subprocess.Popen(words, cwd=folder, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_stage_sees_and_says_the_same_and_ends_the_same(end: str, folder: Path) -> None:
    said = []
    for python in (Path(sys.executable), programs() / "python"):
        process = start(python, folder, end)
        out, err = process.communicate("asked")
        said.append((process.returncode, out, err.splitlines()[0], err.splitlines()[-1]))
    assert said[0] == said[1]


def test_a_signal_reaches_the_stage_and_a_killed_program_takes_it_along(folder: Path) -> None:
    wait = "print(os.getpid(), flush=True); import time; time.sleep(60)"
    for number in (signal.SIGTERM, signal.SIGKILL):
        with start(programs() / "python", folder, wait) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.stdout.readline()
            stage = os.pidfd_open(int(process.stdout.readline()))
            process.send_signal(number)
            assert process.wait() == -number
            assert select.select([stage], [], [], 60)[0], "the stage lives on"
            os.close(stage)
