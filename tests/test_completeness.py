"""dvc.yaml names all that a stage reads: DVC itself follows neither Python's imports nor its attributes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from completeness import (
    attributes_read,
    import_closure,
    missing_dependencies,
    needless_dependencies,
    paths_used,
    pipeline,
    sections_read,
)
from pydantic import BaseModel

from stages.core import paths
from stages.params import Gate, Params

ROOT = Path(__file__).parents[1]
STAGES = sorted(pipeline(ROOT))
# Read by `tunetrail holdout draw`, which writes the lock that the split stage depends on.
DRAWN_WITH = {Path("stages/prepare/split/draw.py")}
# Not tracked by DVC: parameters and the pipeline are watched by other means, the rest lies outside the trail.
OUTSIDE = {"PARAMS", "PIPELINE", "ENVIRONMENT", "CHECKPOINTS", "CONSTRAINTS", "JUDGE_REPLIES"}


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_cover_the_import_closure(stage: str) -> None:
    assert missing_dependencies(ROOT, stage) == set()


def test_the_manifest_names_the_code_of_every_stage_before_it() -> None:
    deps = [Path(dep) for dep in pipeline(ROOT)["manifest"]["deps"]]
    for stage in set(STAGES) - {"manifest", "report"}:
        for file in import_closure(ROOT, stage):
            assert any(file == dep or dep in file.parents for dep in deps), f"{file} made the release and is not hashed"


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"manifest"}))  # the manifest hashes code, it does not import it
def test_no_code_is_watched_in_vain(stage: str) -> None:
    assert needless_dependencies(ROOT, stage) == set()


@pytest.mark.parametrize("stage", STAGES)
def test_declared_parameters_are_the_ones_that_are_read(stage: str) -> None:
    assert sections_read(ROOT, stage) == set(pipeline(ROOT)[stage].get("params", []))


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_depends_on_the_pinned_libraries(stage: str) -> None:
    assert paths.CONSTRAINTS.as_posix() in pipeline(ROOT)[stage]["deps"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_path_that_a_stage_uses_is_declared(stage: str) -> None:
    entry = pipeline(ROOT)[stage]
    declared = [Path(next(iter(item)) if isinstance(item, dict) else item) for item in _places(entry)]
    for name in paths_used(ROOT, stage) - OUTSIDE:
        path = getattr(paths, name)
        assert any(path == place or place in path.parents or path in place.parents for place in declared), (
            f"stages/{stage} uses paths.{name} ({path}), which its entry in dvc.yaml does not name"
        )


def test_every_parameter_is_read_by_a_stage_that_declares_it() -> None:
    unread = [key for section, key in _keys() if not _read_somewhere(ROOT, section, key)]
    assert unread == []


def test_a_forgotten_import_is_found(tmp_path: Path) -> None:
    root = _copy(tmp_path)
    (root / "stages" / "forgotten.py").write_text("VALUE = 1\n")
    main = root / "stages" / "prepare" / "clean" / "__main__.py"
    main.write_text(main.read_text() + "\n\ndef later() -> None:\n    from stages.forgotten import VALUE\n")
    assert missing_dependencies(root, "clean") == {"stages/forgotten.py"}
    assert missing_dependencies(root, "dedup") == set()


def test_an_undeclared_section_is_found(tmp_path: Path) -> None:
    root = _copy(tmp_path)
    main = root / "stages" / "prepare" / "dedup" / "__main__.py"
    main.write_text(main.read_text().replace('load_params("dedup"', 'load_params("train", "dedup"'))
    assert sections_read(root, "dedup") == {"dedup", "train"}


def test_a_parameter_that_nothing_reads_is_found() -> None:
    assert not _read_somewhere(ROOT, "train", "a_key_that_nobody_reads")


def _places(entry: dict[str, Any]) -> list[Any]:
    return [place for kind in ("deps", "outs", "metrics", "plots") for place in entry.get(kind, [])]


def _keys() -> list[tuple[str, str]]:
    """(section, key) of the whole schema; of the gates, the keys that each may have."""
    keys: list[tuple[str, str]] = []
    for section, field in Params.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += [(section, key) for key in annotation.model_fields]
        elif section == "gates":
            keys += [(section, key) for key in ("gates", *Gate.model_fields)]
        else:
            keys.append((section, section))
    return keys


def _read_somewhere(root: Path, section: str, key: str) -> bool:
    for stage, entry in pipeline(root).items():
        if section not in entry.get("params", []):
            continue
        files = import_closure(root, stage) | (DRAWN_WITH if section == "holdout" else set())
        if key in attributes_read(root, {file for file in files if file.parent.name != "params"}):
            return True
        if f"${{{section}.{key}}}" in entry["deps"]:
            return True
    return False


def _copy(folder: Path) -> Path:
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", folder)
    return folder
