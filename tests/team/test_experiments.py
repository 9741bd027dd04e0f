"""DVC experiments as docs/experiments.md has them, on a fresh clone: copies have the data, a failed gate loses none."""

import json
from pathlib import Path

import pytest
from scratch import Scratch

pytest_plugins = ["scratch_fixtures"]


@pytest.fixture
def shared(scratch: Scratch, tmp_path: Path) -> Scratch:
    """A developer's repository with a git server and a DVC remote that others reach; its gates fail."""
    scratch.replace("stages/run.py", 'gates("PASS")', 'gates("FAIL")')
    scratch.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    scratch.dvc("repro", "--force", "evaluate")
    scratch.git("init", "--quiet", "--bare", str(tmp_path / "server.git"))
    scratch.git("remote", "add", "origin", str(tmp_path / "server.git"))
    scratch.commit("The gates fail")
    scratch.git("push", "--quiet", "origin", "main")
    scratch.dvc("push")
    return scratch


def clone(shared: Scratch, folder: Path) -> Scratch:
    shared.git("clone", "--quiet", "--branch", "main", str(folder.parent / "server.git"), str(folder))
    return Scratch(folder)


def test_an_experiment_of_a_fresh_clone_reaches_the_others(shared: Scratch, tmp_path: Path) -> None:
    ann, ben = clone(shared, tmp_path / "ann"), clone(shared, tmp_path / "ben")
    ann.dvc("pull")
    ann.dvc("exp", "run", "--temp", "--name", "slower", "--set-param", "train.learning_rate=1e-4")  # gates fail in it
    assert json.loads((ann.root / "metrics/gates.json").read_text())["verdict"] == "FAIL"
    assert "1e-3" in (ann.root / "params.yaml").read_text()  # it ran in a copy
    assert "slower" in ann.git("for-each-ref", "refs/exps")
    ann.dvc("exp", "push", "origin", "slower")
    ben.dvc("exp", "pull", "origin", "slower")
    ben.dvc("exp", "apply", "slower")
    assert "0.0001" in (ben.root / "params.yaml").read_text()
    assert ben.tunetrail("gates").code == 1
    assert (ben.root / "models/adapter/adapter.safetensors").is_file()
    assert ben.tunetrail("lock-check").code == 0
    ben.dvc("exp", "branch", "slower", "slower-training")
    assert "0.0001" in ben.git("show", "slower-training:params.yaml")
