"""A team's week from end to end: two developers, a bare git server, a DVC remote, a conflict, a release, a rollback."""

from pathlib import Path

import pytest
from scratch import Scratch

pytest_plugins = ["scratch_fixtures"]
ATTRIBUTES = (Path(__file__).parents[1] / ".gitattributes").read_text()
ADAPTER = "models/adapter/adapter.safetensors"


def test_two_developers_change_data_and_rate_merge_release_and_go_back(scratch: Scratch, tmp_path: Path) -> None:
    ann = scratch
    ann.write(".gitattributes", ATTRIBUTES)
    ann.write(".gitignore", (ann.root / ".gitignore").read_text() + ".tunetrail/\n")
    ann.dvc("remote", "add", "--default", "store", str(tmp_path / "remote"))
    ann.commit("The remote")
    ann.git("init", "--quiet", "--bare", "--initial-branch=main", str(tmp_path / "server.git"))
    ann.git("remote", "add", "origin", str(tmp_path / "server.git"))
    ann.dvc("push")
    assert (said := ann.tunetrail("release", "1.0.0", "--stage", "prod")).code == 0, said.err
    ann.git("push", "--quiet", "--tags", "origin", "main")

    # Ben adds rows on a branch; what he opens for review says so before anything else.
    ann.git("clone", "--quiet", str(tmp_path / "server.git"), str(tmp_path / "ben"))
    ben = Scratch(tmp_path / "ben")
    ben.dvc("pull")
    ben.git("checkout", "--quiet", "-b", "more-rows")
    ben.write("data/raw/week.jsonl", '{"n": 7}\n{"n": 8}\n')
    ben.dvc("repro")
    ben.commit("Two more rows")
    ben.dvc("push")
    ben.git("push", "--quiet", "origin", "more-rows")
    comment = ben.tunetrail("compare", "origin/main").out
    assert comment.splitlines()[3] == "Data: 2 rows added, 0 removed, 0 changed, of 5."
    assert "dvc.lock is fresh" in comment
    assert ben.tunetrail("compare", "origin/main").out == comment

    # Meanwhile Ann has another rate on main, and both have retrained.
    ann.replace("params.yaml", "1e-3", "2e-3")
    ann.dvc("repro")
    ann.commit("Another rate")
    ann.dvc("push")
    ann.git("push", "--quiet", "origin", "main")
    ann.git("fetch", "--quiet")
    with pytest.raises(AssertionError):  # a conflict
        ann.git("merge", "origin/more-rows")
    said = ann.tunetrail("merge-lock")
    assert said.code == 0, said.err
    # Of Ben's run the data stages hold; with Ann's rate and his rows nobody has trained.
    assert "as in MERGE_HEAD: clean, split\n" in said.out
    assert ann.tunetrail("lock-check").code == 1
    ann.dvc("pull", "--allow-missing", "--force")
    ann.dvc("repro")
    ann.commit("Merge more-rows")
    assert ann.tunetrail("lock-check").code == 0
    assert len(ann.git("log", "-1", "--format=%p").split()) == 2

    # A rate at which nothing is learnt fails the gates, and what fails is not released.
    ann.replace("params.yaml", "2e-3", "9e-1")
    ann.dvc("repro")
    ann.commit("A rate that is too high")
    ann.dvc("push")
    ann.git("push", "--quiet", "origin", "main")
    worse = ann.tunetrail("release", "1.1.0", "--stage", "prod")
    assert worse.code == 1
    assert "FAIL" in worse.err
    ann.replace("params.yaml", "9e-1", "2e-3")
    ann.dvc("repro")
    ann.commit("The rate of before")

    # What is not pushed is not released; pushed, it is, and lives until the rollback.
    assert ann.tunetrail("release", "1.1.0", "--stage", "prod").code == 1
    ann.dvc("push")
    ann.git("push", "--quiet", "origin", "main")
    assert (said := ann.tunetrail("release", "1.1.0", "--stage", "prod")).code == 0, said.err
    ann.git("push", "--quiet", "--tags", "origin")
    newer = (ann.root / ADAPTER).read_bytes()
    said = ann.tunetrail("rollback", "1.0.0", "--stage", "prod")
    assert said.code == 0, said.err
    assert (ann.root / ADAPTER).read_bytes() != newer
    ann.git("push", "--quiet", "--tags", "origin")

    # Ben sees on his machine what was live when, and verifies what is live now.
    ben.git("fetch", "--quiet", "--tags", "--force")
    history = ben.tunetrail("history", "--stage", "prod").out
    assert history.count("1.0.0") >= 2
    assert "1.1.0" in history
    ben.git("checkout", "--quiet", "support-tickets@v1.0.0")
    ben.dvc("checkout", "--force")
    assert ben.tunetrail("verify").code == 0
    assert (ben.root / ADAPTER).read_bytes() == (ann.root / ADAPTER).read_bytes()
