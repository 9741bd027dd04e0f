"""Compute what a stage really depends on, to hold dvc.yaml against it."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from stage_modules import module_of

from stages.core.yaml_reader import load_yaml


def pipeline(root: Path) -> dict[str, Any]:
    return _stages((root / "dvc.yaml").read_text(encoding="utf-8"))


@cache
def _stages(definition: str) -> dict[str, Any]:
    stages: dict[str, Any] = load_yaml(definition)["stages"]
    return stages


def _room(stage: str) -> Path:
    return Path(*module_of(stage).split("."))


def import_closure(root: Path, stage: str) -> set[Path]:
    """The project's files that `python -m stages.STAGE` can import, imports inside functions included."""
    pending, found = [root.joinpath(*module_of(stage).split("."), "__main__.py")], set()
    while pending:
        file = pending.pop()
        if file in found:
            continue
        found.add(file)
        for module in imported(file.read_text(encoding="utf-8")):
            pending += _files_of(root, module)
    return {file.relative_to(root) for file in found if file.stat().st_size}


@cache  # by the text: the same files are asked for again and again
def imported(source: str) -> tuple[str, ...]:
    return tuple(_imports(ast.parse(source)))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _files_of(root: Path, module: str) -> list[Path]:
    """The file of a project module and the __init__.py of every package above it."""
    parts = module.split(".")
    if parts[0] != "stages":
        return []
    # Not that of stages/ itself: it changes speed alone, which tests/test_completeness.py holds it to.
    files = [root.joinpath(*parts[:n], "__init__.py") for n in range(2, len(parts) + 1)]
    files.append(root.joinpath(*parts).with_suffix(".py"))
    return [file for file in files if file.is_file()]


def missing_dependencies(root: Path, stage: str) -> set[str]:
    """Files of the import closure that the stage's `deps` do not cover."""
    deps = [Path(dep) for dep in pipeline(root)[stage]["deps"]]
    closure = import_closure(root, stage)
    return {file.as_posix() for file in closure if not any(file == dep or dep in file.parents for dep in deps)}


def needless_dependencies(root: Path, stage: str) -> set[str]:
    """Code that the stage's `deps` list and that it cannot import."""
    deps = [dep for dep in pipeline(root)[stage]["deps"] if dep.startswith("stages")]
    closure = import_closure(root, stage)
    return {dep for dep in deps if not any(file == Path(dep) or Path(dep) in file.parents for file in closure)}


def sections_read(root: Path, stage: str) -> set[str]:
    """The sections named in calls of `load_params`, which lets no other section be read."""
    names: set[str] = set()
    for file in import_closure(root, stage):
        if file.parent != _room(stage):
            continue
        for node in ast.walk(ast.parse((root / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "load_params":
                names |= {ast.literal_eval(argument) for argument in node.args}
    return names


def packages_imported(root: Path, stage: str) -> set[str]:
    """The distributions whose modules the import closure imports; those that are not installed are left out."""
    owners = packages_distributions()
    modules = {module for file in import_closure(root, stage) for module in imported((root / file).read_text("utf-8"))}
    return {canonical(owner) for module in modules for owner in owners.get(module.partition(".")[0], [])} - {
        "tunetrail"
    }


def pins(file: Path) -> dict[str, str]:
    """Version by canonical name of a file of constraints."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def attributes_read(root: Path, files: set[Path]) -> set[str]:
    """Every name that is read as an attribute in these files."""
    return set().union(*(_attributes((root / file).read_text(encoding="utf-8")) for file in files))


@cache
def _attributes(source: str) -> frozenset[str]:
    return frozenset(node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))


def paths_used(root: Path, stage: str) -> set[str]:
    """Names of the constants of stages/core/paths.py that the stage's own room uses."""
    return {
        node.attr
        for file in import_closure(root, stage)
        if file.parent == _room(stage)
        for node in ast.walk(ast.parse((root / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "paths"
        if node.attr.isupper()
    }
