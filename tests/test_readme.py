"""The README's commands, run as printed on the tiny pipeline; .ci/run runs the first two."""

import re
import shutil
from pathlib import Path

import pytest
from dvc.utils.serialize import dumps_yaml
from project import ROOT, commit, run

from stages.core.yaml_reader import load_yaml

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line.partition("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]


def test_the_gate_runs_the_first_commands() -> None:
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert COMMANDS[:2] == ["make repro", "make test"]
    assert all(command in gate for command in COMMANDS[:2])


def test_every_other_command_runs(pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(pipeline.parent, tmp_path / "copy", symlinks=True)
    repository = tmp_path / "copy" / pipeline.name
    # The tiny model learns nothing, so the gates that refuse a release must ask nothing of it.
    params = load_yaml((repository / "params.yaml").read_text(encoding="utf-8"))
    (repository / "params.yaml").write_text(dumps_yaml(params | {"gates": {}}), encoding="utf-8")
    run(repository, "dvc", "repro")
    commit(repository, "No gates")
    for command in COMMANDS[2:]:
        run(repository, "bash", "-c", command)


def test_files_and_folders_that_it_names_exist(pipeline: Path) -> None:
    names = set(re.findall(r"`((?:data|models|metrics|examples|stages)/[\w./-]*)`", README))
    assert names
    for name in names:
        assert (ROOT / name).exists() or (pipeline / name).exists(), f"README names {name}"


@pytest.mark.parametrize("file", sorted((ROOT / "examples").rglob("params.yaml")), ids=lambda file: file.parent.name)
def test_example_parameters_are_valid(file: Path) -> None:
    from stages.params import Params, load_params
    from stages.text.strict_json import Schema

    params = load_params(*Params.model_fields, path=file)
    Schema(ROOT / params.task.schema_file)
