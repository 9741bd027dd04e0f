"""publish: the hub has the released bytes and no others, privately; a break goes on; what differs there is said."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_server import LARGE, Hub, serve_hub
from key_files import write_keys
from numpy import zeros
from safetensors.numpy import save
from scratch import Scratch

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.core.files import content_hashes, file_digest, files_under, write_json
from stages.ship.release.released_files import publish
from stages.ship.release.verify import sign

pytest_plugins = ["scratch_fixtures"]

FORMS = ("merged", "nf4")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    made = Hub()
    with serve_hub(made) as url:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release of two formats and an adapter beside it."""
    release, adapter = tmp_path / "release", tmp_path / "adapter"
    for number, place in enumerate([release / "merged", release / "nf4", adapter]):
        place.mkdir(parents=True)
        (place / "model.safetensors").write_bytes(save({"w": zeros(number + 1)}))
        (place / "config.json").write_text(json.dumps({"model": number}))
    (release / "README.md").write_text("# A model")
    files = {file.relative_to(release).as_posix(): content_hashes(file) for file in files_under(release)}
    adapted = {f"models/adapter/{file.name}": content_hashes(file) for file in files_under(adapter)}
    write_json(release / "manifest.json", {"files": files, "formats": {form: {} for form in FORMS}, "adapter": adapted})
    return release


def send(folder: Path, *forms: str, public: bool = False, version: str = "1.0.0") -> str:
    return publish(folder, folder.parent / "adapter", f"tickets@v{version}", "hub:ann/tickets", forms, public)


def local(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files_under(folder)}


def test_the_hub_has_the_files_of_the_release_and_the_repository_is_private(hub: Hub, folder: Path) -> None:
    said = send(folder)
    assert hub.files == local(folder)
    assert hub.visibility == {"ann/tickets": "private"}
    assert hub.tags == {"v1.0.0": hub.head}
    assert said == f"tickets@v1.0.0 is hub:ann/tickets at {hub.head[:10]}: 6 files, read back"
    assert hub.tokens == {"Bearer hf_writer"}


def test_a_public_repository_is_asked_for(hub: Hub, folder: Path) -> None:
    send(folder, public=True)
    assert hub.visibility == {"ann/tickets": "public"}


def test_formats_and_adapter_are_chosen(hub: Hub, folder: Path) -> None:
    send(folder, "nf4", "adapter")
    adapter = {f"adapter/{name}": content for name, content in local(folder.parent / "adapter").items()}
    wanted = {name: content for name, content in local(folder).items() if not name.startswith("merged/")}
    assert hub.files == wanted | adapter
    with pytest.raises(UserError, match=r"--format gguf: the release has merged, nf4 and adapter"):
        send(folder, "gguf")


def test_what_an_older_version_left_goes(hub: Hub, folder: Path) -> None:
    send(folder)
    first = hub.head
    send(folder, "merged", version="1.1.0")
    assert not any(name.startswith("nf4/") for name in hub.files)
    assert hub.tags == {"v1.0.0": first, "v1.1.0": hub.head}
    assert "nf4/model.safetensors" in hub.commits[first]


def test_the_tag_of_a_version_names_what_was_published_of_it_last(hub: Hub, folder: Path) -> None:
    send(folder, "nf4")
    first = hub.head
    send(folder)
    assert hub.head != first
    assert hub.tags == {"v1.0.0": hub.head}
    assert hub.files == local(folder)
    send(folder)  # nothing to send, and nothing to move
    assert hub.tags == {"v1.0.0": hub.head}


def test_a_break_publishes_nothing_and_the_next_run_sends_what_had_not_arrived(hub: Hub, folder: Path) -> None:
    hub.die_after = 1
    with pytest.raises(UserError, match=r"hub:ann/tickets did not take tickets@v1\.0\.0: .*run it again"):
        send(folder)
    assert hub.files == {}
    assert hub.tags == {}
    hub.die_after = None
    send(folder)
    assert hub.files == local(folder)
    assert sorted(hub.sent) == sorted(file_digest(file) for file in files_under(folder) if file.suffix == LARGE)


@pytest.mark.parametrize("name", ["merged/model.safetensors", "merged/config.json"])
def test_other_bytes_on_the_hub_are_named_and_get_no_tag(hub: Hub, folder: Path, name: str) -> None:
    hub.spoil = name
    with pytest.raises(Refusal, match=rf"hub:ann/tickets is not what was sent.*\n  {name} has other bytes"):
        send(folder)
    assert hub.tags == {}


def test_an_adapter_of_another_run_is_refused_before_anything_is_sent(hub: Hub, folder: Path) -> None:
    (folder.parent / "adapter" / "config.json").write_text("{}")
    with pytest.raises(Refusal, match=r"models/adapter/config\.json has other bytes"):
        send(folder, "adapter")
    assert not hub.visibility


def test_mistakes_are_sentences_without_the_token(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="expected hub:OWNER/NAME"):
        publish(folder, folder, "tickets@v1.0.0", "ann/tickets", (), False)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(UserError, match="did not take") as refused:
        send(folder)
    assert "hf_reader" not in str(refused.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="offline mode"):
        send(folder)


def test_a_version_is_published_and_what_is_not_released_is_not(
    hub: Hub, scratch: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = write_keys(tmp_path, "release")
    sign(scratch.root, scratch.root / paths.RELEASE, private, scratch.root / paths.SIGNATURE)
    scratch.commit("Signed")
    words = "publish", "1.0.0", "hub:ann/tickets", "--format", "nf4", "--format", "adapter"
    assert "there is no tag support-tickets@v1.0.0" in scratch.tunetrail(*words, "--key", str(public)).err
    assert scratch.tunetrail("release", "1.0.0", "--key", str(public)).code == 0
    scratch.replace("params.yaml", "1e-3", "2e-3")  # the working tree goes on
    scratch.dvc("repro")
    refused = scratch.tunetrail(*words)
    assert (refused.code, hub.visibility) == (1, {})
    assert "its signature was not checked" in refused.err
    said = scratch.tunetrail(*words, "--key", str(public))
    assert said.code == 0, said.err
    assert "support-tickets@v1.0.0 is hub:ann/tickets" in said.out
    manifest = json.loads(hub.files["manifest.json"])
    for name, row in [("nf4/model", manifest["files"]), ("adapter/adapter", manifest["adapter"])]:
        file = f"{name}.safetensors"
        recorded = row.get(file) or row[f"models/{file}"]
        assert hashlib.sha256(hub.files[file]).hexdigest() == recorded["sha256"]
    assert not any(name.startswith("merged/") for name in hub.files)
