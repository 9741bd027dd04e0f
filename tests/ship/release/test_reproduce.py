"""reproduce: a release made again in a worktree; what is equal, what differs, and what a stranger can check of it."""

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from in_toto_attestation.v1.statement_pb2 import Statement
from key_files import write_keys
from scratch import Scratch

from stages.ship.release.verify import signed_differences

pytest_plugins = ["scratch_fixtures"]

TAG = "support-tickets@v1.0.0"
HERE = 'P(".").resolve().name == "repository"'  # in a stage: whether this is the first run, not the rebuild


def statement(scratch: Scratch) -> dict:  # type: ignore[type-arg]
    content: dict = json.loads((scratch.root / "attestations" / f"{TAG}.json").read_text())  # type: ignore[type-arg]
    ParseDict(content, Statement())  # raises for what is no statement of in-toto
    return content


def released(scratch: Scratch) -> Scratch:
    scratch.dvc("repro", "--force")
    scratch.git("add", "--all")
    scratch.git("commit", "--quiet", "--allow-empty", "--message", "Run")
    answer = scratch.tunetrail("release", "1.0.0")
    assert answer.code == 0, answer.err
    return scratch


def cached(scratch: Scratch) -> list[str]:
    return sorted(str(file) for file in (scratch.root / ".dvc/cache").rglob("*"))


def test_the_same_bytes_are_a_signed_attestation(scratch: Scratch, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "ann")
    released(scratch)
    before = cached(scratch)
    answer = scratch.tunetrail("reproduce", "1.0.0", "--key", str(private))
    assert answer.code == 0, answer.err
    assert answer.out.startswith(f"PASSED: {TAG} was made again, and all 14 outputs have the same bytes")
    assert cached(scratch) == before, "a rebuild leaves no trace in DVC's cache"
    assert len(scratch.git("worktree", "list").splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["repository"]
    said = statement(scratch)
    assert said["subject"][0] == {"name": TAG, "digest": {"gitCommit": scratch.git("rev-parse", "HEAD")}}
    assert said["predicate"]["result"] == "PASSED"
    assert "models/release/nf4" in said["predicate"]["passedTests"]
    assert said["predicate"]["rebuild"]["machine"]["python"]
    assert str(tmp_path) not in json.dumps(said)
    file = scratch.root / "attestations" / f"{TAG}.json"
    signature = file.with_suffix(".sig")
    assert signed_differences(file, public, signature) == []
    file.write_text(file.read_text().replace("PASSED", "passed"))
    assert signed_differences(file, public, signature) != []


def test_other_bytes_with_metrics_in_their_intervals_are_a_warning(scratch: Scratch) -> None:
    scratch.replace("stages/run.py", 'tokenizer.json", "{}")', f'tokenizer.json", str({HERE}))')
    answer = released(scratch).tunetrail("reproduce", TAG)
    assert answer.code == 0, answer.err
    assert "WARNED: of 14 outputs" in answer.out
    assert "models/base (tokenizer.json)" in answer.out
    assert "models/release/nf4 (tokenizer.json)" in answer.out
    assert "All 1 metrics lie within the intervals that they had" in answer.out
    predicate = statement(scratch)["predicate"]
    assert set(predicate["warnedTests"]) == {
        "models/base",
        "models/release/merged",
        "models/release/nf4",
        "models/release/manifest.json",
    }
    hashes = predicate["rebuild"]["outputs"]["models/base"]
    assert hashes["released"] != hashes["rebuilt"]
    assert hashes["files"] == ["tokenizer.json"]


def test_metrics_outside_their_intervals_fail(scratch: Scratch) -> None:
    scratch.replace(
        "stages/run.py",
        '"value": 0.97, "low": 0.9, "high": 0.98',
        f'"value": 0.97 if {HERE} else 0.5, "low": 0.9, "high": 0.98',
    )
    answer = released(scratch).tunetrail("reproduce", "1.0.0")
    assert answer.code == 1
    assert "FAILED: of 14 outputs" in answer.err
    assert "Metrics outside the interval that they had: adapter exact_match" in answer.err
    assert statement(scratch)["predicate"]["result"] == "FAILED"
    assert "metrics/details.json" in statement(scratch)["predicate"]["failedTests"]


def test_inputs_of_dvc_add_come_from_cache_or_remote_and_nowhere_else(scratch: Scratch, tmp_path: Path) -> None:
    scratch.dvc("remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    scratch.git("rm", "--quiet", "--cached", "-r", "data/raw")
    scratch.dvc("add", "data/raw")
    released_with = scratch.tunetrail("release", "1.0.0")
    assert released_with.code == 1
    scratch.dvc("repro")
    scratch.commit("Raw data by dvc add")
    scratch.dvc("push")
    released(scratch)
    assert scratch.tunetrail("reproduce", "1.0.0").code == 0
    scratch.forget_cache()
    assert scratch.tunetrail("reproduce", "1.0.0").code == 0
    scratch.forget_cache()
    shutil.rmtree(tmp_path / "store")
    answer = scratch.tunetrail("reproduce", "1.0.0")
    assert answer.code == 2
    assert "neither cache nor remote has all inputs of data/raw.dvc" in answer.err
    assert len(scratch.git("worktree", "list").splitlines()) == 1


def test_a_stage_that_fails_is_no_rebuild(scratch: Scratch) -> None:
    scratch.replace("stages/run.py", "name = sys.argv[1]", f"name = sys.argv[1]\nassert {HERE}")
    answer = released(scratch).tunetrail("reproduce", "1.0.0")
    assert answer.code == 2
    assert "the rebuild stopped" in answer.err
    assert not (scratch.root / "attestations").exists()
    assert len(scratch.git("worktree", "list").splitlines()) == 1


@pytest.mark.parametrize("name", ["1.0.0", "support-tickets@v9.9.9"])
def test_only_a_release_is_made_again(scratch_template: Scratch, name: str) -> None:
    answer = scratch_template.tunetrail("reproduce", name)
    assert answer.code == 2
    assert "is no release that `tunetrail release` tagged" in answer.err


def test_what_a_killed_rebuild_left_is_removed_and_one_that_runs_is_not(scratch: Scratch, tmp_path: Path) -> None:
    released(scratch)
    left, held = tmp_path / ".repository-rebuild-killed", tmp_path / ".repository-rebuild-at-work"
    scratch.git("worktree", "add", "--quiet", "--detach", str(left))
    held.mkdir()
    lock = os.open(held, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert scratch.tunetrail("reproduce", "1.0.0").code == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [held.name, "repository"]
    assert len(scratch.git("worktree", "list").splitlines()) == 1
    os.close(lock)
