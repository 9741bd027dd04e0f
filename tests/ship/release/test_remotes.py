"""DVC remotes behind real servers: pushed, pulled, killed, full, lying. Nothing is lost, and each fault is a sentence.

S3 takes 80 MB more and is tested where it is installed: `make test-remotes`. HTTP, whose client tries again for long,
has most of its tests there, too.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from dvc.cli import main as dvc_main
from remote_servers import BUCKET, PASSWORD, READER, USER, server
from scratch import Scratch
from test_kept import cached, flip
from trails import MODEL

pytest_plugins = ["scratch_fixtures"]

_NEEDS_S3 = pytest.mark.skipif(
    not (find_spec("dvc_s3") and find_spec("moto")), reason="S3 is not installed; `make test-remotes` does that"
)
ALL = ["ssh", "webdav", *(pytest.param(kind, marks=_NEEDS_S3) for kind in ("http", "s3"))]
Connect = Callable[..., None]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is served."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # s3fs tries again, too
    (tmp_path / "served" / BUCKET).mkdir(parents=True)
    return tmp_path / "served"


def connect(scratch: Scratch, kind: str, port: int, store: Path, user: str = USER, password: str = PASSWORD) -> None:
    """Make the server the default remote, with credentials that git ignores."""
    url = f"s3://{BUCKET}" if kind == "s3" else f"{kind}://127.0.0.1:{port}/{BUCKET}"
    scratch.dvc("remote", "add", "--force", "--default", "store", url)
    scratch.commit("Remote") if scratch.git("status", "--porcelain") else None
    settings = {"user": user, "password": password}
    if kind == "s3":
        key, secret = json.loads((store / "keys.json").read_text())[user]
        secret = secret if password == PASSWORD else password
        address = f"http://127.0.0.1:{port}"
        settings = {"endpointurl": address, "region": "us-east-1", "access_key_id": key, "secret_access_key": secret}
    if kind == "http":
        settings |= {"auth": "basic", "method": "PUT"}
    for name, value in settings.items():
        scratch.dvc("remote", "modify", "--local", "store", name, value)


def failed(scratch: Scratch, *arguments: str) -> None:
    """DVC says that it did not do it."""
    with contextlib.chdir(scratch.root):
        assert dvc_main([*arguments, "--quiet"]) not in (0, None)


def sound(scratch: Scratch) -> None:
    """All bytes are those of dvc.lock, in the working tree and in the cache."""
    answer = scratch.tunetrail("lock-check", "--deep")
    assert answer.code == 0, answer.err
    assert " 0 of them are not in DVC's cache" in answer.out


def forget_files(scratch: Scratch) -> None:
    """As in a fresh clone."""
    scratch.forget_cache()
    shutil.rmtree(scratch.root / "models")


@pytest.mark.parametrize("kind", ALL)
def test_pushed_released_pulled_and_healed(scratch: Scratch, store: Path, kind: str) -> None:
    with server(kind, store) as port:
        connect(scratch, kind, port, store)
        before = scratch.tunetrail("release", "1.0.0")
        assert before.code == 1
        assert "remote store does not hold" in before.err
        scratch.dvc("push", "--run-cache")
        answer = scratch.tunetrail("release", "1.0.0")
        assert answer.code == 0, answer.err
        assert "DVC's cache and remote hold every object." in answer.out
        forget_files(scratch)
        scratch.dvc("pull", "--run-cache")
        sound(scratch)
        assert (scratch.root / ".dvc/cache/runs").is_dir() == (kind != "http")  # DVC would have to list it
        for name in (MODEL, "data/clean.jsonl"):
            flip(cached(scratch, name))
            (scratch.root / name).unlink()
        doctor = scratch.tunetrail("doctor")
        assert doctor.code == 0, doctor.err
        assert "2 healed" in doctor.out
        assert "ok       remote   store can be read and written" in doctor.out
        assert ("not deleted" in doctor.out) == (kind in ("s3", "http"))  # by the policy of docs/access.md
        scratch.dvc("checkout", "--force")
        sound(scratch)


def release_and_pull(scratch: Scratch) -> None:
    """What every fault must leave possible: a release, and all files back from the remote alone."""
    answer = scratch.tunetrail("release", "1.0.0")
    assert answer.code == 0, answer.err
    forget_files(scratch)
    scratch.dvc("pull")


@pytest.mark.parametrize("kind", ["folder", "webdav", pytest.param("s3", marks=_NEEDS_S3)])
def test_what_dvc_takes_for_sent_is_sent(scratch: Scratch, store: Path, kind: str) -> None:
    """It sends a folder's listing also when a file failed that another folder has, and then believes the listing."""
    file = cached(scratch, "models/release/merged/tokenizer.json")  # the base model has the same
    if kind == "folder":
        scratch.dvc("remote", "add", "--default", "store", str(store / BUCKET))
        scratch.commit("Remote")
        scratch.dvc("push")
        (store / BUCKET / file.relative_to(scratch.root / ".dvc/cache")).unlink()
    else:
        with server(kind, store, f"refuses {file.parent.name}{file.name}") as port:
            connect(scratch, kind, port, store)
            failed(scratch, "push")
    with server(kind, store) if kind != "folder" else contextlib.nullcontext(0) as port:
        if kind != "folder":
            connect(scratch, kind, port, store)
        scratch.dvc("push")
        refused = scratch.tunetrail("release", "1.0.0")
        assert "tokenizer.json" in refused.err
        assert "after a push that failed, `tunetrail doctor` before it" in refused.err
        assert "store: 1 objects were missing, and are sent again" in scratch.tunetrail("doctor").out
        release_and_pull(scratch)
    sound(scratch)


@pytest.mark.parametrize("kind", ALL)
def test_killed_in_the_middle_of_a_push(scratch: Scratch, store: Path, kind: str) -> None:
    with server(kind, store, "dies writing", 4) as port:
        connect(scratch, kind, port, store)
        failed(scratch, "push")
        down = scratch.tunetrail("release", "1.0.0")
        assert down.code == 2
        assert "remote store does not answer: " in down.err
        assert "Traceback" not in down.err
    sound(scratch)
    with server(kind, store) as port:
        connect(scratch, kind, port, store)
        assert "remote store does not hold" in scratch.tunetrail("release", "1.0.0").err
        doctor = scratch.tunetrail("doctor")  # a server that writes in place leaves a cut object
        assert doctor.code == 0, doctor.out
        assert ("were cut, and are sent again" in doctor.out) == (kind in ("webdav", "http"))
        scratch.dvc("push")
        release_and_pull(scratch)
        sound(scratch)


@pytest.mark.parametrize("kind", ALL)
def test_killed_in_the_middle_of_a_pull(scratch: Scratch, store: Path, kind: str) -> None:
    with server(kind, store) as port:
        connect(scratch, kind, port, store)
        scratch.dvc("push")
    forget_files(scratch)
    with server(kind, store, "dies reading", 4) as port:
        connect(scratch, kind, port, store)
        failed(scratch, "pull")
    with server(kind, store) as port:
        connect(scratch, kind, port, store)
        scratch.dvc("pull")
        sound(scratch)


@pytest.mark.parametrize("kind", ALL)
def test_wrong_and_read_only_credentials(scratch: Scratch, store: Path, kind: str) -> None:
    with server(kind, store) as port:
        connect(scratch, kind, port, store)
        scratch.dvc("push")
        connect(scratch, kind, port, store, password="wrong-secret")
        for command, fault in (
            (["release", "1.0.0"], "remote store does not answer: "),
            (["doctor"], "cannot be used"),
        ):
            answer = scratch.tunetrail(*command)
            assert answer.code in (1, 2)
            assert fault in answer.out + answer.err
            assert "wrong-secret" not in answer.out + answer.err
            assert "Traceback" not in answer.err
        forget_files(scratch)
        failed(scratch, "pull")
        connect(scratch, kind, port, store, user=READER)
        doctor = scratch.tunetrail("doctor")
        assert "warning  remote   store can be read, and not written: " in doctor.out
        scratch.dvc("pull")
        sound(scratch)


@pytest.mark.parametrize("kind", ALL)
def test_a_remote_that_lies(scratch: Scratch, store: Path, kind: str) -> None:
    with server(kind, store, "lies") as port:
        connect(scratch, kind, port, store)
        scratch.dvc("push")
        doctor = scratch.tunetrail("doctor")
        assert doctor.code == 1
        assert "store does not give back the bytes that it was given; push elsewhere" in doctor.out
        name = "data/clean.jsonl"
        cached(scratch, name).unlink()
        (scratch.root / name).unlink()
        scratch.dvc("remote", "modify", "--local", "store", "verify", "true")
        failed(scratch, "pull", name)
        scratch.dvc("remote", "modify", "--local", "store", "verify", "false")
        scratch.dvc("pull", name)  # DVC believes it, and the trail does not
        answer = scratch.tunetrail("lock-check", "--deep")
        assert answer.code == 1
        assert f"DVC's cache holds other bytes than it says for {name}" in answer.err


@_NEEDS_S3
def test_bits_that_flip_on_their_way_from_s3(scratch: Scratch, store: Path) -> None:
    """Its client compares the checksum that the server has, so neither DVC nor doctor gets to see wrong bytes."""
    with server("s3", store, "flips") as port:
        connect(scratch, "s3", port, store)
        scratch.dvc("push")
        doctor = scratch.tunetrail("doctor")
        assert doctor.code == 1
        assert "store does not give back the bytes that it was given: Expected checksum " in doctor.out
        forget_files(scratch)
        failed(scratch, "fetch")
    with server("s3", store) as port:
        connect(scratch, "s3", port, store)
        scratch.dvc("pull")
        sound(scratch)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as handle:
        while True:
            handle.write(bytes(4096))


@pytest.mark.parametrize("kind", ["folder", *ALL])
def test_a_remote_whose_disk_is_full(scratch: Scratch, small_disk: Path, kind: str) -> None:
    (small_disk / BUCKET).mkdir()
    ballast = small_disk / "ballast"
    with server(kind, small_disk) if kind != "folder" else contextlib.nullcontext(0) as port:
        fill(ballast)
        if kind == "folder":
            scratch.dvc("remote", "add", "--default", "store", str(small_disk / BUCKET))
            scratch.commit("Remote")
        else:
            connect(scratch, kind, port, small_disk)
        os.truncate(ballast, ballast.stat().st_size - 12288)
        failed(scratch, "push")
        refused = scratch.tunetrail("release", "1.0.0")
        assert refused.code == 1
        assert "remote store does not hold" in refused.err
        fill(ballast)
        doctor = scratch.tunetrail("doctor")
        assert "store can be read, and not written: " in doctor.out
        assert "Traceback" not in doctor.out + doctor.err
        sound(scratch)
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
        scratch.tunetrail("doctor")  # clears what was cut
        scratch.dvc("push")
        answer = scratch.tunetrail("release", "1.0.0")
        assert answer.code == 0, answer.err
    sound(scratch)


def test_a_remote_that_cannot_be_listed(scratch: Scratch, store: Path) -> None:
    """HTTP: what needs a listing says so, and what asks for each object by its name works."""
    with server("http", store) as port:
        connect(scratch, "http", port, store)
        scratch.dvc("push")
        listed = scratch.tunetrail("gc", "--dry", "--remote", "store")
        assert (listed.code, listed.out) == (2, "")
        assert "remote store cannot be listed: http has no listings" in listed.err
        for file in (scratch.root / ".dvc/cache/files").rglob("*.dir"):
            file.unlink()
        assert "DVC's cache: 0 of" in scratch.tunetrail("gc", "--dry").out  # folders are read from the remote
        scratch.dvc("remote", "modify", "--local", "store", "method", "POST")  # DVC's default, which few servers take
        doctor = scratch.tunetrail("doctor")
        assert "warning  remote   store can be read, and not written: " in doctor.out
        release_and_pull(scratch)
    sound(scratch)
