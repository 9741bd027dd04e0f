"""DVC experiments as docs/experiments.md has them, on a fresh clone: copies have the data, a failed gate loses none."""

import json
from pathlib import Path

import pytest
from project import run
from scratch import Scratch

from stages.core import paths
from stages.params.loader import load_params

pytest_plugins = ["scratch_fixtures"]


@pytest.fixture
def published(scratch: Scratch, tmp_path: Path) -> Scratch:
    """A developer's repository with a git server and a DVC remote that others reach; its gates fail."""
    scratch.replace("stages/run.py", 'else "PASS"', 'else "FAIL"')
    scratch.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    scratch.dvc("repro", "--force", "evaluate")
    scratch.git("init", "--quiet", "--bare", str(tmp_path / "server.git"))
    scratch.git("remote", "add", "origin", str(tmp_path / "server.git"))
    scratch.commit("The gates fail")
    scratch.git("push", "--quiet", "origin", "main")
    scratch.dvc("push")
    return scratch


def clone(published: Scratch, folder: Path) -> Scratch:
    published.git("clone", "--quiet", "--branch", "main", str(folder.parent / "server.git"), str(folder))
    return Scratch(folder)


def test_an_experiment_of_a_fresh_clone_reaches_the_others(published: Scratch, tmp_path: Path) -> None:
    ann, ben = clone(published, tmp_path / "ann"), clone(published, tmp_path / "ben")
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


def test_queued_experiments_of_a_fresh_clone_share_its_memory(pipeline: Path, tmp_path: Path) -> None:
    """The pipeline itself with the tiny model, whose gates fail; git ignores what it computed and remembered."""
    ann = tmp_path / "ann"
    run(tmp_path, "git", "clone", "--quiet", str(pipeline), str(ann))
    (tmp_path / "tiny-model").symlink_to(pipeline.parent / "tiny-model")
    run(ann, "dvc", "remote", "add", "--local", "--default", "store", str(pipeline / ".dvc/cache"))
    run(ann, "dvc", "pull")
    remembered = ann / paths.GENERATIONS_MEMORY
    queue = ["dvc", "exp", "run", "--queue", "--name"]
    run(ann, *queue, "longer", "-S", "generation.max_new_tokens=9", "evaluate")
    run(ann, *queue, "stricter", "-S", "gates.exact_match.minimum=0.99", "gates")
    run(ann, "dvc", "exp", "run", "--run-all")  # its worker ends when it has had nothing to do for ten seconds
    assert run(ann, "git", "status", "--porcelain").stdout == ""
    assert list(remembered.iterdir())
    (stricter,) = run(ann, "git", "for-each-ref", "--format=%(refname)", "refs/exps/**/stricter").stdout.split()
    assert json.loads(run(ann, "git", "show", f"{stricter}:{paths.GATES}").stdout)["verdict"] == "FAIL"
    run(ann, "dvc", "exp", "apply", "longer")
    assert (ann / paths.EVALUATE_METRICS).is_file()
    assert load_params("generation", path=ann / "params.yaml").generation.max_new_tokens == 9
