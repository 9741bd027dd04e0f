"""`tunetrail repro` starts wherever a kill has left dvc.lock and DVC's rwlock, and changes neither elsewhere."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from scratch import Answer, Scratch

from stages.core.dvc_lock import parse_lock
from stages.core.errors import UserError
from stages.core.files import write_text
from stages.repro import HEAVY, TORN, is_dead, is_whole, libraries_read_ahead, mend_lock, mend_rwlock

pytest_plugins = ["scratch_fixtures"]


def repro(scratch: Scratch, *arguments: str) -> Answer:
    done = subprocess.run(
        [sys.executable, "-c", "from stages.cli import main; main()", "repro", *arguments],
        cwd=scratch.root,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def test_the_lock_is_brought_back_and_finished_stages_with_it(scratch: Scratch) -> None:
    """A kill in the half second after a stage: what had finished since the commit is not computed again."""
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.dvc("repro")
    whole = (scratch.root / "dvc.lock").read_bytes()
    cut = whole[: whole.index(b"merge_quantize") + 200]
    (scratch.root / "dvc.lock").write_bytes(cut)
    answer = repro(scratch)
    assert answer.code == 0, answer.err
    assert (
        "dvc.lock was cut, as by a kill or a full disk while DVC wrote it: it is that of the last commit" in answer.err
    )
    assert "Stage 'train' is cached - skipping run, checking out outputs" in answer.out
    assert "Running stage 'train'" not in answer.out
    assert (scratch.root / TORN).read_bytes() == cut
    assert parse_lock((scratch.root / "dvc.lock").read_bytes()).stages == parse_lock(whole).stages


@pytest.mark.parametrize(("cores", "base", "begun"), [(2, False, 0), (16, True, 0), (16, False, 1)])
def test_libraries_are_read_ahead_where_cores_are_idle_and_the_base_model_is_to_come(
    cores: int, base: bool, begun: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    if base:
        (tmp_path / "models/base").mkdir(parents=True)
    assert all(map(importlib.util.find_spec, HEAVY))
    before = psutil.Process().children()
    with libraries_read_ahead(tmp_path):
        assert len(set(psutil.Process().children()) - set(before)) == begun
    assert psutil.Process().children() == before


def test_arguments_are_those_of_dvc(scratch: Scratch) -> None:
    answer = repro(scratch, "--dry", "--force", "clean")
    assert answer.code == 0, answer.err
    assert "Running stage 'clean'" in answer.out
    assert "Running stage 'train'" not in answer.out
    assert repro(scratch, "no-such-stage").code != 0


def test_a_cut_lock_is_whole_only_if_all_in_it_is_true(scratch: Scratch) -> None:
    """Cut at the end of a line it can be a lock of fewer stages and outputs; those come from the run cache."""
    whole = (scratch.root / "dvc.lock").read_bytes()
    stages, taken = parse_lock(whole).stages, 0
    for at in (at for at, byte in enumerate(whole, 1) if byte == ord("\n")):
        assert not is_whole(whole[: at - 1])
        if is_whole(whole[:at]):
            taken += 1
            for name, stage in parse_lock(whole[:at]).stages.items():
                hashes = {(entry.path, entry.md5) for entry in (*stages[name].deps, *stages[name].outs)}
                assert {(entry.path, entry.md5) for entry in (*stage.deps, *stage.outs)} <= hashes
    assert is_whole(whole)
    assert taken > 1


def test_a_whole_lock_is_left_alone_and_a_conflict_is_for_people(scratch: Scratch) -> None:
    whole = (scratch.root / "dvc.lock").read_bytes()
    assert list(mend_lock(scratch.root)) == []
    assert (scratch.root / "dvc.lock").read_bytes() == whole
    conflict = b"<<<<<<< HEAD\n" + whole + b"=======\n" + whole + b">>>>>>> other\n"
    (scratch.root / "dvc.lock").write_bytes(conflict)
    with pytest.raises(UserError, match=r"merge conflict; `tunetrail merge-lock` resolves it"):
        list(mend_lock(scratch.root))
    assert (scratch.root / "dvc.lock").read_bytes() == conflict


def test_a_lock_that_no_commit_has_is_removed(scratch: Scratch) -> None:
    scratch.git("rm", "--quiet", "--cached", "dvc.lock")
    scratch.git("commit", "--quiet", "--message", "Without")
    write_text(scratch.root / "dvc.lock", "schema: '2.0'\nstages:\n  base:\n    outs:\n")
    assert "the last commit has no whole one, so it is removed" in "".join(mend_lock(scratch.root))
    assert not (scratch.root / "dvc.lock").exists()


@contextmanager
def child(end: bool) -> Iterator[int]:
    """A process that lives, or one that has ended and that nobody has waited for: a zombie."""
    process = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1)
    assert process.stdout is not None
    process.stdout.readline()
    if end:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield process.pid
    process.kill()
    process.communicate()


def test_the_dead_are_taken_out_of_the_rwlock_and_the_living_stay(scratch: Scratch) -> None:
    path = scratch.root / ".dvc/tmp/rwlock"
    with child(end=True) as zombie, child(end=False) as living:
        gone = {"pid": 2**22 + 1, "cmd": "dvc push"}
        dead, alive = {"pid": zombie, "cmd": "dvc repro"}, {"pid": living, "cmd": "dvc pull"}
        path.write_text(json.dumps({"write": {"/a": dead, "/b": alive}, "read": {"/c": [dead, alive], "/d": [gone]}}))
        said = list(mend_rwlock(scratch.root))
        assert json.loads(path.read_text()) == {"write": {"/b": alive}, "read": {"/c": [alive]}}
        assert sorted(line.partition(" was killed")[0] for line in said) == [
            f"`dvc push` (PID {2**22 + 1})",
            f"`dvc repro` (PID {zombie})",
        ]
        assert list(mend_rwlock(scratch.root)) == []
        assert not is_dead(living, time.time())
        assert is_dead(living, time.time() - 1000), "a younger process has got the number"


@pytest.mark.parametrize("text", ["", '{"write": {"/a', '{"write": [1]}', "[]", '{"read": {"/a": [{"pid": 1}]}}'])
def test_a_cut_rwlock_is_emptied(scratch: Scratch, text: str) -> None:
    (scratch.root / ".dvc/tmp/rwlock").write_text(text)
    assert "rwlock was cut" in "".join(mend_rwlock(scratch.root))
    scratch.dvc("repro", "--force", "clean")
