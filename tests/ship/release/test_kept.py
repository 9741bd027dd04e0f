"""Wrong bytes in place, objects that cache and remote lack or hold damaged, and what is no plain file in a release."""

import contextlib
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from scratch import Scratch
from trails import MODEL, broken, second_run, trace, whole

from stages.core.dvc_lock import parse_lock
from stages.ship.release.dvc_files import Listings

pytest_plugins = ["scratch_fixtures"]

TAG = "support-tickets@v1.0.0"
ADAPTER = "models/adapter/adapter.safetensors"


def overwrite(path: Path, content: bytes) -> None:
    """As an editor does: DVC's files are read-only."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def cached(scratch: Scratch, name: str) -> Path:
    """The object of an output file in DVC's cache."""
    lock = parse_lock((scratch.root / "dvc.lock").read_bytes())
    listings = Listings(scratch.root)
    for _, out in lock.outs():
        if out.md5 and out.path == name:
            return listings.cached_file(out.md5)
        if out.md5 and out.holds(name):
            return listings.cached_file((listings.get(out.md5) or {})[name[len(out.path) + 1 :]])
    raise KeyError(name)


def flip(path: Path) -> None:
    """One bit, as a disk does it: mode and times stay, by which DVC knows its objects."""
    content, before = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    overwrite(path, bytes(content))
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def with_remote(scratch: Scratch, tmp_path: Path) -> Scratch:
    scratch.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    scratch.commit("Remote")
    return scratch


@pytest.mark.parametrize("cache", [True, False])
def test_bytes_of_another_file_in_place_break_the_trail_and_are_named(scratch: Scratch, cache: bool) -> None:
    """Each output file, overwritten with each other one: the place decides, and the answer says whose the bytes are."""
    names = [MODEL, "models/release/merged/model.safetensors", ADAPTER, "data/clean.jsonl", "data/split/train.jsonl"]
    contents = {name: (scratch.root / name).read_bytes() for name in names}
    if not cache:
        scratch.forget_cache()
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        overwrite(scratch.root / name, contents[other])
        said = broken(scratch, name)
        assert "other bytes for" in said or "is not what dvc.lock" in said
        if cache:
            assert f"the bytes here are those of {other}" in said
        overwrite(scratch.root / name, contents[name])
        assert whole(scratch, name)


def test_an_empty_file_in_place_breaks_the_trail_though_an_output_is_empty(scratch: Scratch) -> None:
    scratch.replace(
        "stages/run.py", 'write("data/split/holdout.jsonl", lines[0])', 'write("data/split/holdout.jsonl", "")'
    )
    scratch.dvc("repro", "--force")
    scratch.commit("An empty output")
    overwrite(scratch.root / MODEL, b"")
    assert f"dvc.lock names other bytes for {MODEL}" in broken(scratch)


def test_a_folder_over_another_breaks_the_trail(scratch: Scratch) -> None:
    release = scratch.root / "models/release"
    shutil.rmtree(release / "merged")
    shutil.copytree(release / "nf4", release / "merged")
    assert "the bytes here are those of models/release/nf4" in broken(scratch, "models/release/merged")
    overwrite(release / "merged/extra.json", b"{}")
    assert "other bytes for models/release/merged" in broken(scratch, "models/release/merged")
    assert "has no models/release/nf4/more" in broken(
        scratch, _copy(release / "nf4/tokenizer.json", release / "nf4/more")
    )


def _copy(source: Path, target: Path) -> str:
    shutil.copy(source, target)
    return str(target)


def test_a_served_copy_is_held_against_its_manifest(scratch: Scratch, tmp_path: Path) -> None:
    shutil.copytree(scratch.root / "models/release", tmp_path / "served")
    model = tmp_path / "served/nf4/model.safetensors"
    assert whole(scratch, str(model))
    overwrite(model, (tmp_path / "served/merged/model.safetensors").read_bytes())
    said = broken(scratch, str(model))
    assert "manifest.json around it names" in said
    assert "the bytes here are those of models/release/merged/model.safetensors" in said


def test_release_of_what_no_cache_holds(scratch: Scratch) -> None:
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.dvc("repro", "--no-commit")
    scratch.commit("Not in the cache")
    answer = scratch.tunetrail("release", "1.0.0")
    assert answer.code == 1
    assert "DVC's cache does not hold models/adapter" in answer.err
    scratch.dvc("commit", "--force")
    answer = scratch.tunetrail("release", "1.0.0")
    assert answer.code == 0, answer.err
    assert "No DVC remote is configured" in answer.out
    assert json.loads(scratch.git("tag", "--list", "--format=%(contents)", TAG))["remote"] is None


@pytest.mark.parametrize("folder", [True, False], ids=["a folder", "beyond DVC's interface"])
def test_release_of_what_the_remote_lacks(with_remote: Scratch, monkeypatch: pytest.MonkeyPatch, folder: bool) -> None:
    scratch = with_remote
    if not folder:
        known = Listings.__init__

        def no_folder(self: Listings, root: Path) -> None:
            known(self, root)
            self.remote_folder = None

        monkeypatch.setattr(Listings, "__init__", no_folder)
    refused = scratch.tunetrail("release", "1.0.0")
    assert refused.code == 1
    assert "remote store does not hold" in refused.err
    assert scratch.tunetrail("release", "1.0.0", "--no-push-check", " ").code == 2
    assert scratch.tunetrail("release", "1.0.0", "--no-push-check", "the store is down").code == 0
    record = json.loads(scratch.git("tag", "--list", "--format=%(contents)", TAG))
    assert record["remote"] == {"name": "store", "checked": False, "reason": "the store is down"}
    scratch.dvc("push")
    scratch.git("commit", "--quiet", "--allow-empty", "--message", "Again")
    answer = scratch.tunetrail("release", "1.0.1")
    assert answer.code == 0, answer.err
    assert ("docs/access.md" in answer.out) is not folder
    sent = next((scratch.root.parent / "store/files/md5").glob("*/*[0-9a-f]"))
    overwrite(sent, sent.read_bytes()[:-1])
    assert "remote store does not hold" in scratch.tunetrail("release", "1.0.2").err


def test_release_to_a_remote_that_everybody_may_write(with_remote: Scratch) -> None:
    scratch = with_remote
    scratch.dvc("push")
    sent = next((scratch.root.parent / "store/files/md5").glob("*/*[0-9a-f]"))
    for place in (sent, sent.parent, scratch.root.parent / "store"):
        mode = place.stat().st_mode
        place.chmod(mode | 0o002)
        refused = scratch.tunetrail("release", "1.0.0")
        assert refused.code == 1
        assert f"everybody on this machine may write {place}, so anybody can change a release" in refused.err
        place.chmod(mode)
    answer = scratch.tunetrail("release", "1.0.0")
    assert answer.code == 0, answer.err
    assert "docs/access.md" not in answer.out


def test_deep_check_finds_what_dvc_takes_for_right(scratch: Scratch) -> None:
    """A bit flips in the cache, the file is checked out from there: DVC trusts names and times, and sees nothing."""
    flip(cached(scratch, "data/clean.jsonl"))
    (scratch.root / "data/clean.jsonl").unlink()
    scratch.dvc("checkout", "data/clean.jsonl")
    assert scratch.tunetrail("lock-check").code == 0
    for command in (["lock-check", "--deep"], ["release", "1.0.0"]):
        answer = scratch.tunetrail(*command)
        assert answer.code == 1
        assert "data/clean.jsonl in the working tree is not what stage clean wrote" in answer.err
        assert "DVC's cache holds other bytes than it says for data/clean.jsonl" in answer.err


def test_deep_check_without_cache_and_outputs(with_remote: Scratch) -> None:
    assert with_remote.tunetrail("lock-check", "--deep").code == 0
    with_remote.dvc("push")
    shutil.rmtree(with_remote.root / "models")
    with_remote.forget_cache()
    answer = with_remote.tunetrail("lock-check", "--deep")
    assert answer.code == 0, answer.err
    assert "are not in DVC's cache" in answer.out


def test_a_release_lost_to_gc_is_named(with_remote: Scratch) -> None:
    scratch = with_remote
    scratch.dvc("push")
    assert scratch.tunetrail("release", "1.0.0").code == 0
    second_run(scratch)
    scratch.dvc("push")
    assert "brought back" not in scratch.tunetrail("verify").out
    assert whole(scratch, TAG)
    scratch.dvc("gc", "--workspace", "--all-tags", "--cloud", "--force")
    assert whole(scratch, TAG)
    scratch.dvc("gc", "--workspace", "--cloud", "--force")
    said = broken(scratch, TAG)
    assert "can no longer be brought back: neither DVC's cache nor remote store holds models/" in said
    assert f"(release {TAG})" in said
    answer = scratch.tunetrail("verify")
    assert answer.code == 0
    assert f"{TAG}: " in answer.out
    doctor = scratch.tunetrail("doctor")
    assert doctor.code == 1
    assert f"{TAG}: " in doctor.out


def test_doctor_heals_from_the_remote(with_remote: Scratch) -> None:
    scratch = with_remote
    scratch.dvc("push")
    assert "0 damaged" in scratch.tunetrail("doctor").out
    listing = cached(scratch, ADAPTER).parents[1].glob("*/*.dir")
    for file in [cached(scratch, "data/clean.jsonl"), cached(scratch, MODEL)]:
        flip(file)
    overwrite(next(listing), b"")
    (scratch.root / "data/clean.jsonl").unlink()
    scratch.dvc("checkout", "data/clean.jsonl")
    answer = scratch.tunetrail("doctor")
    assert answer.code == 0, answer.err
    assert "3 damaged" in answer.out
    assert "3 healed" in answer.out
    assert "dvc checkout --force data/clean.jsonl" in answer.out
    scratch.dvc("checkout", "--force")
    deep = scratch.tunetrail("lock-check", "--deep")
    assert deep.code == 0, deep.err
    assert len(list((scratch.root / ".tunetrail/damaged").iterdir())) == 3


def test_doctor_without_right_bytes_says_so_and_keeps_the_damaged_ones(scratch: Scratch) -> None:
    file = cached(scratch, "data/clean.jsonl")
    flip(file)
    flip(scratch.root / "data/clean.jsonl")
    answer = scratch.tunetrail("doctor")
    assert answer.code == 1
    assert "neither the working tree nor a remote has the right bytes" in answer.out
    assert (scratch.root / ".tunetrail/damaged" / (file.parent.name + file.name)).is_file()


def test_doctor_clears_an_empty_listing_of_the_remote(with_remote: Scratch) -> None:
    """As a killed push leaves it: DVC says «in sync», and every pull fails."""
    scratch = with_remote
    scratch.dvc("push")
    store = scratch.root.parent / "store"
    listing = next((store / "files/md5").glob("*/*.dir"))
    content = listing.read_bytes()
    overwrite(listing, b"")
    answer = scratch.tunetrail("doctor")
    assert answer.code == 0, answer.err
    assert "remote store: 1 damaged" in answer.out
    assert not listing.exists()
    scratch.dvc("push")
    assert listing.read_bytes() == content


def test_verify_names_all_that_is_no_plain_file(scratch: Scratch, tmp_path: Path) -> None:
    release = scratch.root / "models/release"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.bin").write_text("x")
    (release / "merged/linked").symlink_to(tmp_path / "elsewhere")
    (release / "merged/gone").symlink_to(tmp_path / "nowhere")
    (release / "nf4/file").symlink_to(tmp_path / "elsewhere/x.bin")
    (release / "nf4/itself").symlink_to("itself")
    (release / os.fsdecode(b"no text \xff")).symlink_to(tmp_path / "elsewhere")
    (release / "nf4/empty/inside").mkdir(parents=True)
    (release / ".hidden").write_text("")
    os.mkfifo(release / "pipe")
    with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(release):  # a socket's path may have 108 characters
        one.bind("socket")
    for command in (["verify"], ["release", "1.0.0"]):
        answer = scratch.tunetrail(*command)
        assert answer.code == 1
        for sentence in (
            "merged/linked is a link to",
            "merged/gone is a link to",
            "nf4/file is a link to",
            "nf4/itself is a link to",
            r"'no text \udcff' is a link to",
            "nf4/empty/inside is an empty folder",
            ".hidden is not in the manifest",
            "pipe is neither a file nor a folder",
            "socket is neither a file nor a folder",
        ):
            assert sentence in answer.err
    assert "linked is a link" in broken(scratch, "models/release/merged")


def test_links_into_the_cache_are_files(scratch: Scratch) -> None:
    scratch.dvc("config", "cache.type", "symlink")
    scratch.dvc("checkout", "--relink")
    scratch.commit("Links")
    assert (scratch.root / MODEL).is_symlink()
    assert scratch.tunetrail("verify").code == 0
    assert whole(scratch)
    scratch.forget_cache()
    verified, traced = scratch.tunetrail("verify"), scratch.tunetrail("trace", MODEL)
    assert (verified.code, traced.code) == (2, 2)  # the manifest is a link, too
    assert "which is not there" in traced.err


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "/", "."])
def test_names_that_are_no_outputs(scratch: Scratch, name: str) -> None:
    for command in ("trace", "verify"):
        answer = scratch.tunetrail(command, name)
        assert answer.code in (1, 2)
        assert len(answer.err) < 500
        assert "Traceback" not in answer.err


@pytest.mark.parametrize("row", ["{}", "3", "null", '{"md5": "x"}', '{"sha256": 1, "md5": 2, "bytes": "x"}'])
def test_manifest_entries_without_their_keys(scratch: Scratch, row: str) -> None:
    overwrite(
        scratch.root / "models/release/manifest.json", f'{{"files": {{"nf4/model.safetensors": {row}}}}}'.encode()
    )
    answer = scratch.tunetrail("verify")
    assert answer.code in (1, 2)
    assert answer.err.startswith("error: ")
    assert trace(scratch, "models/release")[0] == 1 if answer.code == 1 else True


def test_a_moved_tag_is_no_release(scratch: Scratch) -> None:
    assert scratch.tunetrail("release", "1.0.0").code == 0
    first = scratch.git("rev-parse", "HEAD")
    second_run(scratch)
    assert whole(scratch, TAG)["commit"]["sha"] == first
    message = scratch.git("tag", "--list", "--format=%(contents)", TAG)
    scratch.git("tag", "--force", "--annotate", "--message", message, TAG, "HEAD")
    assert f"tag {TAG} was moved" in broken(scratch, TAG)
    trail = whole(scratch)
    assert trail["commit"]["tags"] == []
    scratch.git("tag", "--force", TAG, "HEAD")
    assert "without the record of `tunetrail release`" in broken(scratch, TAG)
