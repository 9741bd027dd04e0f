"""gc --dry: random histories against an oracle that asks git for one file at a time, and DVC's own gc beside it."""

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.utils import dict_sha256
from dvc.utils.serialize import dumps_yaml
from scratch import Scratch

from stages.core.dvc_lock import md5, object_path
from stages.core.errors import Refusal, UserError
from stages.core.yaml_reader import load_yaml
from stages.ship.release.garbage import cached, needed

pytest_plugins = ["scratch_fixtures"]
PIPELINE = dumps_yaml({"stages": {
    "file": {"cmd": "run file", "deps": ["code"], "outs": ["out/file"]},
    "folder": {"cmd": "run folder", "deps": ["code"], "outs": ["out/folder", {"metrics/curves": {"cache": False}}]},
}})  # fmt: skip
KINDS = (
    "branch",
    "remote branch",
    "tag",
    "stage assignment",
    "experiment",
    "queued experiment",
    "failed experiment",
    "stash",
    "stash of untracked files",
    "stash of what was staged",
    "index",
    "working tree",
    "dvc add",
    "experiment in a copy",
    "run cache",
    "merge that goes on",
    "uncommitted in another working tree",
    "index of another working tree",
    "detached in another working tree",
    "working tree that was removed",
    "commit before the tip",
    "deleted branch",
    "dropped stash",
    "run cache of nothing",
)
REFS = {
    "branch": "refs/heads/n{}",
    "remote branch": "refs/remotes/origin/n{}",
    "tag": "refs/tags/model@v1.{}.0",
    "stage assignment": "refs/tags/model#prod#{}",
    "experiment": "refs/exps/ab/cdef/n{}",
    "queued experiment": "refs/exps/celery/stash",
    "failed experiment": "refs/exps/celery/failed",
}
NOTHING = KINDS[-5:]  # nothing needs what these leave behind


class History:
    """A git repository and a cache without DVC at work; `kinds` says for each object what alone made it."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.draw, self.made, self.kinds = root, random.Random(seed), 0, dict[str, str]()
        self.scratch = Scratch(root)
        root.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")
        self.write_lock("branch")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "first")
        for kind in plan(seed):
            self.add(kind)

    def git(self, *words: str, stdin: str = "") -> str:
        done = subprocess.run(["git", *words], cwd=self.root, input=stdin, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def object(self, text: str, kind: str, end: str = "") -> str:
        name = md5(text.encode()) + end
        file = object_path(self.root / ".dvc/cache", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        self.kinds[name] = kind
        return name

    def folder(self, kind: str) -> str:
        """A folder of a new file and, now and then, of one that something else has too."""
        new = self.object(f"in a folder {self.made}", kind)
        old = [name for name, had in self.kinds.items() if had not in NOTHING and not name.endswith(".dir")]
        rows = [{"md5": new, "relpath": "a"}]
        if self.draw.random() < 0.5:
            rows.append({"md5": self.draw.choice(old), "relpath": "b"})
        return self.object(json.dumps(rows), kind, ".dir")

    def lock(self, kind: str) -> str:
        self.made += 1
        code = {"path": "code", "hash": "md5", "md5": md5(f"code {self.made}".encode()) + ".dir"}
        unkept = {"path": "metrics/curves", "hash": "md5", "md5": md5(f"curves {self.made}".encode()) + ".dir"}
        file = {"path": "out/file", "hash": "md5", "md5": self.object(f"file {self.made}", kind), "size": 6}
        folder = {"path": "out/folder", "hash": "md5", "md5": self.folder(kind), "size": 9, "nfiles": 1}
        stages = {
            "file": {"cmd": "run file", "deps": [code], "params": {"params.yaml": {"n": self.made}}, "outs": [file]},
            "folder": {"cmd": "run folder", "deps": [code], "outs": [unkept, folder]},
        }
        return str(dumps_yaml({"schema": "2.0", "stages": stages}))

    def write_lock(self, kind: str, place: str = ".") -> str:
        text = self.lock(kind)
        self.scratch.write(f"{place}/dvc.yaml", PIPELINE)
        self.scratch.write(f"{place}/dvc.lock", text)
        return text

    def commit(self, kind: str, parent: str = "HEAD") -> str:
        files = {"dvc.yaml": PIPELINE, "dvc.lock": self.lock(kind)}
        rows = {name: self.git("hash-object", "-w", "--stdin", stdin=text) for name, text in files.items()}
        tree = self.git("mktree", stdin="".join(f"100644 blob {blob}\t{name}\n" for name, blob in rows.items()))
        return self.git("commit-tree", tree, "-p", parent, "-m", kind)

    def data(self, kind: str) -> None:
        self.made += 1
        out = {"md5": self.object(f"data {self.made}", kind), "hash": "md5", "path": "raw"}
        self.scratch.write(f"data/{self.made}.dvc", dumps_yaml({"outs": [out]}))

    def add(self, kind: str) -> None:
        before = (self.root / "dvc.lock").read_text()
        if kind in REFS:
            ref = REFS[kind].format(self.made)
            for _ in range(2 if "celery" in ref else 1):  # the log of the ref is the list
                self.git("update-ref", "--create-reflog", "-m", "dvc-exp:", ref, self.commit(kind))
        elif "stash" in kind:
            self.stash(kind, before)
        elif "run cache" in kind:
            self.run_cache(kind, before)
        elif "working tree " in f"{kind} " and kind != "working tree":
            self.another_tree(kind)
        elif kind == "index":
            self.write_lock(kind)
            self.git("add", "dvc.lock")
            self.scratch.write("dvc.lock", before)
        else:
            others: dict[str, Callable[[], object]] = {
                "commit before the tip": lambda: self.git("branch", "tip", self.commit("branch", self.commit(kind))),
                "deleted branch": lambda: self.commit(kind),
                "dvc add": lambda: self.data(kind),
                "experiment in a copy": lambda: self.write_lock(kind, ".dvc/tmp/exps/copy"),
                "working tree": lambda: self.write_lock(kind),
                "merge that goes on": lambda: self.scratch.write(".git/MERGE_HEAD", self.commit(kind) + "\n"),
            }
            others[kind]()

    def stash(self, kind: str, before: str) -> None:
        if "staged" in kind:
            self.write_lock(kind)
            self.git("add", "dvc.lock")
            self.scratch.write("dvc.lock", before)
            self.git("stash", "store", "--message", kind, self.git("stash", "create"))
            self.git("reset", "--quiet")
        elif "untracked" in kind:
            self.data(kind)
            self.git("stash", "push", "--quiet", "--include-untracked", "--", "data")
        else:
            self.write_lock(kind)
            self.git("stash", "push", "--quiet", "--", "dvc.lock")
        if kind == "dropped stash":
            self.git("stash", "drop", "--quiet")

    def another_tree(self, kind: str) -> None:
        tree = self.root.parent / f"{self.root.name} tree {self.made} ü"
        commit = self.commit(kind) if "detached" in kind else "main"
        self.git("worktree", "add", "--quiet", "--detach", str(tree), commit)
        if "detached" in kind:
            return
        other = Scratch(tree)
        before = (tree / "dvc.lock").read_text()
        other.write("dvc.lock", self.lock(kind))
        if "index" in kind:
            other.git("add", "dvc.lock")
            other.write("dvc.lock", before)
        if "removed" in kind:
            self.git("worktree", "remove", "--force", str(tree))

    def run_cache(self, kind: str, lock: str) -> None:
        """The same stage gave other bytes another time; or a stage of another command, which no dvc.lock has."""
        self.made += 1
        stage = load_yaml(lock)["stages"]["file"]
        stage["cmd"] += " otherwise" * (kind in NOTHING)
        stage["outs"] = [{**stage["outs"][0], "md5": self.object(f"other bytes {self.made}", kind)}]
        key = dict_sha256({**stage, "outs": ["out/file"]}, exclude=["size", "nfiles"])
        self.scratch.write(f".dvc/cache/runs/{key[:2]}/{key}/{self.made}", dumps_yaml(stage))


def plan(seed: int) -> list[str]:
    """Each kind once at most; stashes first, since they take what lies uncommitted with them."""
    return sorted(random.Random(seed).sample(KINDS, 7), key=lambda kind: "stash" not in kind)


def texts_that_count(history: History) -> list[tuple[str, str]]:
    git, root = history.git, history.root
    commits = {line.split()[0] for line in git("show-ref").splitlines()} | {git("rev-parse", "HEAD")}
    for ref in ("refs/stash", "refs/exps/celery/stash", "refs/exps/celery/failed"):
        if ref in git("show-ref"):
            for commit in git("log", "--walk-reflogs", "--format=%H", ref).split():
                commits |= {commit, *git("rev-parse", f"{commit}^@").split()}
    if (root / ".git/MERGE_HEAD").exists():
        commits.add((root / ".git/MERGE_HEAD").read_text().strip())
    paths = [(commit, path) for commit in commits for path in git("ls-tree", "-r", "--name-only", commit).splitlines()]
    paths += [("", path) for path in git("ls-files").splitlines()]
    trees = [root, *root.parent.glob(f"{root.name} tree *")]
    on_disk = [
        (str(file), file.read_text()) for end in ("lock", "dvc") for tree in trees for file in tree.rglob(f"?*.{end}")
    ]
    for tree in trees[1:]:
        for commit in (Scratch(tree).git("rev-parse", "HEAD"), ""):
            on_disk.append(("dvc.lock", Scratch(tree).git("show", f"{commit}:dvc.lock")))
    return [*((path, git("show", f"{commit}:{path}")) for commit, path in paths), *on_disk]


def oracle(history: History) -> set[str]:
    """What dvc.lock and .dvc files name as outputs, and all in their folders."""
    texts, root = texts_that_count(history), history.root
    named = {out["md5"] for path, text in texts if path.endswith(".dvc") for out in load_yaml(text)["outs"]}
    stages: list[Any] = []
    for _, text in [one for one in texts if one[0].endswith("dvc.lock")]:
        stages += load_yaml(text)["stages"].values()
    inputs = [{k: v for k, v in stage.items() if k != "outs"} for stage in stages]
    for file in (root / ".dvc/cache/runs").glob("*/*/*"):
        run = load_yaml(file.read_text())
        stages += [run] * ({k: v for k, v in run.items() if k != "outs"} in inputs)
    named |= {out["md5"] for stage in stages for out in stage["outs"] if out["path"] != "metrics/curves"}
    for name in [one for one in named if one.endswith(".dir")]:
        named |= {row["md5"] for row in json.loads(object_path(root / ".dvc/cache", name).read_text())}
    return named


@pytest.mark.parametrize("seed", range(20))
def test_what_could_go_is_what_nothing_needs(seed: int, tmp_path: Path, quiet_git: None) -> None:
    history = History(tmp_path / "repository", seed)
    objects = cached(history.root / ".dvc/cache").keys()
    assert objects == history.kinds.keys()
    gone = objects - needed(history.root, None).keys()
    assert gone == objects - oracle(history)
    assert gone == {name for name, kind in history.kinds.items() if kind in NOTHING}


def test_the_histories_have_all_kinds() -> None:
    assert {kind for seed in range(20) for kind in plan(seed)} == set(KINDS)


def test_a_working_tree_that_is_not_there_may_need_anything(tmp_path: Path, quiet_git: None) -> None:
    history = History(tmp_path / "repository", 1)
    history.git("worktree", "add", "--quiet", "--detach", str(tmp_path / "theirs"))
    (tmp_path / "theirs").rename(tmp_path / "moved")
    with pytest.raises(Refusal, match=r"theirs is not there, so any object may be needed; `git worktree repair`"):
        needed(history.root, None)
    history.git("worktree", "repair", str(tmp_path / "moved"))
    assert needed(history.root, None)


def test_working_trees_that_share_a_cache(scratch: Scratch, tmp_path: Path) -> None:
    """With real DVC: what another has made and not committed stays, and the `dvc gc` that removes it is not advised."""
    scratch.dvc("cache", "dir", str(tmp_path / "cache of all"))
    shutil.move(scratch.root / ".dvc/cache", tmp_path / "cache of all")
    scratch.commit("One cache")
    theirs = Scratch(tmp_path / "theirs")
    scratch.git("worktree", "add", "--quiet", "--detach", str(theirs.root))
    theirs.write("params.yaml", (theirs.root / "params.yaml").read_text().rpartition(" ")[0] + " 2e-3\n")
    theirs.dvc("repro")
    for tree, other in ((scratch, theirs), (theirs, scratch)):
        said = tree.tunetrail("gc", "--dry").out
        assert "DVC's cache: 0 of" in said
        assert ("Do not run `dvc gc" in said) == (tree is scratch)
        assert (f"of the working tree {other.root}" in said) == (tree is scratch)
    scratch.git("worktree", "remove", "--force", str(theirs.root))
    assert "DVC's cache: 7 of" in scratch.tunetrail("gc", "--dry").out


def test_it_agrees_with_dvc_and_names_what_dvc_would_lose(scratch: Scratch, tmp_path: Path) -> None:
    """With real runs, a remote, an experiment that waits, and the command that `dvc gc` then really runs."""
    scratch.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    scratch.commit("The remote")
    assert "\nDVC's cache: 0 of" in "\n" + scratch.tunetrail("gc", "--dry").out
    for rate in ("2e-3", "3e-3"):
        scratch.write("params.yaml", (scratch.root / "params.yaml").read_text().rpartition(" ")[0] + f" {rate}\n")
        scratch.dvc("repro")
        scratch.dvc("push")
    said = scratch.tunetrail("gc", "--dry", "--remote", "store").out
    command = "dvc gc --workspace --all-branches --all-tags --all-experiments --cloud --remote store"
    assert f"`{command}` removes 7 of these objects and no other." in said
    assert "remote store: 7 of 25 objects could go" in said
    stores = scratch.root / ".dvc/cache", tmp_path / "store"
    before = [cached(store).keys() for store in stores]
    scratch.dvc(*command.split()[1:], "--force")
    listed = {line.split()[-1] for line in said.splitlines() if line.startswith(" ")}
    assert [was - cached(store).keys() for was, store in zip(before, stores, strict=True)] == [listed, listed]

    # What a branch of another developer needs, `dvc gc` does not know.
    scratch.git("stash", "push", "--quiet")
    scratch.dvc("checkout", "--force")
    said = scratch.tunetrail("gc", "--dry").out
    assert "DVC's cache: 0 of" in said
    scratch.git("stash", "drop", "--quiet")
    said = scratch.tunetrail("gc", "--dry").out
    assert "DVC's cache: 7 of" in said


def test_a_command_that_would_remove_what_is_needed_is_named_with_that(scratch: Scratch) -> None:
    def add(name: str) -> None:
        file = object_path(scratch.root / ".dvc/cache", md5(name.encode()))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
        scratch.write(f"{name}.dvc", dumps_yaml({"outs": [{"md5": md5(name.encode()), "hash": "md5", "path": name}]}))

    add("nowhere")
    (scratch.root / "nowhere.dvc").unlink()
    add("theirs")
    scratch.git("update-ref", "refs/remotes/origin/theirs", scratch.commit("Theirs"))
    scratch.git("reset", "--quiet", "--hard", "HEAD~1")
    said = scratch.tunetrail("gc", "--dry").out
    tips = "`dvc gc --workspace --all-branches --all-tags --all-experiments`"
    assert f"Do not run {tips}: it removes theirs of refs/remotes/origin/theirs." in said
    assert "`dvc gc --workspace --all-commits --all-experiments` removes 1 of these objects and no other." in said
    add("put-aside")
    scratch.git("stash", "push", "--quiet", "--include-untracked")
    said = scratch.tunetrail("gc", "--dry").out
    assert said.count("Do not run") == 2
    assert "1 of" in said
    assert md5(b"nowhere") in said


def test_what_cannot_be_known_is_no_proposal(tmp_path: Path, quiet_git: None) -> None:
    history = History(tmp_path / "repository", 1)
    lock = (history.root / "dvc.lock").read_text()
    history.scratch.write("dvc.lock", f"<<<<<<< ours\n{lock}")
    with pytest.raises(UserError, match=r"dvc.lock of the working tree is unreadable"):
        needed(history.root, None)
    history.scratch.write("dvc.lock", lock)
    listing = load_yaml(lock)["stages"]["folder"]["outs"][1]["md5"]
    object_path(history.root / ".dvc/cache", listing).unlink()
    with pytest.raises(Refusal, match=r"says which files are in out/folder of .*any object may be needed"):
        needed(history.root, None)


def test_a_listing_that_only_the_remote_has_is_read_there(scratch: Scratch, tmp_path: Path) -> None:
    scratch.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    scratch.dvc("push")
    for file in (scratch.root / ".dvc/cache/files").rglob("*.dir"):
        file.unlink()
    assert "DVC's cache: 0 of" in scratch.tunetrail("gc", "--dry").out
    said = scratch.tunetrail("gc", "--dry", "--remote", "elsewhere")
    assert said.code == 2
    assert "elsewhere" in said.err


@pytest.mark.parametrize("what", ["rebase", "merge"])
def test_what_git_put_aside_for_the_end_of_a_merge_is_needed(scratch: Scratch, what: str) -> None:
    """A run that nobody committed, under `git pull --rebase --autostash` that ended in a conflict elsewhere."""
    scratch.git("checkout", "--quiet", "-b", "topic")
    scratch.write("notes", "mine")
    scratch.commit("Mine")
    scratch.git("checkout", "--quiet", "-b", "theirs", "main")
    scratch.write("notes", "theirs")
    scratch.commit("Theirs")
    scratch.git("checkout", "--quiet", "topic")
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.dvc("repro")
    with pytest.raises(AssertionError):
        scratch.git(what, "--autostash", "theirs")
    assert "2e-3" not in (scratch.root / "params.yaml").read_text()
    said = scratch.tunetrail("gc", "--dry").out
    assert "DVC's cache: 0 of" in said
    assert "Do not run `dvc gc" in said
