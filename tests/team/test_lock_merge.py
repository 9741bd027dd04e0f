"""merge-lock on real git conflicts: runs of the real DVC, and many small written histories against a slow oracle."""

import contextlib
import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scratch import Scratch

from stages.core.dvc_lock import folder_hash, md5, object_path, parse_lock
from stages.core.errors import Refusal
from stages.core.yaml_reader import load_yaml
from stages.team.lock_merge import merge_lock

pytest_plugins = ["scratch_fixtures"]
ATTRIBUTES = (Path(__file__).parents[2] / ".gitattributes").read_text()


def merge(repository: Scratch, branch: str) -> None:
    """`git merge`, which is to end in a conflict."""
    with pytest.raises(AssertionError):
        repository.git("merge", "--quiet", branch)


def set_rate(scratch: Scratch, value: str) -> None:
    lines = scratch.root.joinpath("params.yaml").read_text().splitlines()
    scratch.write("params.yaml", "\n".join([*lines[:-1], f"  learning_rate: {value}"]) + "\n")


@pytest.fixture(scope="module")
def both_ran(scratch_template: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Scratch:
    """main and `other` have learning rates of their own, `other` more data too; both ran, and are being merged."""
    scratch = scratch_template.copy(tmp_path_factory.mktemp("diverged") / "repository")
    scratch.replace("stages/run.py", '"n": 48', '"n": 48, "rate": rate')  # metrics that tell the sides apart
    scratch.write(".gitattributes", ATTRIBUTES)
    scratch.commit("Attributes")
    for branch, rate in (("other", "5e-3"), ("main", "2e-3")):
        scratch.git("checkout", "--quiet", *(["-b"] if branch == "other" else []), branch)
        scratch.dvc("checkout")
        set_rate(scratch, rate)
        if branch == "other":
            scratch.write("data/raw/b.jsonl", '{"n": 4}\n')
        scratch.dvc("repro")
        scratch.commit(f"Run of {branch}")
    merge(scratch, "other")
    return scratch


@pytest.fixture
def merging(both_ran: Scratch, tmp_path: Path) -> Scratch:
    return both_ran.copy(tmp_path / "repository")


def test_the_side_whose_inputs_are_in_the_tree_is_taken_with_its_metrics(merging: Scratch) -> None:
    refused = merging.tunetrail("merge-lock")
    assert (refused.code, "params.yaml is in conflict" in refused.err) == (1, True)
    merging.git("checkout", "--theirs", "params.yaml")
    merging.git("add", "params.yaml")
    said = merging.tunetrail("merge-lock")
    assert said.code == 0, said.err
    assert "7 of 7 stages" in said.out
    assert "as in HEAD: base\n" in said.out
    assert "as in MERGE_HEAD: clean, split, train, evaluate, merge_quantize, manifest\n" in said.out
    merging.dvc("checkout", "--force")
    merging.git("commit", "--quiet", "--message", "Merged")
    assert merging.tunetrail("lock-check", "--deep").code == 0
    assert merging.git("diff", "other", "--", "metrics") == ""


def test_a_stage_that_neither_side_ran_must_run_and_its_metrics_hold_up_the_commit(merging: Scratch) -> None:
    merging.git("checkout", "--ours", "params.yaml")
    merging.git("add", "params.yaml")
    said = merging.tunetrail("merge-lock").out
    assert "3 of 7 stages" in said
    assert "as in MERGE_HEAD: clean, split\n" in said
    assert (
        "must run: train (HEAD ran it with another data/split/train.jsonl; MERGE_HEAD ran it with another tra" in said
    )
    assert "must run: evaluate (reads what train will write)" in said
    assert set(parse_lock((merging.root / "dvc.lock").read_bytes()).stages) == {"base", "clean", "split"}
    assert json.loads((merging.root / "metrics/details.json").read_text())  # of HEAD, without git's marks
    with pytest.raises(AssertionError, match="unmerged"):
        merging.git("commit", "--quiet", "--message", "Too early")
    merging.dvc("checkout", "--force", "--allow-missing")
    merging.dvc("repro")
    merged = merging.commit("Merged and run")
    assert merging.tunetrail("lock-check", "--deep").code == 0
    assert len(merging.git("rev-list", "--parents", "-1", merged).split()) == 3


def test_without_a_merge_it_asks_for_revisions_and_takes_them(scratch: Scratch) -> None:
    said = scratch.tunetrail("merge-lock")
    assert (said.code, "nothing is being merged" in said.err) == (2, True)
    assert "git knows no revision nowhere" in scratch.tunetrail("merge-lock", "nowhere").err
    before = (scratch.root / "dvc.lock").read_text()
    scratch.write("dvc.lock", "schema: '2.0'\nstages: {}\n")
    assert "7 of 7 stages" in scratch.tunetrail("merge-lock", "HEAD").out
    assert load_yaml((scratch.root / "dvc.lock").read_text()) == load_yaml(before)


def test_the_lock_is_written_as_dvc_writes_it() -> None:
    """So that a merge shows in the diff what it changed and nothing else."""
    text = (Path(__file__).parents[2] / "dvc.lock").read_text()
    raw = {name: stage.raw for name, stage in parse_lock(text.encode()).stages.items()}
    assert dumps_yaml({"schema": "2.0", "stages": raw}) == text


# Small histories. A source is a file with one of few contents, so that branches meet again; a run is a function.

SOURCES = ("x", "y", "z")
GRAPH: dict[str, dict[str, Any]] = {
    "a": {"deps": ["x"], "params": ["p"], "outs": ["out/a"]},
    "b": {"deps": ["y", "out/a/1"], "outs": ["out/b"]},
    "c": {"deps": ["out/a", "out/b"], "params": ["q"], "outs": [], "metrics": [{"metrics/c": {"cache": False}}]},
    "d": {"deps": ["metrics/c", "z"], "outs": ["out/d"]},
}
FOLDERS: dict[str, dict[str, str]] = {}  # what was in a folder, by its hash


class History:
    """A git repository whose stages only claim to run."""

    def __init__(self, scratch: Scratch) -> None:
        self.scratch, self.lock = scratch, dict[str, Any]()
        self.commands = dict.fromkeys(GRAPH, "run")

    def define(self) -> None:
        stages = {name: {"cmd": self.commands[name], **entry} for name, entry in GRAPH.items()}
        self.scratch.write("dvc.yaml", json.dumps({"stages": stages}))

    def run(self, stages: list[str], salt: str) -> None:
        """Like `dvc repro` of these stages; with another salt the same inputs give other outputs."""
        for name in (name for name in GRAPH if name in stages):
            deps = [{"path": dep, "md5": current(self.scratch.root, self.lock, dep)} for dep in GRAPH[name]["deps"]]
            if any(dep["md5"] is None for dep in deps):
                continue
            params = load_yaml((self.scratch.root / "params.yaml").read_text())
            used = {key: params[key] for key in GRAPH[name].get("params", [])}
            made_of = json.dumps([self.commands[name], deps, used, salt])
            outs = [self.make(out, made_of) for out in (*GRAPH[name]["outs"], *GRAPH[name].get("metrics", []))]
            self.lock[name] = {"cmd": self.commands[name], "deps": deps, "outs": outs}
            self.lock[name] |= {"params": {"params.yaml": used}} if used else {}
        self.scratch.write("dvc.lock", dumps_yaml({"schema": "2.0", "stages": self.lock}))

    def make(self, out: Any, made_of: str) -> dict[str, Any]:
        if isinstance(out, dict):
            self.scratch.write("metrics/c", made_of)
            return {"path": "metrics/c", "md5": md5(made_of.encode())}
        if out != "out/a":
            return {"path": out, "md5": md5((out + made_of).encode())}
        # The second file changes less often than the folder.
        files = {"1": md5(made_of[:60].encode()), "2": md5(made_of.encode())}
        FOLDERS[folder_hash(files)] = files
        listing = object_path(self.scratch.root / ".dvc/cache", folder_hash(files))
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text(json.dumps([{"md5": files[name], "relpath": name} for name in sorted(files)]))
        return {"path": out, "md5": folder_hash(files)}


def current(root: Path, lock: dict[str, Any], dep: str) -> str | None:
    """The slow oracle: the hash of what a stage would read in this tree, if `lock` says what its makers wrote."""
    if "/" not in dep:
        return hashlib.md5((root / dep).read_bytes()).hexdigest()
    outs = {out["path"]: out["md5"] for entry in lock.values() for out in entry["outs"]}
    if dep == "out/a/1":
        return FOLDERS[outs["out/a"]]["1"] if "out/a" in outs else None
    return outs.get(dep)


def holds(root: Path, lock: dict[str, Any], name: str, entry: dict[str, Any]) -> bool:
    """Whether an entry's recorded inputs are those of the tree."""
    definition = load_yaml((root / "dvc.yaml").read_text())["stages"][name]
    params = load_yaml((root / "params.yaml").read_text())
    return (
        entry["cmd"] == definition["cmd"]
        and entry.get("params", {}).get("params.yaml", {}) == {key: params[key] for key in definition.get("params", [])}
        and all(dep["md5"] == current(root, lock, dep["path"]) for dep in entry["deps"])
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, quiet_git: None) -> History:
    scratch = Scratch(tmp_path_factory.mktemp("histories") / "start")
    history = History(scratch)
    for source in SOURCES:
        scratch.write(source, "0")
    scratch.write("params.yaml", "p: 0\n\n\n\nq: 0\n")
    scratch.write(".gitattributes", ATTRIBUTES)
    scratch.write(".gitignore", ".dvc/\n")
    history.define()
    history.run(list(GRAPH), "")
    scratch.git("init", "--quiet", "--initial-branch=main")
    scratch.commit("Start")
    return history


def written(scratch: Scratch, branches: Any, lock: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Commit the changes and runs of the branches `other` and `main`; return their locks."""
    locks = []
    for name, (changes, stages, salt) in zip(("other", "main"), branches, strict=True):
        scratch.git("checkout", "--quiet", *(["-b"] if name == "other" else []), name)
        history = History(scratch)
        history.lock = dict(lock)
        for source, value in changes.items():
            if source in SOURCES:
                scratch.write(source, str(value))
            elif source == "cmd":
                history.commands[random.Random(seed).choice(list(GRAPH))] = f"run {value}"
                history.define()
            else:
                scratch.replace("params.yaml", f"{source}: 0", f"{source}: {value}")
        history.run(sorted(stages), salt)
        scratch.git("add", "--all")
        scratch.git("commit", "--quiet", "--allow-empty", "--message", name)
        locks.append(history.lock)
    return locks


CHANGES = st.fixed_dictionaries({}, optional={name: st.integers(0, 2) for name in (*SOURCES, "p", "q", "cmd")})
BRANCH = st.tuples(CHANGES, st.sets(st.sampled_from(sorted(GRAPH))), st.sampled_from(["", "salt"]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(branches=st.tuples(BRANCH, BRANCH), ours=st.booleans(), seed=st.integers(0, 9))
def test_the_merged_lock_never_claims_what_was_made_of_something_else(
    branches: Any, ours: bool, seed: int, start: History, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("history") / "repository"
    scratch = start.scratch.copy(root)
    locks = [start.lock, *written(scratch, branches, start.lock, seed)]
    with contextlib.suppress(AssertionError):
        scratch.git("merge", "--quiet", "--no-commit", "other")
    if not (root / ".git/MERGE_HEAD").exists():  # one side has nothing new
        shutil.rmtree(root)
        return
    for path in scratch.git("diff", "--name-only", "--diff-filter=U").splitlines():
        if path in (*SOURCES, "dvc.yaml", "params.yaml"):
            scratch.git("checkout", "--ours" if ours else "--theirs", path)
            scratch.git("add", path)
    with contextlib.chdir(root):
        merge_lock(root)
    merged = load_yaml((root / "dvc.lock").read_text())["stages"]
    for name in GRAPH:
        if name in merged:
            assert merged[name] in [lock.get(name) for lock in locks]
            assert holds(root, merged, name, merged[name]), name
            if name == "c":
                assert md5((root / "metrics/c").read_bytes()) == merged[name]["outs"][0]["md5"]
        else:
            assert not any(holds(root, merged, name, lock[name]) for lock in locks if name in lock), name
    assert scratch.git("diff", "--name-only", "--diff-filter=U") in ("" if "c" in merged else "metrics/c", "")
    shutil.rmtree(root)


def test_a_file_that_decides_whose_run_counts_must_be_resolved_first(start: History, tmp_path: Path) -> None:
    scratch = start.scratch.copy(tmp_path / "repository")
    for branch in ("other", "main"):
        scratch.git("checkout", "--quiet", *(["-b"] if branch == "other" else []), branch)
        scratch.write("x", branch)
        scratch.commit(branch)
    merge(scratch, "other")
    with contextlib.chdir(scratch.root), pytest.raises(Refusal, match="x: in conflict; what a stage reads decides"):
        merge_lock(scratch.root)


@pytest.mark.parametrize("text", ["stages: [a]", "stages: {train: }", "stages: {train: {cmd: a, outs: 3}}"])
def test_a_pipeline_that_is_none_is_a_sentence(scratch: Scratch, text: str) -> None:
    scratch.write("dvc.yaml", text)
    answer = scratch.tunetrail("merge-lock", "HEAD")
    assert answer.code == 2
    assert answer.err.startswith("error: dvc.yaml: ")
