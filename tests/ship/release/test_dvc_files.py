"""DVC's formats, against DVC: the folder hash and the YAML of dvc.lock."""

import json
from pathlib import Path

import pytest
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree
from hypothesis import given
from hypothesis import strategies as st
from scratch import Scratch

from stages.core.dvc_lock import cache_folder, entry_hash, folder_hash, parse_lock
from stages.core.git import CommitTree, Repository, WorkingTree
from stages.ship.release.dvc_files import Listings

pytest_plugins = ["scratch_fixtures"]

name = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
path = st.lists(name.filter(lambda part: part not in (".", "..")), min_size=1, max_size=3).map("/".join)
md5 = st.text("0123456789abcdef", min_size=32, max_size=32)


def dvc_hash(files: dict[str, str]) -> str:
    tree = Tree()  # type: ignore[no-untyped-call]
    for file, value in files.items():
        tree.add(tuple(file.split("/")), None, HashInfo("md5", value))
    tree.digest()
    return str(tree.hash_info.value)


@given(st.dictionaries(path, md5, min_size=1, max_size=12))
def test_folder_hash_is_that_of_dvc(files: dict[str, str]) -> None:
    assert folder_hash(files) == dvc_hash(files)


def test_trees_hash_as_dvc_does_and_skip_what_dvcignore_names(scratch: Scratch) -> None:
    """The same folder by DVC, from the working tree and from the commit."""
    for file, text in {"b/ü.txt": "1", "b.txt": "2", "b-c/x": "", "__pycache__/y": "4", "z.pyc": "5"}.items():
        scratch.write(f"stages/clean/{file}", text)
    scratch.dvc("repro", "clean")
    scratch.git("add", "--force", "--all", "stages")
    commit = scratch.commit("Files")
    lock = parse_lock((scratch.root / "dvc.lock").read_bytes())
    recorded = next(dep.md5 for dep in lock.stages["clean"].deps if dep.path == "stages/clean")
    assert scratch.git("ls-files", "stages/clean/z.pyc")
    for tree in WorkingTree(scratch.root), CommitTree(Repository(scratch.root), commit):
        assert entry_hash(tree.md5s("stages/clean")) == recorded
        assert entry_hash(tree.md5s("nothing")) is None


def test_listing_from_names_is_found_only_under_its_own_hash(tmp_path: Path) -> None:
    listings = Listings(tmp_path)
    files = {"a": "0" * 32, "b/c": "1" * 32}
    assert listings.get(folder_hash(files)) is None
    listings = Listings(tmp_path)
    listings.add_manifest({"files": {f"merged/{file}": {"md5": value} for file, value in files.items()}})
    assert listings.get(folder_hash(files)) == files
    assert listings.get("2" * 32 + ".dir") is None


def test_damaged_listing_in_the_cache_is_no_listing(tmp_path: Path) -> None:
    listings = Listings(tmp_path)
    known = folder_hash({"a": "0" * 32})
    file = listings.cached_file(known)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([{"md5": "9" * 32, "relpath": "a"}]))
    assert listings.get(known) is None


def test_cache_folder_of_the_configuration(scratch: Scratch, tmp_path: Path) -> None:
    assert Listings(scratch.root).cache.resolve() == scratch.root / ".dvc/cache"
    scratch.dvc("cache", "dir", "../shared")
    assert Listings(scratch.root).cache.resolve() == tmp_path / "shared"
    scratch.dvc("cache", "dir", "--local", str(tmp_path / "mine"))
    assert Listings(scratch.root).cache == tmp_path / "mine"


def test_a_project_below_the_folder_that_has_dvc(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[cache]\n    dir = ../shared\n[core]\n    remote = store\n")
    (tmp_path / "project").mkdir()
    assert cache_folder(tmp_path / "project") == tmp_path / "shared"
    assert Listings(tmp_path / "project").remote == "store"
    (tmp_path / "project/.dvc").mkdir()
    assert cache_folder(tmp_path / "project") == tmp_path / "project/.dvc/cache"


@pytest.mark.parametrize(
    "text",
    [
        "- 1",
        "stages: [a]",
        "stages: {train: }",
        "stages: {train: [1]}",
        "stages: {train: {outs: 3, deps: 3, params: 3}}",
        "stages: {train: {outs: [{a: 3}], deps: [3]}}",
        "artifacts: [1]",
        "artifacts: {model: manifest.json}",
        "{",
    ],
)
def test_a_commit_can_hold_any_dvc_yaml(scratch: Scratch, text: str) -> None:
    """One that DVC would refuse, in a tag of long ago, is no reason why a sound release cannot be verified."""
    sound = (scratch.root / "dvc.yaml").read_text()
    scratch.write("dvc.yaml", text)
    scratch.commit("Odd")
    scratch.git("tag", "odd")
    assert scratch.tunetrail("history").code == 2
    assert scratch.tunetrail("trace", "odd").code == 1
    scratch.write("dvc.yaml", sound)
    scratch.commit("Sound")
    assert scratch.tunetrail("verify").code == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("md5: 4f", "md5: [4f]\n      more: 4f"),
        ("size: 136", "size: large"),
        ("nfiles: 2", "nfiles: [2]"),
        ("params.yaml:\n", "params.yaml: 3\n      more:\n"),
    ],
)
def test_a_lock_that_dvc_never_writes_is_unreadable(scratch: Scratch, old: str, new: str) -> None:
    text = (scratch.root / "dvc.lock").read_text()
    assert old in text
    scratch.write("dvc.lock", text.replace(old, new, 1))
    for command in (["trace", "models/release"], ["verify"], ["release", "1.0.0"]):
        answer = scratch.tunetrail(*command)
        assert answer.code == 2
        assert "dvc.lock in the working tree is unreadable" in answer.err
