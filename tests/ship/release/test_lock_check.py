"""lock-check and compare: stale stages by name, without cache, remote or outputs."""

import shutil
from pathlib import Path

import pytest
from scratch import Answer, Scratch

from stages.core import paths
from stages.core.dvc_lock import Entry, Lock, Stage
from stages.core.files import write_json
from stages.core.git import WorkingTree
from stages.ship.release import lock_check

pytest_plugins = ["scratch_fixtures"]


@pytest.fixture
def bare(scratch: Scratch) -> Scratch:
    """What a runner checks out: git's files alone."""
    for name in (".dvc/cache", ".dvc/tmp", "models", "data/split"):
        shutil.rmtree(scratch.root / name)
    (scratch.root / "data/clean.jsonl").unlink()
    return scratch


def stale(answer: Answer) -> list[str]:
    assert answer.code == 1
    return [line.strip() for line in answer.err.splitlines()[1:]]


def test_fresh_with_and_without_outputs(scratch: Scratch) -> None:
    assert scratch.tunetrail("lock-check").code == 0
    for name in ("models", ".dvc/cache"):
        shutil.rmtree(scratch.root / name)
    answer = scratch.tunetrail("lock-check")
    assert answer.code == 0, answer.err
    assert "7 stages" in answer.out


def test_every_changed_file_and_parameter_is_named(bare: Scratch) -> None:
    for name, old, new in [
        ("stages/train/loop.py", "1", "2"),
        ("data/raw/a.jsonl", "1", "2"),
        ("metrics/summary.json", "0.97", "0.98"),
        ("params.yaml", "seed: 1", "seed: 2"),
        ("dvc.yaml", "run.py manifest", "run.py manifest --fast"),
    ]:
        bare.replace(name, old, new)
    (bare.root / "constraints.txt").unlink()
    assert sorted(stale(bare.tunetrail("lock-check"))) == [
        "clean: data/raw modified",
        "evaluate: metrics/summary.json modified",
        "manifest: its command in dvc.yaml changed",
        "split: parameter seed modified",
        "train: constraints.txt deleted; stages/train modified",
    ]


def test_every_change_of_the_pipeline_is_named(bare: Scratch) -> None:
    """Also where all that a stage reads is absent, so that DVC has nothing to compare."""
    for old, new in [
        ("deps: [data/clean.jsonl]", "deps: [data/clean.jsonl, .gitignore]"),
        ("deps: [models/adapter, data", "deps: [models/base, models/adapter, data"),
        ("params: [train]", "params: [train, model.source]"),
        ("artifacts:", "  more:\n    cmd: echo\n    deps: [models/adapter, constraints.txt]\nartifacts:"),
    ]:
        bare.replace("dvc.yaml", old, new)
    assert sorted(stale(bare.tunetrail("lock-check"))) == [
        "evaluate: ran without models/base",
        "more: never ran",
        "split: .gitignore modified",
        "train: parameter model.source new",
    ]


def test_a_stage_that_the_pipeline_lost_is_named_until_its_entry_goes(scratch: Scratch) -> None:
    """DVC never drops an entry, and `dvc repro` would not help."""
    kept = (scratch.root / "dvc.lock").read_text()
    lost = "  old_name:\n    cmd: python old.py\n    outs:\n    - path: data/old\n      hash: md5\n      md5: "
    scratch.replace("dvc.lock", "stages:\n", f"stages:\n{lost}{'a' * 32}\n      size: 1\n")
    answer = scratch.tunetrail("lock-check")
    assert "old_name, which dvc.yaml no longer has; delete that there" in answer.err
    assert answer.code == 1
    scratch.write("dvc.lock", kept)
    assert scratch.tunetrail("lock-check").code == 0


def test_lock_of_two_runs_merged_by_hand(bare: Scratch) -> None:
    """Each stage is fresh for itself, but one read what the other did not write; DVC sees that in the files alone."""
    text = (bare.root / "dvc.lock").read_text()
    before, _, after = text.partition("  merge_quantize:")
    line = next(line for line in before.splitlines() if line.endswith(".dir") and "md5" in line)
    bare.write("dvc.lock", before.replace(line, "      md5: " + "3" * 32 + ".dir") + "  merge_quantize:" + after)
    assert any("but stage base wrote" in sentence for sentence in stale(bare.tunetrail("lock-check")))


def test_data_added_to_dvc_and_not_pulled(scratch: Scratch) -> None:
    scratch.git("rm", "-r", "--quiet", "--cached", "data/raw")
    scratch.dvc("add", "data/raw")
    scratch.commit("Track the data with DVC")
    shutil.rmtree(scratch.root / "data/raw")
    assert scratch.tunetrail("lock-check").code == 0
    text = (scratch.root / "data/raw.dvc").read_text()
    md5 = next(line for line in text.splitlines() if "md5: " in line and ".dir" in line).split()[-1]
    scratch.replace("data/raw.dvc", md5, "4" * 32 + ".dir")
    assert any("data/raw.dvc says" in s for s in stale(scratch.tunetrail("lock-check")))


def test_pipeline_that_dvc_cannot_read(bare: Scratch) -> None:
    bare.write("dvc.yaml", "stages: [")
    answer = bare.tunetrail("lock-check")
    assert answer.code == 2
    assert "dvc status failed" in answer.err


def test_compare_with_a_base_that_never_ran_and_without_a_verdict(bare: Scratch) -> None:
    bare.git("checkout", "--quiet", "--orphan", "empty")
    bare.git("rm", "-r", "--quiet", "--cached", ".")
    bare.git("commit", "--quiet", "--allow-empty", "--message", "Nothing")
    bare.git("checkout", "--quiet", "--force", "main")
    (bare.root / "metrics/gates.json").unlink()
    answer = bare.tunetrail("compare", "empty")
    assert answer.code == 0
    assert "No verdict: metrics/gates.json is missing" in answer.out
    assert "| `train.learning_rate` |" in answer.out


def test_compare_with_nothing_known(bare: Scratch) -> None:
    answer = bare.tunetrail("compare", "origin/none")
    assert answer.code == 2
    assert "git fetch" in answer.err


@pytest.mark.parametrize(("files", "bytes_"), [(1, 103), (2, 103), (1, 104)])
def test_files_that_clean_read_are_those_that_dvc_hashed(files: int, bytes_: int, tmp_path: Path) -> None:
    entry = Entry("data/raw", "0.dir", 103, 1)
    stage = Stage("clean", "run", (entry,), (), {"params.yaml": {"clean": {"raw": "data/raw"}}}, {})
    metrics = {"clean": {"files": {"read": files, "passed_over": 0, "bytes": bytes_}}}
    write_json(tmp_path / paths.DETAILS, metrics)
    found = list(lock_check._read_unhashed(WorkingTree(tmp_path), Lock({"clean": stage})))
    said = f"read {files} files of {bytes_} bytes in data/raw, but dvc.lock has hashes of 1 files of 103 bytes"
    assert found == ([] if (files, bytes_) == (1, 103) else [("clean", said)])


def test_a_frozen_stage_is_looked_at_though_dvc_does_not(scratch: Scratch) -> None:
    scratch.dvc("freeze", "train")
    assert scratch.tunetrail("lock-check").code == 0
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.write("stages/train/loop.py", "LOOP = 2\n")
    scratch.replace("dvc.yaml", "deps: [constraints.txt", "deps: [stages/run.py, constraints.txt")
    (said,) = stale(scratch.tunetrail("lock-check"))
    assert said.startswith("train: ")
    for part in ("train.learning_rate = 0.002", "stages/train", "ran without stages/run.py"):
        assert part in said


def test_a_turn_of_a_loop_that_dvc_yaml_no_longer_has_or_has_anew(scratch: Scratch) -> None:
    """DVC keeps its entry in dvc.lock, as that of a whole stage."""
    loop = "stages:\n  each:\n    foreach: [a, b]\n    do:\n      cmd: touch ${item}\n      outs:\n      - ${item}\n"
    scratch.replace("dvc.yaml", "stages:\n", loop)
    scratch.dvc("repro")
    assert "9 stages ran" in scratch.tunetrail("lock-check").out
    scratch.replace("dvc.yaml", "[a, b]", "[a]")
    refused = scratch.tunetrail("lock-check")
    assert (refused.code, "dvc.lock has each@b, which dvc.yaml no longer has" in refused.err) == (1, True)
    scratch.replace("dvc.yaml", "[a]", "[a, b, c]")
    refused = scratch.tunetrail("lock-check")
    assert (refused.code, "each@c: " in refused.err) == (1, True)


def test_what_to_do_about_a_lock_with_merge_marks(scratch: Scratch) -> None:
    scratch.write("dvc.lock", "<<<<<<< HEAD\n" + (scratch.root / "dvc.lock").read_text())
    refused = scratch.tunetrail("lock-check")
    assert (refused.code, "`tunetrail merge-lock`" in refused.err, "`git checkout COMMIT" in refused.err) == (
        2,
        True,
        True,
    )
