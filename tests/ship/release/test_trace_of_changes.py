"""What was changed, by hand or before a run, breaks the trail by name."""

import shutil
from pathlib import Path

import pytest
from scratch import Scratch
from trails import MODEL, broken, head, whole

pytest_plugins = ["scratch_fixtures"]


def test_code_changed_after_the_run_and_committed_with_it(scratch: Scratch) -> None:
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.dvc("repro")
    scratch.replace("stages/train/loop.py", "1", "2")
    commit = scratch.commit("Run B, with an edit after the run")
    said = broken(scratch)
    assert f"stages/train/loop.py in commit {commit[:10]} is not what stage train ran with" in said


def test_code_changed_and_committed_without_a_run(scratch: Scratch, tmp_path: Path) -> None:
    made = head(scratch)
    shutil.copy(scratch.root / MODEL, tmp_path / "served")
    scratch.replace("stages/train/loop.py", "1", "2")
    later = scratch.commit("Edit without a run")
    said = broken(scratch)
    assert f"stages/train/loop.py in commit {later[:10]}" in said
    assert f"commit {made[:10]} still holds all that made it" in said
    assert whole(scratch, "models/base")["commit"]["sha"] == made  # base does not run that code
    served = whole(scratch, str(tmp_path / "served"))
    assert served["commit"]["sha"] == made
    assert "stages/train/loop.py" in served["file"]["trail"]["notes"][0]


def test_parameter_changed_and_committed_without_a_run(scratch: Scratch) -> None:
    scratch.replace("params.yaml", "1e-3", "5e-4")
    scratch.commit("Edit")
    assert "says train.learning_rate = 0.0005, stage train ran with 0.001" in broken(scratch)


def test_raw_data_changed_and_committed_without_a_run(scratch: Scratch) -> None:
    scratch.write("data/raw/b.jsonl", "{}\n")
    scratch.commit("More data")
    assert "data/raw/b.jsonl in commit" in broken(scratch)


def test_raw_data_never_committed(scratch: Scratch) -> None:
    scratch.git("rm", "-r", "--quiet", "--cached", "data/raw")
    scratch.write(".gitignore", "/models\n/data\n")
    scratch.git("commit", "--quiet", "--amend", "--all", "--message", "Forgot the data")
    scratch.git("reflog", "expire", "--expire=now", "--all")
    assert "data/raw, which stage clean read, is not in commit" in broken(scratch)


def test_metrics_edited(scratch: Scratch) -> None:
    scratch.replace("metrics/summary.json", "0.97", "0.99")
    scratch.commit("Better")
    assert "metrics/summary.json in commit" in broken(scratch)


def test_command_changed_and_dependency_added(scratch: Scratch) -> None:
    scratch.replace("dvc.yaml", "python -ES stages/run.py train", "python stages/run.py train")
    scratch.replace("dvc.yaml", "deps: [data/raw, stages/clean]", "deps: [data/raw, stages/clean, params.yaml]")
    scratch.commit("Edit")
    said = broken(scratch)
    assert "runs stage train as `python stages/run.py train`; it ran as `python -ES stages/run.py train`" in said
    assert "lets stage clean read params.yaml; it ran without" in said


@pytest.mark.parametrize("committed", [True, False])
def test_lock_edited(scratch: Scratch, committed: bool) -> None:
    """A hash of one dependency replaced by hand: the chain no longer closes."""
    adapter = whole(scratch, "models/adapter")["stage"]["output"]["md5"]
    text = (scratch.root / "dvc.lock").read_text()
    before, _, after = text.partition("merge_quantize:")
    scratch.write("dvc.lock", before + "merge_quantize:" + after.replace(adapter, "1" * 32 + ".dir", 1))
    if committed:
        scratch.commit("Edit the lock")
    said = broken(scratch)
    assert "stage merge_quantize read models/adapter as 1111111111, but stage train wrote" in said


def test_lock_edited_at_the_output(scratch: Scratch) -> None:
    folder = whole(scratch)["stage"]["output"]["md5"]
    scratch.replace("dvc.lock", folder, "2" * 32 + ".dir")
    assert "models/release/nf4 is not what dvc.lock in the working tree says" in broken(scratch)


def test_lock_that_is_no_yaml(scratch: Scratch) -> None:
    scratch.write("dvc.lock", "<<<<<<< HEAD\n\t{")
    answer = scratch.tunetrail("trace", MODEL)
    assert answer.code == 2
    assert "dvc.lock in the working tree is unreadable" in answer.err


def test_forgotten_file_that_comes_with_the_next_commit(scratch: Scratch) -> None:
    """dvc.lock is committed first and the code that it names later: the later commit is the one to check out."""
    scratch.replace("stages/train/loop.py", "1", "2")
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.dvc("repro")
    scratch.git("add", "dvc.lock", "metrics", "params.yaml")
    scratch.git("commit", "--quiet", "--message", "Run B without its code")
    first = head(scratch)
    assert "stages/train/loop.py" in broken(scratch)
    second = scratch.commit("The code of run B")
    trail = whole(scratch)
    assert trail["commit"]["sha"] == second
    assert f"commit {first[:10]} recorded the hash first" in trail["file"]["trail"]["notes"][0]


def test_data_added_to_dvc_is_followed_to_its_dvc_file(scratch: Scratch) -> None:
    scratch.git("rm", "-r", "--quiet", "--cached", "data/raw")
    scratch.dvc("add", "data/raw")
    scratch.commit("Track the data with DVC")
    (scratch.root / ".dvc/tmp/rwlock").unlink(missing_ok=True)
    whole(scratch)
    scratch.write("data/raw/b.jsonl", "{}\n")
    scratch.dvc("add", "data/raw")
    scratch.commit("More data")
    assert "but data/raw.dvc says" in broken(scratch)


def test_data_outside_the_repository_is_said_to_be_there(scratch: Scratch, tmp_path: Path) -> None:
    shutil.copytree(scratch.root / "data/raw", tmp_path / "raw")
    (tmp_path / "raw/b.jsonl").write_text("{}\n")
    scratch.replace("dvc.yaml", "deps: [data/raw,", f"deps: [{tmp_path / 'raw'},")
    scratch.replace("stages/run.py", 'P("data/raw")', f'P("{tmp_path}/raw")')
    scratch.dvc("repro")
    scratch.commit("Data elsewhere")
    notes = whole(scratch, "data/clean.jsonl")["file"]["trail"]["notes"]
    assert any("raw lies outside the repository" in note for note in notes)
