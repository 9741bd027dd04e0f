"""A stage works on what dvc.lock says that it read, or not at all."""

import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from scratch import Scratch
from small_project import FILES, by_hand, command, make_small, set_param

from stages.core import dependencies
from stages.core.dvc_lock import object_path
from stages.core.files import file_digest, files_under, write_text

pytest_plugins = ["scratch_fixtures"]
pytestmark = pytest.mark.usefixtures("served")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, quiet_git: None) -> Scratch:
    return make_small(tmp_path_factory.mktemp("dependencies") / "repository")


@pytest.fixture
def repository(template: Scratch, tmp_path: Path) -> Scratch:
    return template.copy(tmp_path / "repository")


def flip(file: Path) -> None:
    """Change one bit and keep the rights, by which DVC takes a cache object for sound."""
    mode = stat.S_IMODE(file.stat().st_mode)
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    file.chmod(mode)


def damage(repository: Scratch, name: str) -> Path:
    """Flip a bit in the cache object of an output and check it out."""
    place = object_path(repository.root / ".dvc/cache", file_digest(repository.root / name, "md5"))
    flip(place)
    (repository.root / name).unlink()
    repository.dvc("checkout")
    return place.relative_to(repository.root)


@pytest.mark.parametrize(
    ("stage", "name", "links"),
    [("third", "out/folder/b", "copy"), ("second", "out/one.txt", "hardlink"), ("second", "out/folder/a", "symlink")],
)
def test_a_damaged_cache_object_is_not_read(repository: Scratch, stage: str, name: str, links: str) -> None:
    repository.dvc("config", "cache.type", links)
    sound = (repository.root / name).read_bytes()
    place = damage(repository, name)
    lock = (repository.root / "dvc.lock").read_bytes()
    set_param(repository, stage, "seed", "b")
    code, said = command(repository, "dvc", "repro")
    assert code != 0
    assert f"error: {stage} did not start: {name} is not what stage first wrote, by dvc.lock" in said
    assert f"delete {place} and {name}, then run `dvc repro --force first`" in said
    assert "Traceback" not in said
    assert (repository.root / "dvc.lock").read_bytes() == lock
    # What the sentence says to do mends it.
    (repository.root / place).unlink()
    (repository.root / name).unlink()
    repository.dvc("repro", "--force", "first")
    repository.dvc("repro")
    assert (repository.root / name).read_bytes() == sound


def test_an_edited_output_is_not_read(repository: Scratch) -> None:
    """By hand, where DVC does not look, and in `--single-item`, where it would record what nobody wrote."""
    repository.write("out/in_git.txt", "edited")
    sentence = "out/in_git.txt is not what stage first wrote, by dvc.lock; to have that back, delete it and run"
    for words in (["-m", "stages.second"], ["-m", "dvc", "repro", "--single-item", "second"]):
        code, said = command(repository, sys.executable, *words)
        assert code in (1, 255)
        assert sentence in said
    repository.dvc("commit", "--force", "first")
    assert by_hand(repository, "second") == (0, "")


def test_a_folder_is_held_with_and_without_its_listing(repository: Scratch) -> None:
    """Of a folder that was pulled in part, the part that a stage reads is held alone."""
    (repository.root / "out/folder/b").unlink()
    assert by_hand(repository, "second") == (0, "")
    code, said = by_hand(repository, "third")
    assert code == 1
    assert "out/folder/b is not what stage first wrote" in said
    repository.dvc("checkout")
    repository.forget_cache()
    assert by_hand(repository, "second") == by_hand(repository, "third") == (0, "")
    repository.write("out/folder/a", "edited")
    for stage in ("second", "third"):
        code, said = by_hand(repository, stage)
        assert code == 1
        assert "out/folder/a" in said


@pytest.mark.parametrize("added", ["raw.txt", "data"])
def test_data_that_dvc_add_brought_are_held_against_their_dvc_file(repository: Scratch, added: str) -> None:
    repository.git("rm", "--quiet", "--cached", "raw.txt")
    if added == "data":
        repository.write("data/raw.txt", "raw")
        repository.replace("dvc.yaml", "raw.txt", "data/raw.txt")
        repository.replace("stages/first.py", "raw.txt", "data/raw.txt")
    name = "data/raw.txt" if added == "data" else "raw.txt"
    repository.dvc("add", added)
    repository.dvc("repro")
    damage(repository, name)
    set_param(repository, "first", "seed", "b")
    code, said = command(repository, "dvc", "repro")
    assert code != 0
    assert f"{name} is not what {added}.dvc records: DVC's cache is damaged; delete" in said
    repository.write(name, "new rows")  # new data are no damage: DVC records them before the stage runs
    repository.dvc("repro")


def test_an_experiment_in_a_folder_of_its_own_holds_too(repository: Scratch) -> None:
    repository.dvc("exp", "run", "--temp", "--set-param", "third.seed=b")
    damage(repository, "out/one.txt")
    code, said = command(repository, "dvc", "exp", "run", "--temp", "--set-param", "second.seed=b")
    assert code != 0
    assert "out/one.txt is not what stage first wrote" in said


def test_without_a_lock_nothing_is_held_and_a_damaged_one_is_a_sentence(repository: Scratch) -> None:
    (repository.root / "dvc.lock").unlink()
    repository.write("out/one.txt", "edited")
    assert by_hand(repository, "second") == (0, "")
    repository.write("dvc.lock", "stages:\n  first:\n    outs:\n    - pa")
    code, said = by_hand(repository, "second")
    assert code == 2
    assert said.startswith("error: dvc.lock is damaged: ")


@pytest.mark.parametrize(
    ("stage", "name", "text", "said"),
    [
        ("first", "raw.txt", "edited", "raw.txt"),
        ("first", "params.yaml", FILES["params.yaml"].replace("seed: a", "seed: b", 1), "parameter first"),
        ("second", "stages/third.py", "edited = 1", "stages/third.py"),
        ("third", "out/folder/c", "a file more", "out/folder/c"),
    ],
)
def test_what_changes_while_a_stage_runs_is_not_recorded_as_read(
    repository: Scratch, stage: str, name: str, text: str, said: str
) -> None:
    """DVC hashes dependencies and reads parameters anew when the stage has ended."""
    lock = (repository.root / "dvc.lock").read_text()
    repository.write("edits/edit", f"{name}\n{text}")
    code, output = command(repository, "dvc", "repro", "--single-item", "--force", stage)
    assert code != 0
    assert f"error: {said} changed while {stage} ran: dvc.lock would name what it did not read" in output
    assert (repository.root / "dvc.lock").read_text() == lock


def test_what_the_stage_does_not_read_may_change_meanwhile(repository: Scratch) -> None:
    edited = FILES["params.yaml"].replace("third: {seed: a", "third: {seed: b")
    repository.write("edits/edit", f"params.yaml\n{edited}")
    repository.dvc("repro", "--single-item", "--force", "second")


def test_a_disk_that_gets_full_is_a_sentence_and_costs_nothing(repository: Scratch) -> None:
    """A limit of a file's size stands in for the disk; the outputs, the lock and the cache stay as they were."""
    before = {file: file.read_bytes() for file in files_under(repository.root / "out")}
    set_param(repository, "second", "ballast", 100_000)
    code, said = command(repository, "sh", "-c", "ulimit -f 1; exec python -m stages.second")
    assert code == 2
    assert said.startswith("error: a file on the disk of ")
    assert said.count("\n") == 1
    assert "; out/two.txt took " in said
    assert {file: file.read_bytes() for file in files_under(repository.root / "out")} == before
    assert not list((repository.root / ".tunetrail/partial").iterdir())


@pytest.mark.parametrize("gone", ["stage", "output"])
def test_what_a_stage_that_is_gone_wrote_holds_nobody(repository: Scratch, gone: str) -> None:
    """DVC keeps entries of stages that were renamed, and of outputs that another stage writes now."""
    lock = (repository.root / "dvc.lock").read_text()
    start = lock.index("  first:\n")
    end = next((at for at in (lock.find(f"\n  {name}:\n", start) for name in ("second", "third")) if at > 0), len(lock))
    old = lock[start : end + 1]
    md5 = next(line for line in old[old.index("outs:") :].splitlines() if "md5: " in line)
    old = old[: old.index("outs:")] + old[old.index("outs:") :].replace(md5.split()[1], "f" * 32)
    if gone == "stage":
        (repository.root / "dvc.lock").write_text(lock + old.replace("  first:", "  renamed:", 1))
    else:
        (repository.root / "dvc.lock").write_text(lock + old.replace("  first:", "  apart:", 1))
        pipeline = (repository.root / "dvc.yaml").read_text()
        (repository.root / "dvc.yaml").write_text(pipeline + "  apart:\n    cmd: true\n    outs:\n    - out/apart\n")
    set_param(repository, "second", "seed", "b")
    code, said = by_hand(repository, "second")
    assert code == 0, said


def test_a_dependency_is_known_by_the_files_that_the_stage_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same by reading it, on a machine that trains along."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"base/a": "1", "base/sub/b": "2", "based": "3", "base/__pycache__/c.pyc": "4"}.items():
        write_text(Path(name), text)
    by_reading = [dependencies.digest(name) for name in ("base", "based")]
    assert by_reading[0] != by_reading[1]
    files = {name: file_digest(Path(name), "md5") for name in ("base/a", "base/sub/b", "based")}
    monkeypatch.setattr(dependencies, "_read", [SimpleNamespace(files=files)])
    write_text(Path("base/a"), "changed while the stage runs")
    assert [dependencies.digest(name) for name in ("base", "based")] == by_reading
    monkeypatch.setattr(dependencies, "_read", [])
    assert dependencies.digest("base") != by_reading[0]
    write_text(Path("base/a"), "1")
    write_text(Path("base/__pycache__/c.pyc"), "another")
    assert dependencies.digest("base") == by_reading[0]
