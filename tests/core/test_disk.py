"""A full disk and a read-only cache are sentences with the place, what is free and what is needed."""

import errno
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from stages.core import disk
from stages.core.errors import UserError, run
from stages.core.files import atomic, write_text

Usage = namedtuple("Usage", "total used free")
FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_writing_to_a_full_disk(tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10_000_000_000, 0, 2_500_000))
    monkeypatch.setitem(disk.last_sizes, (tmp_path / "out").as_posix(), 540_000_000)
    write_text(tmp_path / "out", "old")

    def write() -> None:
        with atomic(tmp_path / "out") as partial:
            partial.write_text("half")
            raise ValueError("could not be saved") from error

    with pytest.raises(UserError) as said:
        write()
    assert str(said.value) == (
        f"no space left on the disk of {tmp_path}: 2.5 MB of 10.0 GB are free; {tmp_path}/out took 540.0 MB the last "
        "time; make room and run the same command again: what is finished is kept"
    )
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_a_library_that_hides_the_cause_is_seen_through(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0")

    with pytest.raises(RuntimeError):
        run(main)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10_000, 0, 0))
    with pytest.raises(SystemExit, match="2"):
        run(main)
    said = capsys.readouterr().err
    assert said.startswith("error: no space left on the disk of ")
    assert "0 bytes of 10.0 kB are free" in said
    assert "(RuntimeError: PytorchStreamWriter failed writing file data/0)" in said


def test_what_the_system_says_of_a_full_disk() -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("no device that is always full here")
    with pytest.raises(OSError, match="No space left") as refused:
        Path("/dev/full").write_text("text")
    assert disk.when_full(refused.value) is not None


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    assert disk.when_full(PermissionError(errno.EACCES, "Permission denied", str(tmp_path))) is None


@pytest.mark.parametrize("refused", ["", "files/md5", "files/md5/3f", "runs"])
def test_a_cache_that_cannot_be_written(tmp_path: Path, refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("files/md5/3f", "files/md5/aa", "runs"):
        (tmp_path / name).mkdir(parents=True)
    disk.refuse_unwritable(tmp_path, "train")
    disk.refuse_unwritable(tmp_path / "not/yet/there", "train")
    monkeypatch.setattr("os.access", lambda folder, _: folder != tmp_path / refused)
    with pytest.raises(UserError, match=r"^train did not start: .* its cache .* cannot be written; make it writable"):
        disk.refuse_unwritable(tmp_path, "train")


def test_little_room_is_said_once_and_not_where_there_is_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10_000, 0, 999))
    disk.say_little_room([tmp_path], 999, "enough")
    disk.say_little_room([tmp_path, tmp_path / "cache"], 1_000, "train wrote 1.0 kB the last time")
    said = capsys.readouterr().err
    assert said == f"little room: 999 bytes free on the disk of {tmp_path}; train wrote 1.0 kB the last time\n"
