"""What a person has configured for git and DVC changes no answer; line ends that git changed are named as the cause."""

import os
import re
from pathlib import Path

import pytest
from scratch import Scratch
from trails import MODEL, second_run, whole

from stages import doctor
from stages.core.errors import UserError
from stages.core.git import git_environment
from stages.ship.release.dvc_files import Listings

pytest_plugins = ["scratch_fixtures"]

TAG = "support-tickets@v1.0.0"
HOSTILE_GIT = """
[user]
    name = Ann
    email = ann@example.org
    signingKey = none
[alias]
    log = !false
    status = !false
    tag = !false
    rev-parse = !false
[color]
    ui = always
[column]
    ui = always
[core]
    pager = false
    editor = false
    quotePath = true
    fsmonitor = {folder}/hooks/reference-transaction
    hooksPath = {folder}/hooks
    attributesFile = {folder}/attributes
    excludesFile = {folder}/attributes
    abbrev = 4
    autocrlf = true
    commentChar = "{{"
    warnAmbiguousRefs = true
[log]
    showSignature = true
    date = relative
    decorate = full
    follow = true
    mailmap = true
[format]
    pretty = oneline
[i18n]
    logOutputEncoding = ISO-8859-1
    commitEncoding = ISO-8859-1
[diff]
    external = false
    noprefix = true
    ignoreSubmodules = all
    renames = copies
[status]
    short = true
    branch = true
    showUntrackedFiles = all
    showStash = true
    relativePaths = true
[tag]
    gpgSign = true
    forceSignAnnotated = true
    sort = -taggerdate
[commit]
    gpgSign = true
[gpg]
    program = false
[submodule]
    recurse = true
"""
HOSTILE_VARIABLES = {
    "GIT_DIR": "/nowhere",
    "GIT_WORK_TREE": "/nowhere",
    "GIT_INDEX_FILE": "/nowhere/index",
    "GIT_OBJECT_DIRECTORY": "/nowhere/objects",
    "GIT_NAMESPACE": "other",
    "GIT_TRACE": "1",
    "GIT_PAGER": "false",
    "GIT_EDITOR": "false",
    "GIT_EXTERNAL_DIFF": "false",
    "GIT_CEILING_DIRECTORIES": "/",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_ICASE_PATHSPECS": "1",
    "PAGER": "false",
    "LC_ALL": "de_DE.UTF-8",
    "LANGUAGE": "de:fr",
    "DVC_NO_ANALYTICS": "",
}
COMMANDS = [
    ["trace", MODEL],
    ["trace", "models/release", "--json"],
    ["trace", TAG],
    ["verify"],
    ["lock-check"],
    ["lock-check", "--deep"],
    ["gates"],
    ["doctor"],
    ["compare", "HEAD~1"],
    ["params"],
    ["release", "1.0.0"],
    ["release", "1.1.0"],
]


def answers(scratch: Scratch) -> list[tuple[int, str, str]]:
    said = [scratch.tunetrail(*command) for command in COMMANDS]
    varies = r"[0-9a-f]{7,}|/\S+/repository|[\d.]+ [kMGT]B"  # hashes; where the copy is; what is free on this machine
    return [(one.code, re.sub(varies, "", one.out), re.sub(varies, "", one.err)) for one in said]


def test_personal_configuration_changes_no_answer(
    scratch: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scratch.tunetrail("release", "1.0.0").code == 0
    second_run(scratch)
    scratch.git("commit", "--quiet", "--allow-empty", "--author", "Zoë Ünal <z@example.org>", "--message", "Größe")
    expected = answers(scratch.copy(tmp_path / "plain/repository"))
    assert [code for code, _, _ in expected].count(0) == len(COMMANDS) - 2
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("reference-transaction", "post-checkout", "pre-commit"):
        (hooks / name).write_text("#!/bin/sh\necho hook >&2\nexit 1\n")
        (hooks / name).chmod(0o755)
    (tmp_path / "attributes").write_text("* text eol=crlf\n")
    (tmp_path / "gitconfig").write_text(HOSTILE_GIT.format(folder=tmp_path))
    (tmp_path / "dvc").mkdir()
    (tmp_path / "dvc/config").write_text("[core]\n    autostage = true\n    check_update = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "dvc"))
    for name, value in HOSTILE_VARIABLES.items():
        monkeypatch.setenv(name, value)
    assert answers(scratch) == expected


@pytest.mark.parametrize("level", ["--global", "--system", "--project", "--local"])
def test_cache_and_remote_of_every_level_of_dvcs_configuration(
    scratch: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    for kind in ("GLOBAL", "SYSTEM"):
        monkeypatch.setenv(f"DVC_{kind}_CONFIG_DIR", str(tmp_path / kind))
    scratch.dvc("config", level, "cache.dir", str(tmp_path / "cache of mine"))
    scratch.dvc("remote", "add", level, "--default", "mine", str(tmp_path / "store"))
    listings = Listings(scratch.root)
    assert (listings.cache, listings.remote, listings.remote_folder) == (
        tmp_path / "cache of mine",
        "mine",
        tmp_path / "store",
    )
    scratch.forget_cache()
    scratch.dvc("commit", "--force")
    scratch.dvc("push")
    scratch.commit("Cache elsewhere") if level == "--project" else None
    assert whole(scratch)["file"]["trail"]["notes"] == []
    assert scratch.tunetrail("release", "1.0.0").code == 0


def test_a_replaced_commit_is_not_believed(scratch: Scratch) -> None:
    """`git replace` shows other content under the hash of a commit; the trail reads what the hash names."""
    first = scratch.git("rev-parse", "HEAD")
    scratch.replace("params.yaml", "1e-3", "7e-3")
    second = scratch.commit("Edit")
    scratch.git("checkout", "--quiet", first)
    scratch.git("replace", first, second)
    assert whole(scratch)["params"]["train"]["learning_rate"] == 0.001


def crlf(scratch: Scratch, *names: str) -> None:
    for name in names:
        file = scratch.root / name
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))


def test_line_ends_that_git_changed_are_named(scratch: Scratch, tmp_path: Path) -> None:
    scratch.git("clone", "--quiet", "--config", "core.autocrlf=true", str(scratch.root), str(tmp_path / "windows"))
    clone = Scratch(tmp_path / "windows")
    said = clone.tunetrail("lock-check").err
    assert "clean: data/raw differs by line ends alone; stages/clean differs by line ends alone" in said
    assert "* -text" in said
    clone.replace("stages/train/loop.py", "1", "2")
    said = clone.tunetrail("lock-check").err
    assert "stages/train modified" in said
    assert "constraints.txt differs by line ends alone" in said
    scratch.write(".gitattributes", "* -text\n")
    scratch.commit("Bytes are bytes")
    scratch.git("clone", "--quiet", "--config", "core.autocrlf=true", str(scratch.root), str(tmp_path / "healed"))
    assert Scratch(tmp_path / "healed").tunetrail("lock-check").code == 0


def test_a_lock_that_was_written_over_changed_line_ends(scratch: Scratch) -> None:
    names = ["stages/train/loop.py", "constraints.txt"]
    crlf(scratch, *names)
    scratch.dvc("repro")
    for name in names:
        file = scratch.root / name
        file.write_bytes(file.read_bytes().replace(b"\r\n", b"\n"))
    scratch.commit("As a clone with core.autocrlf commits it")
    assert (
        "train: constraints.txt differs by line ends alone; stages/train differs" in scratch.tunetrail("lock-check").err
    )
    assert "differs by line ends alone" in scratch.tunetrail("trace", MODEL).out


def test_the_repository_keeps_its_bytes() -> None:
    attributes = Path(__file__).parents[3] / ".gitattributes"
    assert "* -text" in attributes.read_text().splitlines()
    assert os.linesep.encode() == b"\n" or b"\r" not in attributes.read_bytes()


@pytest.mark.parametrize("how", ["damaged", "another's"])
def test_a_repository_that_git_cannot_read_is_not_taken_for_an_empty_one(
    scratch: Scratch, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch.git("tag", "v1")
    if how == "damaged":
        blob = scratch.git("rev-parse", "HEAD:dvc.lock")
        file = scratch.root / ".git/objects" / blob[:2] / blob[2:]
        file.chmod(0o644)
        file.write_bytes(b"")
    else:
        real = git_environment()
        monkeypatch.setattr("stages.core.git.git_environment", lambda: {**real, "GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"})
    expected = "is empty" if how == "damaged" else "dubious ownership"
    for command in (["trace", MODEL], ["trace", "v1"], ["verify"], ["compare", "v1"]):
        answer = scratch.tunetrail(*command)
        assert answer.code == 2, command
        assert expected in answer.err
        assert "not committed" not in answer.out
    with pytest.raises(UserError, match=expected):
        list(doctor._secrets(scratch.root))
