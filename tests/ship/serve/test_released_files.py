"""What may be served: released, verified and signed; a version comes out of DVC into a folder of its own."""

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from gto.api import deregister
from scratch import Scratch

from stages.core.errors import Refusal, UserError
from stages.core.files import tree_digest
from stages.ship.release.released_files import find_release
from stages.ship.release.verify import sign

pytest_plugins = ["scratch_fixtures"]

RELEASE = "models/release"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    private = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(public)
    return tmp_path / "key.pub"


@pytest.fixture
def released(scratch: Scratch, key: Path) -> Scratch:
    """1.0.0, signed; the working tree has gone on to other files."""
    scratch.write(
        "params.yaml", (scratch.root / "params.yaml").read_text() + "task:\n  schema_file: data/raw/a.jsonl\n"
    )
    sign(scratch.root, scratch.root / RELEASE, key.with_suffix(".pem"), scratch.root / "release.sig")
    scratch.commit("Signed")
    said = scratch.tunetrail("release", "1.0.0", "--key", str(key))
    assert said.code == 0, said.err
    return scratch


def test_a_version_comes_out_of_dvc_as_it_was_released(released: Scratch, key: Path) -> None:
    root, before = released.root, tree_digest(released.root / RELEASE)
    released.replace("params.yaml", "1e-3", "2e-3")
    released.dvc("repro")
    released.commit("Run B")
    assert tree_digest(root / RELEASE) != before
    found = find_release(root, root, key, None, "1.0.0")
    assert found.id == "support-tickets@v1.0.0"
    assert found.tree == root / ".tunetrail/releases/v1.0.0"
    assert tree_digest(found.folder) == before
    assert (found.tree / "data/split/holdout.jsonl").is_file()
    assert (found.tree / "data/raw/a.jsonl").is_file()
    assert find_release(root, root, key, None, "v1.0.0") == found  # brought once
    (found.folder / "merged/tokenizer.json").write_text("changed")
    with pytest.raises(Refusal, match=r"merged/tokenizer\.json has other bytes"):
        find_release(root, root, key, "I know", "1.0.0")


def test_what_speaks_against_it_is_said_at_once_and_waived_with_a_reason_alone(
    released: Scratch, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = released.root
    assert find_release(root, root, key, None, RELEASE).id == "support-tickets@v1.0.0"
    with pytest.raises(Refusal, match="its signature was not checked") as refused:
        find_release(root, root, None, None, RELEASE)
    assert "no release tag" not in str(refused.value)
    released.git("tag", "--delete", "support-tickets@v1.0.0")
    with pytest.raises(Refusal, match=r"(?s)no release tag records its manifest.*its signature was not checked"):
        find_release(root, root, None, None, RELEASE)
    with pytest.raises(UserError, match="needs a reason"):
        find_release(root, root, None, " ", RELEASE)
    assert find_release(root, root, None, "a look", RELEASE).id.startswith("sha256-")
    assert "served nevertheless (a look): no release tag" in capsys.readouterr().out


def test_a_release_of_another_project_has_that_one_s_tags_and_rows(
    released: Scratch, key: Path, tmp_path: Path
) -> None:
    other = Scratch(tmp_path / "returns")
    released.git("worktree", "add", "--quiet", "-b", "returns", str(other.root))
    other.replace("dvc.yaml", "support-tickets", "returns")
    other.replace("params.yaml", "1e-3", "2e-3")
    other.dvc("repro")
    sign(other.root, other.root / RELEASE, key.with_suffix(".pem"), other.root / "release.sig")
    other.commit("A project of its own")
    said = other.tunetrail("release", "1.0.0", "--stage", "prod", "--key", str(key))
    assert said.code == 0, said.err
    found = find_release(released.root, released.root, key, None, f"../returns/{RELEASE}")
    assert found == ("returns@v1.0.0", other.root / RELEASE, other.root)
    # Releases and stages of the two are apart, though they share one git repository.
    assert "support-tickets@v1.0.0" not in other.tunetrail("history").out + other.git("tag", "--list", "returns*")
    assert released.tunetrail("history", "--stage", "prod").code == 2
    assert other.tunetrail("rollback", "1.0.0", "--stage", "prod").code == 0
    assert released.tunetrail("verify", "--key", str(key)).code == 0
    assert released.git("status", "--porcelain", "--untracked-files=no") == ""


def test_a_version_that_is_not_there_or_was_moved_is_a_sentence(released: Scratch, key: Path) -> None:
    root = released.root
    with pytest.raises(UserError, match=r"there is no tag support-tickets@v3\.0\.0"):
        find_release(root, root, key, None, "3.0.0")
    shutil.rmtree(root / ".dvc/cache")
    with pytest.raises(UserError, match=r"files of support-tickets@v1\.0\.0 cannot be had"):
        find_release(root, root, key, None, "1.0.0")
    assert not (root / ".tunetrail/releases/v1.0.0").exists()


def test_a_version_that_was_withdrawn_is_not_served(released: Scratch, key: Path) -> None:
    deregister(str(released.root), "support-tickets", version="v1.0.0")
    with pytest.raises(Refusal, match=r"support-tickets@v1\.0\.0 was withdrawn"):
        find_release(released.root, released.root, key, None, "1.0.0")
