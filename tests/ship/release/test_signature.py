"""The signature of a release: every change of a file is found and named, here or where nothing but the folder is."""

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from scratch import Scratch

from stages.core.errors import Refusal, UserError
from stages.core.files import file_digest, files_under
from stages.ship.release.verify import changes, shipped_files, sign, signed_differences, verify

pytest_plugins = ["scratch_fixtures"]

FLIPS, WHOLE = 10_000, 100
FILES = {
    f"{form}/{name}": f"{form} {name} {'x' * size}"
    for form in ("merged", "gguf")
    for name, size in (("a.json", 9), ("b.txt", 40))
}


def digests(folder: Path) -> dict[str, str]:
    return {name: file_digest(folder / name) for name in shipped_files(folder)}


def write_key(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, lock: KeySerializationEncryption) -> Path:
    path = folder / f"{name}.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two keys, NAME.pem and NAME.pub, and others that do not serve."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ann", "ben"):
        write_key(folder, name, ec.generate_private_key(ec.SECP256R1()), NoEncryption())
    write_key(folder, "encrypted", ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"word"))
    write_key(folder, "curve", ec.generate_private_key(ec.SECP256K1()), NoEncryption())
    for name, key in (("rsa", rsa.generate_private_key(65537, 2048)), ("ed", ed25519.Ed25519PrivateKey.generate())):
        (folder / f"{name}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "text.pem").write_text("-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n")
    return folder


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Path:
    """A release of tiny files with its manifest, release.sig by ann beside it. Tests must leave it as it is."""
    release = tmp_path_factory.mktemp("signed") / "release"
    for name, text in FILES.items():
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        (release / name).write_text(text)
    rows = {
        name: {"sha256": file_digest(release / name), "md5": file_digest(release / name, "md5"), "bytes": len(text)}
        for name, text in FILES.items()
    }
    (release / "manifest.json").write_text(json.dumps({"format": 2, "files": rows}))
    sign(release.parent, release, keys / "ann.pem", release.parent / "release.sig")
    return release


@pytest.fixture
def release(signed: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copy(signed.parent / "release.sig", tmp_path)
    return Path(shutil.copytree(signed, tmp_path / "release"))


def differences(release: Path, keys: Path) -> list[str]:
    return signed_differences(release, keys / "ann.pub", release.parent / "release.sig")


def test_what_was_signed_verifies_with_the_folder_alone(release: Path, keys: Path) -> None:
    said = verify(None, release, keys / "ann.pub")
    assert said.endswith("4 files are what the manifest says\nrelease.sig is the signature of these files by ann.pub")
    assert "only a signature says whose manifest it is" in verify(None, release)


def test_every_single_bit_flip_is_found_and_named(release: Path, keys: Path) -> None:
    """All of them by the comparison that `verify` makes; a sample of them through the signature and the command."""
    rng, before = random.Random(5), digests(release)
    contents = {name: (release / name).read_bytes() for name in before}
    handles = {name: os.open(release / name, os.O_RDWR) for name in before}
    for number in range(FLIPS):
        name = rng.choice(sorted(contents))
        at = rng.randrange(len(contents[name]))
        os.pwrite(handles[name], bytes([contents[name][at] ^ 1 << rng.randrange(8)]), at)
        if number % WHOLE:
            found = list(changes(before, digests(release), "the signature"))
        else:
            found = differences(release, keys)
            with pytest.raises(Refusal, match=f"{name} has other bytes than the signature says"):
                verify(None, release, keys / "ann.pub")
        assert found == [f"{name} has other bytes than the signature says"]
        os.pwrite(handles[name], contents[name][at : at + 1], at)
    for handle in handles.values():
        os.close(handle)
    assert differences(release, keys) == []


def flip_without_key(release: Path, name: str) -> None:
    content = bytearray((release / name).read_bytes())
    content[3] ^= 1
    (release / name).write_bytes(content)


def test_a_flip_of_what_the_manifest_names_is_found_without_a_key(release: Path) -> None:
    for name in FILES:
        flip_without_key(release, name)
        with pytest.raises(Refusal, match=f"{name} has other bytes than the manifest says"):
            verify(None, release)
        flip_without_key(release, name)


def swap(release: Path) -> None:
    for one, other in (("merged/a.json", "spare"), ("gguf/a.json", "merged/a.json"), ("spare", "gguf/a.json")):
        (release / one).rename(release / other)


def link_outside(release: Path, target: str = "elsewhere") -> None:
    (release / "gguf/b.txt").rename(release.parent / "elsewhere")
    (release / "gguf/b.txt").symlink_to(release.parent / target)


def link_folder(release: Path) -> None:
    (release / "gguf").rename(release.parent / "gguf")
    (release / "gguf").symlink_to(release.parent / "gguf")


def replace(release: Path) -> None:
    shutil.copy(release / "gguf/a.json", release / "merged/a.json")


CASES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing": (lambda release: (release / "gguf/b.txt").unlink(), ["gguf/b.txt is missing"]),
    "extra": (lambda release: (release / ".gitignore").write_text("*"), [".gitignore is not in the signature"]),
    "renamed": (
        lambda release: (release / "gguf/b.txt").rename(release / "gguf/c.txt"),
        ["gguf/b.txt was renamed: its bytes are in gguf/c.txt"],
    ),
    "swapped": (
        swap,
        ["gguf/a.json was swapped with merged/a.json", "merged/a.json was swapped with gguf/a.json"],
    ),
    "replaced": (replace, ["merged/a.json was replaced by the bytes of gguf/a.json"]),
    "a link": (link_outside, ["gguf/b.txt is a link to"]),
    "a link to nowhere": (
        lambda release: link_outside(release, "nowhere"),
        ["gguf/b.txt is a link to", "gguf/b.txt is missing"],
    ),
    "a linked folder": (link_folder, ["gguf is a link to", "gguf/a.json is missing", "gguf/b.txt is missing"]),
    "a pipe": (lambda release: os.mkfifo(release / "pipe"), ["pipe is neither a file nor a folder"]),
    "an empty folder": (lambda release: (release / "empty").mkdir(), ["empty is an empty folder"]),
}


@pytest.mark.parametrize("case", CASES)
def test_each_kind_of_change_has_its_sentence(release: Path, keys: Path, case: str) -> None:
    change, sentences = CASES[case]
    change(release)
    with pytest.raises(Refusal) as refused:
        verify(None, release, keys / "ann.pub")
    lines = str(refused.value).splitlines()[1:]
    assert len(lines) == len(sentences)
    for line, sentence in zip(lines, sentences, strict=True):
        assert sentence in line
    with pytest.raises(Refusal):
        verify(None, release)


NAMES = st.sampled_from([f"{folder}{name}" for folder in ("", "a/", "b/") for name in "xyz"])
FOLDERS = st.dictionaries(NAMES, st.sampled_from(["1", "2", "3", "4"]))


@given(FOLDERS, FOLDERS)
def test_every_difference_is_named_and_nothing_else(before: dict[str, str], after: dict[str, str]) -> None:
    said = list(changes(before, after, "the signature"))
    touched = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    for name in touched:
        assert any(name in sentence.split(" ") for sentence in said)
    assert {sentence.split(" ")[0] for sentence in said} <= touched
    assert (said == []) == (before == after)


@given(st.permutations(sorted(FILES)))
def test_whatever_is_permuted_is_named(order: list[str]) -> None:
    before = dict(zip(sorted(FILES), "1234", strict=True))
    after = dict(zip(order, "1234", strict=True))
    named = {sentence.split(" ")[0] for sentence in changes(before, after, "the signature")}
    assert named == {name for name in FILES if before[name] != after[name]}


def test_another_key_and_a_changed_signature_are_refused(release: Path, keys: Path) -> None:
    with pytest.raises(Refusal, match=r"is no signature by .*ben\.pub"):
        verify(None, release, keys / "ben.pub")
    place = release.parent / "release.sig"
    content, rng, accepted = place.read_bytes(), random.Random(3), 0
    for _ in range(200):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        place.write_bytes(flipped)
        with contextlib.suppress(Refusal):  # any other error is one
            accepted += differences(release, keys) == []  # such as the last bits of Base64, which say nothing
    assert accepted < 20
    for text in ("", "[]", "{}", '{"verificationMaterial": {}}', "null", "[" * 10_000):
        place.write_text(text)
        with pytest.raises(Refusal, match="is no signature by"):
            differences(release, keys)
    place.unlink()
    with pytest.raises(UserError, match=r"release\.sig is missing; `tunetrail sign"):
        differences(release, keys)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("encrypted", "is encrypted; give one that is not"),
        ("none", "No such file"),
        *((name, "is no private key for ECDSA") for name in ("rsa", "ed", "curve", "text")),
    ],
)
def test_a_key_that_does_not_serve_gets_a_sentence(release: Path, keys: Path, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        sign(release.parent, release, keys / f"{name}.pem", release.parent / "new.sig")
    assert "SECRET" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert not (release.parent / "new.sig").exists()


def test_a_private_key_does_not_verify(release: Path, keys: Path) -> None:
    with pytest.raises(UserError, match="is no public key"):
        verify(None, release, keys / "ann.pem")


def test_the_command_signs_what_verifies_and_no_more(scratch: Scratch, keys: Path, tmp_path: Path) -> None:
    shutil.copy(keys / "ann.pem", scratch.root / "ann.pem")
    answer = scratch.tunetrail("sign", "--key", "ann.pem")
    assert (answer.code, "git does not ignore it" in answer.err) == (2, True)
    (scratch.root / "ann.pem").unlink()
    inside = scratch.tunetrail("sign", "--key", str(keys / "ann.pem"), "--signature", "models/release/release.sig")
    assert (inside.code, "put it beside release" in inside.err) == (2, True)
    answer = scratch.tunetrail("sign", "--key", str(keys / "ann.pem"))
    assert answer.out == "Signed release: 6 files, in release.sig; commit it beside dvc.lock\n"
    private = (keys / "ann.pem").read_text().splitlines()[1]
    assert private not in (scratch.root / "release.sig").read_text()
    answer = scratch.tunetrail("verify", "--key", str(keys / "ann.pub"))
    assert (answer.code, "release.sig is the signature of these files by ann.pub" in answer.out) == (0, True)
    (scratch.root / "models/release/nf4/new.txt").write_text("new")
    answer = scratch.tunetrail("sign", "--key", str(keys / "ann.pem"))
    assert (answer.code, "nf4/new.txt is not in the manifest" in answer.err) == (1, True)


def test_the_folder_alone_verifies_on_a_machine_without_git(
    scratch: Scratch, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch.tunetrail("sign", "--key", str(keys / "ann.pem"))
    away = tmp_path / "away"
    shutil.copytree(scratch.root / "models/release", away / "mine")
    shutil.copy(scratch.root / "release.sig", away / "by-ann.sig")
    monkeypatch.setenv("PATH", str(tmp_path))
    signature = ("--key", str(keys / "ann.pub"), "--signature", "by-ann.sig")
    answer = scratch.tunetrail("verify", "mine", *signature, cwd=away)
    assert (answer.err, answer.code) == ("", 0)
    assert "by-ann.sig is the signature of these files by ann.pub" in answer.out
    assert "only a signature says" in scratch.tunetrail("verify", "mine", cwd=away).out
    (away / "mine/README.md").write_text("# Another model")
    answer = scratch.tunetrail("verify", "mine", *signature, cwd=away)
    assert (answer.code, "README.md has other bytes than the signature says" in answer.err) == (1, True)
    assert "no dvc.yaml" in scratch.tunetrail("verify", cwd=away).err
    assert "--signature needs --key" in scratch.tunetrail("verify", "mine", *signature[2:], cwd=away).err


def test_files_linked_into_the_cache_of_dvc_are_signed_as_files(scratch: Scratch, keys: Path) -> None:
    scratch.dvc("config", "cache.type", "symlink")
    scratch.dvc("checkout", "--relink")
    assert any(file.is_symlink() for file in files_under(scratch.root / "models/release"))
    assert scratch.tunetrail("sign", "--key", str(keys / "ann.pem")).code == 0
    assert scratch.tunetrail("verify", "--key", str(keys / "ann.pub")).code == 0
