"""Settings of this machine: from the environment, else from machine.yaml; no stage depends on them."""

from pathlib import Path

import pytest

from stages.core.errors import UserError
from stages.core.machine import Machine, machine_settings
from stages.core.yaml_reader import load_yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Machine.model_fields:
        monkeypatch.delenv(f"TUNETRAIL_{name.upper()}", raising=False)


def test_everything_fits_the_machine_by_itself() -> None:
    assert machine_settings() == Machine()
    assert Machine().packing == Machine().generation_tokens == "auto"


def test_the_environment_comes_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("machine.yaml").write_text("packing: false\nmicro_batch_tokens: 4096\ncompile: none\n")
    monkeypatch.setenv("TUNETRAIL_MICRO_BATCH_TOKENS", "512")
    monkeypatch.setenv("TUNETRAIL_CHECKPOINTING", "true")
    settings = machine_settings()
    assert (settings.packing, settings.compile) == (False, "none")
    assert (settings.micro_batch_tokens, settings.checkpointing) == (512, True)


def test_a_copy_for_an_experiment_has_the_settings_of_its_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "machine.yaml").write_text("packing: false\n")
    copy = tmp_path / ".dvc/tmp/exps/tmp1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert machine_settings().packing is False


def test_all_mistakes_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("machine.yaml").write_text("pakking: false\nattention: flash\n")
    monkeypatch.setenv("TUNETRAIL_GENERATION_TOKENS", "0")
    monkeypatch.setenv("TUNETRAIL_SHARDNG", "true")
    with pytest.raises(UserError) as caught:
        machine_settings()
    head, *lines = str(caught.value).split("\n  ")
    assert head == "this machine's settings:"
    assert sorted(lines) == [
        "TUNETRAIL_GENERATION_TOKENS: 0 is not allowed: input should be greater than or equal to 1, "
        "or input should be 'auto'",
        "TUNETRAIL_SHARDNG: unknown setting; did you mean sharding?",
        "machine.yaml: attention: 'flash' is not allowed: input should be 'auto', 'varlen' or 'sdpa'",
        "machine.yaml: pakking: unknown setting; did you mean packing?",
    ]


@pytest.mark.parametrize("text", ["- packing\n", "packing: [\n", "packing: true\npacking: false\n", "\xff"])
def test_a_file_that_is_none_is_a_sentence(text: str) -> None:
    Path("machine.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"^machine\.yaml: "):
        machine_settings()


def test_git_ignores_the_file_and_no_stage_depends_on_it() -> None:
    assert "machine.yaml" in (ROOT / ".gitignore").read_text().splitlines()
    for stage in load_yaml((ROOT / "dvc.yaml").read_text())["stages"].values():
        assert "machine.yaml" not in stage["deps"]
