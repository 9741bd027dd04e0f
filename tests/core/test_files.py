"""Files appear whole or not at all; digests say what is in them."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.core.files import (
    atomic,
    clear_partials,
    file_digest,
    files_under,
    read_json,
    tree_digest,
    write_json,
    write_text,
)

ROOT = Path(__file__).parents[2]
KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from stages.core.files import atomic
with atomic(Path(sys.argv[1])) as partial:
    with partial.open("w") as handle:
        handle.write("half")
        handle.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    write_text(path, "old")
    with contextlib.suppress(InterruptedError), atomic(path) as partial:
        partial.write_text("half")
        raise InterruptedError
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["models/release/README.md", "data/clean.jsonl", "elsewhere/out/a.txt"])
def test_a_killed_process_leaves_the_old_file_and_the_next_writer_clears_up(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the old file is in the folder of the output, which a release must be found whole in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "dvc.yaml").touch()
    place = tmp_path
    if name.startswith("elsewhere"):  # another disk, which no file can be renamed to
        place = Path(tempfile.mkdtemp(dir="/dev/shm")) if Path("/dev/shm").is_dir() else tmp_path
        if place.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("no second file system at hand")
        (tmp_path / "elsewhere").symlink_to(place)
    path = Path(name)
    write_text(path, "old")
    try:
        killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, path], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert path.read_text() == "old"
        assert list(path.parent.iterdir()) == [path]
        assert [half.read_text() for half in place.rglob(f"*.partial/{path.name}")] == ["half"]
        write_text(path.with_name("next"), "new")
        assert list(place.rglob("*.partial")) == []
    finally:
        if place != tmp_path:
            shutil.rmtree(place)


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    with atomic(tmp_path / "out.txt") as partial:
        partial.write_text("one")
        write_text(tmp_path / "other.txt", "other")
        clear_partials(tmp_path)
    assert (tmp_path / "out.txt").read_text() == "one"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other.txt", "out.txt"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_of_many_writers_of_one_path_each_succeeds_and_one_stands_whole(tmp_path: Path, kind: str) -> None:
    def write(number: int) -> None:
        if kind == "file":
            write_text(tmp_path / "out", str(number) * 100)
            return
        with atomic(tmp_path / "out") as partial:
            partial.mkdir()
            for name in "ab":
                (partial / name).write_text(str(number) * 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, [n % 10 for n in range(200)]))
    texts = {file.read_text() for file in files_under(tmp_path / "out")}
    assert len(texts) == 1
    assert len(texts.pop()) == 100
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("old", ["file", "folder", "link to a file", "link to a folder"])
@pytest.mark.parametrize("new", ["file", "folder"])
def test_whatever_stood_there_is_replaced_and_what_it_linked_to_stays(tmp_path: Path, old: str, new: str) -> None:
    path, place = tmp_path / "out", tmp_path / "linked" if "link" in old else tmp_path / "out"
    if old.endswith("file"):
        place.write_text("old")
    else:
        write_text(place / "weights", "old")
    if "link" in old:
        path.symlink_to(place)
    with atomic(path) as partial:
        write_text(partial / "weights" if new == "folder" else partial, "new")
    assert [file.read_text() for file in files_under(path)] == ["new"]
    assert not path.is_symlink()
    if "link" in old:
        assert [file.read_text() for file in files_under(place)] == ["old"]


def test_an_exception_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic(path) as partial:
        partial.mkdir()
        write_text(partial / "weights", "old")
    with contextlib.suppress(InterruptedError), atomic(path) as partial:
        partial.mkdir()
        write_text(partial / "weights", "half")
        raise InterruptedError
    assert (path / "weights").read_text() == "old"


def test_a_folder_replaces_a_folder_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for name in ("first", "second"):
        with atomic(path) as partial:
            partial.mkdir()
            write_text(partial / name, name)
    assert [file.name for file in files_under(path)] == ["second"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "text")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "text"


def test_text_has_the_same_bytes_everywhere(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "Zoë\nNiamh\n")
    assert (tmp_path / "text").read_bytes() == "Zoë\nNiamh\n".encode()


@pytest.mark.parametrize("value", [float("nan"), {"loss": float("inf")}])
def test_json_without_a_word_for_it_is_refused_and_the_old_file_stays(tmp_path: Path, value: object) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"loss": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, value)
    assert read_json(path) == {"loss": 1}


def test_json_ends_with_a_line_feed(tmp_path: Path) -> None:
    write_json(tmp_path / "m.json", {"naïve": [1, None]})
    text = (tmp_path / "m.json").read_text(encoding="utf-8")
    assert text == '{\n  "naïve": [\n    1,\n    null\n  ]\n}\n'
    assert json.loads(text) == {"naïve": [1, None]}


def test_file_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = os.urandom((1 << 24) + 7)  # more than one piece
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    assert file_digest(tmp_path / "file", "md5") == hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_tree_digest_sees_names_and_contents_but_no_byte_code(tmp_path: Path) -> None:
    def tree(name: str, **files: str) -> str:
        for file, text in files.items():
            write_text(tmp_path / name / "sub" / file, text)
        return tree_digest(tmp_path / name)

    same = tree("one", a="1", b="2")
    assert tree("two", b="2", a="1") == same
    assert tree("three", a="1", b="3") != same
    assert tree("four", a="1", c="2") != same
    assert tree("five", a="12") != tree("six", a1="2")
    write_text(tmp_path / "one" / "__pycache__" / "x.pyc", "code")
    assert tree_digest(tmp_path / "one") == same
