"""dvc.yaml names all that a stage reads: DVC itself follows neither Python's imports nor its attributes."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from completeness import (
    attributes_read,
    canonical,
    import_closure,
    imported,
    missing_dependencies,
    needless_dependencies,
    packages_imported,
    paths_used,
    pins,
    pipeline,
    sections_read,
)
from packaging.requirements import Requirement
from pydantic import BaseModel

from stages.core import paths
from stages.core.yaml_reader import load_yaml
from stages.params.loader import Params, read_params
from stages.params.measure import Gate

ROOT = Path(__file__).parents[1]
STAGES = sorted(pipeline(ROOT))
# Read by `tunetrail holdout draw`, which writes the lock that the split stage depends on.
DRAWN_WITH = {Path("stages/prepare/split/draw.py")}
# Of vLLM's pins, which are of an environment of its own, no stage depends: its server is asked again each time.
PINS = {file.name: pins(file) for file in sorted((ROOT / "constraints").glob("*.txt")) if file.stem != "vllm"}
# Of constraints/tools.txt: they read, check, ask or show, and no result depends on their version.
NO_RESULT = {
    "configobj",
    "dvc",
    "dvc-data",
    "dvclive",
    "google-auth",  # has the name `google` in common with protobuf, and nothing here imports it
    "openai",
    "pathspec",
    "platformdirs",
    "pydantic",
    "pyyaml",
    "ray",
    "requests",
    "rich",
    "ruamel-yaml",
    "urllib3",
}
# Not tracked by DVC: parameters and the pipeline are watched by other means, the rest lies outside the trail.
OUTSIDE = {
    "PARAMS",
    "PIPELINE",
    "ENVIRONMENT",
    "TRACKED_RUNS",
    "CHECKPOINTS",
    "CONSTRAINTS",
    "JUDGE_REPLIES",
    "PARAPHRASE_REPLIES",
}


def test_what_runs_before_every_stage_changes_speed_alone() -> None:
    statements = ast.parse((ROOT / "stages" / "__init__.py").read_text(encoding="utf-8")).body
    assert [ast.unparse(one) for one in statements[1:]] == [
        "import os",
        "if 'OMP_WAIT_POLICY' not in os.environ:\n"
        "    os.environ['OMP_WAIT_POLICY'] = 'passive'\n"
        "    os.environ.setdefault('GOMP_SPINCOUNT', '1000')",
    ]


SAID = [({}, "passive 1000"), ({"OMP_WAIT_POLICY": "active"}, "active None"), ({"GOMP_SPINCOUNT": "7"}, "passive 7")]


@pytest.mark.parametrize(("given", "seen"), SAID)
def test_how_threads_wait_is_set_unless_the_user_has_said_it(given: dict[str, str], seen: str) -> None:
    code = "import os, stages; print(os.environ['OMP_WAIT_POLICY'], os.environ.get('GOMP_SPINCOUNT'))"
    others = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=others | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == seen


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
def test_a_stage_depends_on_the_pins_of_what_it_imports_and_on_no_others(stage: str) -> None:
    imported = packages_imported(ROOT, stage) - NO_RESULT
    named = {dep.partition("/")[2] for dep in pipeline(ROOT)[stage]["deps"] if dep.startswith("constraints/")}
    pinned = {name for file in named for name in PINS[file]}
    assert imported - pinned == set()
    if stage != "manifest":  # it names all that made the release
        assert [file for file in named if not imported & PINS[file].keys()] == []


def test_a_change_of_a_data_library_or_of_a_tool_does_not_train_again() -> None:
    deps = pipeline(ROOT)["train"]["deps"]
    assert [dep for dep in deps if dep.startswith("constraints")] == ["constraints/model.txt"]
    assert not {"rapidfuzz", "numba", "ftfy", "dvc", "requests", "openai"} & PINS["model.txt"].keys()


def test_what_answers_and_judges_does_not_train_again() -> None:
    """How answers are generated, and what they must keep to, is no business of training."""
    assert set(pipeline(ROOT)["train"]["params"]) == {"seed", "task.instruction", "task.instructions", "train"}


@pytest.mark.parametrize(("file", "other"), [("model.txt", "data.txt"), ("data.txt", "model.txt")])
def test_what_a_pinned_package_needs_is_pinned_beside_it(file: str, other: str) -> None:
    """Or among the tools, which change no result; never in the file of the other stages alone."""
    needed = {(name, one) for name in PINS[file] for one in _requirements(name)}
    assert {(name, one) for name, one in needed if one not in PINS[file] and one in PINS[other]} == set()


def test_everything_that_the_project_needs_is_pinned_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    every: dict[str, str] = {}
    for file in PINS.values():
        assert {name for name in file.keys() & every.keys() if file[name] != every[name]} == set()
        every |= file
    assert {canonical(Requirement(one).name) for one in project["dependencies"]} - every.keys() == set()
    dev = [one.split("==") for one in project["optional-dependencies"]["dev"]]
    assert [name for name, version in dev if every.get(canonical(name), version) != version] == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_few_folders_of_code(stage: str) -> None:
    code = [dep for dep in pipeline(ROOT)[stage]["deps"] if dep.startswith("stages")]
    assert len(code) <= 8
    assert all((ROOT / dep).is_dir() for dep in code)


def test_the_files_that_people_read_stay_short() -> None:
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 330
    assert len(params.splitlines()) <= 115
    assert _values(load_yaml(params)) <= 80


def test_no_file_that_a_stage_reads_is_empty() -> None:
    """DVC warns of an empty dependency in every run. What stages write is looked at where the pipeline runs."""
    values = read_params(ROOT / "params.yaml")
    for entry in pipeline(ROOT).values():
        for dep in entry["deps"]:
            section, _, key = dep.removeprefix("${").removesuffix("}").partition(".")
            path = ROOT / (values[section][key] if dep.startswith("${") else dep)
            assert not path.is_file() or path.stat().st_size, f"{path} is empty"


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
    assert [key for key in _keys() if not _read_somewhere(ROOT, key)] == []


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
    assert not _read_somewhere(ROOT, "train.a_key_that_nobody_reads")


def _places(entry: dict[str, Any]) -> list[Any]:
    return [place for kind in ("deps", "outs", "metrics", "plots") for place in entry.get(kind, [])]


def _values(node: Any) -> int:
    """Numbers, words and lists; an empty mapping counts as one."""
    return max(sum(map(_values, node.values())), 1) if isinstance(node, dict) else 1


def _requirements(name: str) -> set[str]:
    try:
        given = map(Requirement, distribution(name).requires or [])
    except PackageNotFoundError:
        return set()
    return {canonical(one.name) for one in given if one.marker is None or one.marker.evaluate({"extra": ""})}


def _keys() -> list[str]:
    """Every section.key of the schema; of the gates, the keys that each may have."""
    keys: list[str] = []
    for section, field in Params.model_fields.items():
        annotation: Any = Gate if section == "gates" else field.annotation
        inner = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        keys += [f"{section}.{key}" for key in annotation.model_fields] if inner else [section]
    return keys


def _read_somewhere(root: Path, key: str) -> bool:
    """Whether a stage that declares the key, or its section, reads an attribute of its name or depends on its file."""
    section, name = key.partition(".")[0], key.rpartition(".")[2]
    for stage, entry in pipeline(root).items():
        if not {section, key} & set(entry.get("params", [])):
            continue
        files = import_closure(root, stage) | (DRAWN_WITH if section == "holdout" else set())
        if name in attributes_read(root, {file for file in files if file.parent.name != "params"}):
            return True
        if f"${{{key}}}" in entry["deps"]:
            return True
    return False


def _copy(folder: Path) -> Path:
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", folder)
    return folder


def test_no_two_files_have_one_name() -> None:
    """A name that stands twice says in neither place what the file holds."""
    names = Counter(file.name for file in (ROOT / "stages").rglob("*.py") if not file.name.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []


LAYERS = ("core", "params", "text", "records", "near_duplicates", "model", "engines", "scoring")  # docs/architecture.md
# The two stages that use another's room: prefer trains as train does, and what a model writes is cleaned as any row is.
GOES_ON_FROM = {"prefer": "train", "augment": "clean"}
CHAPTERS = ("prepare", "tune", "measure", "ship", "report", "team", "weekly")


def strangers(root: Path) -> list[str]:
    """Imports against the order: a layer of a later one or of a chapter, a stage of another stage."""
    found = []
    for file in sorted((root / "stages").rglob("*.py")):
        place = file.relative_to(root / "stages").parts
        for module in imported(file.read_text(encoding="utf-8")):
            there = module.split(".")[1:]
            if len(place) == 1 or module.split(".")[0] != "stages" or not there:
                continue
            if place[0] in LAYERS:
                bad = there[0] not in LAYERS[: LAYERS.index(place[0]) + 1]
            else:
                of_a_stage = len(place) > 2 and place[0] != "report"
                another_stage = of_a_stage and len(there) > 1 and there[1] not in (place[1], GOES_ON_FROM.get(place[1]))
                bad = there[0] in CHAPTERS and (there[0] != place[0] or another_stage)
            if bad:
                found.append(f"{'/'.join(place)} imports {module}")
    return found


def test_a_layer_knows_those_before_it_and_a_stage_no_other_stage() -> None:
    assert {folder.name for folder in (ROOT / "stages").iterdir() if folder.is_dir()} - {"__pycache__"} == {
        *LAYERS,
        *CHAPTERS,
    }
    assert strangers(ROOT) == []


def test_an_import_against_the_order_is_found(tmp_path: Path) -> None:
    root = _copy(tmp_path)
    (root / "stages/text/upward.py").write_text("from stages.records.record import Record\n")
    (root / "stages/measure/judge/across.py").write_text("from stages.measure.review.server import serve\n")
    (root / "stages/tune/train/across.py").write_text("import stages.prepare.clean.cleaning\n")
    assert strangers(root) == [
        "measure/judge/across.py imports stages.measure.review.server",
        "measure/judge/across.py imports stages.measure.review.server.serve",
        "text/upward.py imports stages.records.record",
        "text/upward.py imports stages.records.record.Record",
        "tune/train/across.py imports stages.prepare.clean.cleaning",
    ]
