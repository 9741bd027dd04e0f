"""`tunetrail doctor`: a sound project has no problem, and each planted fault is the one that is named."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from scratch import Scratch

from stages import doctor
from stages.doctor import OK, PROBLEM, WARNING, Check

pytest_plugins = ["scratch_fixtures"]

Usage = namedtuple("Usage", "total used free")
TOKEN = "ghp_" + "Ab1" * 12  # put together here, so that this file holds no token
LOGIN = "https://ann:" + "hunter2" + "@store.example.org/x"


@pytest.fixture
def check(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Check]:
    """One check alone, in the scratch repository."""

    def one(name: str) -> Check:
        monkeypatch.setattr(doctor, "_CHECKS", (getattr(doctor, f"_{name}"),))
        (found,) = doctor.doctor(scratch.root)
        assert found.name == name
        return found

    return one


def said(found: Check) -> str:
    return "\n".join(found.says)


def test_a_sound_project(scratch: Scratch, tmp_path: Path) -> None:
    scratch.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    scratch.commit("Remote")
    (tmp_path / "store").mkdir(mode=0o755)
    scratch.dvc("push")
    answer = scratch.tunetrail("doctor", "--json")
    assert answer.code == 0, answer.err
    found = {row["name"]: row["state"] for row in json.loads(answer.out)}
    assert set(found) == {"python", "torch", "disk", "links", "remote", "locks", "secrets", "tracked", "objects"}
    assert PROBLEM not in found.values()
    assert all(found[name] == OK for name in ("python", "links", "remote", "locks", "secrets", "tracked", "objects"))


def test_a_line_a_check_and_exit_code_1_for_a_problem(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CHECKS", (doctor._tracked, doctor._remote))
    answer = scratch.tunetrail("doctor")
    assert answer.code == 0
    assert [line.split()[:2] for line in answer.out.splitlines()] == [["ok", "tracked"], ["warning", "remote"]]
    scratch.git("add", "--force", "data/clean.jsonl")
    for options in ([], ["--json"]):
        answer = scratch.tunetrail("doctor", *options)
        assert answer.code == 1
        assert answer.err == "error: doctor found a problem with tracked\n"


def test_another_python_on_the_path(check: Callable[[str], Check], monkeypatch: pytest.MonkeyPatch) -> None:
    assert check("python").state == OK
    monkeypatch.setenv("PATH", "/nowhere")
    found = check("python")
    assert found.state == WARNING
    assert sys.executable in said(found)


def test_a_card_that_torch_does_not_see(check: Callable[[str], Check], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert check("torch").state == OK
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    found = check("torch")
    assert found.state == WARNING
    assert "sees no card" in said(found)


def test_a_card_is_named_with_its_memory(check: Callable[[str], Check], monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="A card", total_memory=80_000_000_000)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: card)
    assert "A card, 80.0 GB" in said(check("torch"))


def test_little_memory(check: Callable[[str], Check], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100))
    found = check("torch")
    assert found.state == WARNING
    assert "base model" in said(found)


@pytest.mark.parametrize(("free", "state"), [(1 << 40, OK), (3_000_000, WARNING), (1_100_000, PROBLEM)])
def test_room_on_the_disk(
    scratch: Scratch, check: Callable[[str], Check], monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    lock = (scratch.root / "dvc.lock").read_text()
    scratch.write("dvc.lock", re.sub(r"\bsize: \d+", "size: 400000", lock))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 41, 0, free))
    found = check("disk")
    assert found.state == state
    assert ("dvc gc" in said(found)) == (state != OK)


def test_links(scratch: Scratch, check: Callable[[str], Check], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dvc_objects.fs.generic.test_links", lambda *_: ["hardlink", "symlink"])
    assert "by copy" in said(check("links"))
    scratch.dvc("config", "cache.type", "reflink,hardlink")
    assert "by hardlink" in said(check("links"))
    scratch.dvc("config", "cache.type", "reflink")
    found = check("links")
    assert found.state == PROBLEM
    assert "dvc config --local cache.type copy" in said(found)


def test_links_are_tried(scratch: Scratch, check: Callable[[str], Check]) -> None:
    scratch.dvc("config", "cache.type", "symlink")
    before = scratch.git("status", "--porcelain", "--ignored")
    assert "by symlink" in said(check("links"))
    assert scratch.git("status", "--porcelain", "--ignored") == before


def test_a_cache_that_cannot_be_written(check: Callable[[str], Check], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = check("links")
    assert found.state == PROBLEM
    assert "cannot be written" in said(found)


def test_no_remote(check: Callable[[str], Check]) -> None:
    found = check("remote")
    assert found.state == WARNING
    assert "dvc remote add" in said(found)


def test_a_remote_in_a_folder_is_written_and_left_as_it_was(
    scratch: Scratch, check: Callable[[str], Check], tmp_path: Path
) -> None:
    scratch.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    assert check("remote").state == OK
    assert [file for file in (tmp_path / "store").rglob("*") if file.is_file()] == []


def test_a_remote_that_everybody_may_write(scratch: Scratch, check: Callable[[str], Check], tmp_path: Path) -> None:
    scratch.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    scratch.dvc("push")
    folder = next((tmp_path / "store/files/md5").iterdir())
    folder.chmod(0o777)
    found = check("remote")
    assert found.state == PROBLEM
    assert str(folder) in said(found)


def test_a_remote_that_is_not_there(scratch: Scratch, check: Callable[[str], Check], tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    scratch.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    found = check("remote")
    assert found.state == PROBLEM
    assert "remote store cannot be used: " in said(found)


def test_git_was_killed(scratch: Scratch, check: Callable[[str], Check]) -> None:
    scratch.write(".git/index.lock", "")
    found = check("locks")
    assert found.state == WARNING
    assert "index.lock" in said(found)


def test_what_a_kill_left_is_mended(scratch: Scratch, check: Callable[[str], Check]) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    held = {"write": {str(scratch.root / "models"): {"pid": dead.pid, "cmd": "dvc repro"}}}
    scratch.write(".dvc/tmp/rwlock", json.dumps(held))
    lock = (scratch.root / "dvc.lock").read_text()
    scratch.write("dvc.lock", lock[: len(lock) // 2])
    found = check("locks")
    assert found.state == WARNING
    assert f"(PID {dead.pid}) was killed" in said(found)
    assert "dvc.lock was cut" in said(found)
    assert (scratch.root / "dvc.lock").read_text() == lock
    assert check("locks").state == OK


def test_a_merge_conflict_stops_one_check_and_not_the_others(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = (scratch.root / "dvc.lock").read_text()
    scratch.write("dvc.lock", f"<<<<<<< HEAD\n{lock}=======\n{lock}>>>>>>> branch\n")
    monkeypatch.setattr(doctor, "_CHECKS", (doctor._locks, doctor._disk, doctor._remote))
    states = {one.name: one.state for one in doctor.doctor(scratch.root)}
    assert states == {"locks": PROBLEM, "disk": PROBLEM, "remote": WARNING}


@pytest.mark.parametrize("secret", [TOKEN, LOGIN])
@pytest.mark.parametrize("merged", [True, False], ids=["on the branch", "on another branch"])
def test_a_secret_in_history_is_named_by_file_and_commit(
    scratch: Scratch, check: Callable[[str], Check], secret: str, merged: bool
) -> None:
    if not merged:
        scratch.git("switch", "--quiet", "--create", "other")
    scratch.write("notes/über uns.txt", f"url = {secret}\n")
    commit = scratch.commit("Notes")
    scratch.write("notes/über uns.txt", "url = from the environment\n")
    scratch.commit("Notes without it")
    scratch.git("switch", "--quiet", "main")
    found = check("secrets")
    assert found.state == PROBLEM
    assert f"notes/über uns.txt of commit {commit[:7]}" in said(found)
    assert "hunter2" not in said(found)
    assert TOKEN not in said(found)
    scratch.write(".secretsignore", "/notes/\n")
    assert check("secrets").state == OK


def test_a_partial_clone_says_what_was_not_searched_and_what_it_lacks(
    scratch: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch.write("notes.txt", f"url = {TOKEN}\n")
    scratch.commit("Notes")
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.write("notes.txt", "url = from the environment\n")
    scratch.commit("Notes without it")
    scratch.git("config", "uploadpack.allowFilter", "true")
    partial = Scratch(tmp_path / "partial")
    scratch.git("clone", "--quiet", "--filter=blob:none", f"file://{scratch.root}", str(partial.root))
    scratch.root.rename(tmp_path / "gone")
    monkeypatch.setattr(doctor, "_CHECKS", (doctor._secrets,))
    (found,) = doctor.doctor(partial.root)
    assert found.state == WARNING
    assert re.search(r"^[1-9]\d* objects are not in this partial clone, and were not searched", found.says[0])
    answer = partial.tunetrail("compare", "HEAD~1")
    assert answer.code == 2
    assert answer.err.endswith("is a partial clone whose remote does not give what it lacks; clone the whole\n")


@pytest.mark.parametrize("file", ["dvc.lock", "params.yaml", "dvc.yaml", "metrics/summary.json", "metrics/env/x.json"])
def test_a_secret_that_is_about_to_be_committed(scratch: Scratch, check: Callable[[str], Check], file: str) -> None:
    path = scratch.root / file
    scratch.write(file, f"{path.read_text() if path.is_file() else ''}\n# {TOKEN}\n")
    found = check("secrets")
    assert found.state == PROBLEM
    assert f"{file} holds a secret" in said(found)
    assert TOKEN not in said(found)


@pytest.mark.parametrize("key", ["password", "secret_access_key", "session_token", "account_key"])
def test_a_password_in_the_configuration_that_git_keeps(
    scratch: Scratch, check: Callable[[str], Check], key: str
) -> None:
    before = (scratch.root / ".dvc/config").read_text()
    scratch.write(".dvc/config.local", f"['remote \"store\"']\n    {key} = plain\n")
    assert check("secrets").state == OK
    scratch.write(".dvc/config", f"{before}['remote \"store\"']\n    {key} = plain\n")
    assert ".dvc/config holds a secret" in said(check("secrets"))
    commit = scratch.commit("Configuration")
    scratch.write(".dvc/config", before)
    found = said(check("secrets"))
    assert f".dvc/config of commit {commit[:7]}" in found
    assert "plain" not in found


def test_asking_for_a_password_is_no_secret(scratch: Scratch, check: Callable[[str], Check]) -> None:
    scratch.write(".dvc/config", "['remote \"store\"']\n    ask_password = true\n    user = ann\n")
    assert check("secrets").state == OK


@pytest.mark.parametrize("file", ["data/clean.jsonl", "models/adapter/adapter.safetensors"])
def test_git_tracks_what_dvc_keeps(scratch: Scratch, check: Callable[[str], Check], file: str) -> None:
    assert check("tracked").state == OK
    scratch.git("add", "--force", file)
    found = check("tracked")
    assert found.state == PROBLEM
    assert file in said(found)


def test_git_tracks_what_dvc_add_keeps(scratch: Scratch, check: Callable[[str], Check]) -> None:
    scratch.write("data/more/b.jsonl", "{}\n")
    scratch.dvc("add", "data/more")
    scratch.commit("More data")
    assert check("tracked").state == OK
    scratch.git("add", "--force", "data/more/b.jsonl")
    assert "data/more/b.jsonl" in said(check("tracked"))


def test_a_large_file_in_git(scratch: Scratch, check: Callable[[str], Check], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LARGE", 100)
    scratch.write("data/big.bin", "x" * 101)
    scratch.git("add", "data/big.bin")
    found = check("tracked")
    assert found.state == WARNING
    assert "data/big.bin" in said(found)
