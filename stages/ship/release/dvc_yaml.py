"""dvc.yaml: the stages as they are meant to run now."""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from stages.core.dvc_lock import Lock, Stage, load_yaml
from stages.core.git import Tree


@dataclass(frozen=True)
class Definition:
    """The content of dvc.yaml in one state of the repository."""

    content: dict[str, Any]

    @classmethod
    def read(cls, tree: Tree) -> "Definition":
        """dvc.yaml of `tree`; empty when it is missing or unreadable."""
        try:
            content = load_yaml(tree.read("dvc.yaml") or b"")
        except yaml.YAMLError:
            content = None
        return cls(content if isinstance(content, dict) else {})

    @property
    def stages(self) -> dict[str, Any]:
        return self.content.get("stages") or {}

    @property
    def metrics(self) -> list[str]:
        """The paths of all metrics files."""
        return [path for stage in self.stages.values() for path in _paths(stage.get("metrics"))]

    def artifact(self, path: str) -> str | None:
        """The name under which `path` is declared as an artifact, or None."""
        artifacts = self.content.get("artifacts") or {}
        return next((name for name, row in artifacts.items() if row.get("path") == path), None)

    def artifact_path(self, name: str) -> str | None:
        row = (self.content.get("artifacts") or {}).get(name) or {}
        return row.get("path")

    def differences(self, ran: Stage, label: str) -> Iterator[str]:
        """Where the stage as it ran is not the stage of dvc.yaml. What DVC fills in from `${...}` is not compared."""
        if "@" in ran.name:
            return
        stage = self.stages.get(ran.name)
        if not isinstance(stage, dict):
            yield f"dvc.yaml in {label} has no stage {ran.name}"
            return
        command = stage.get("cmd")
        if isinstance(command, str) and "${" not in command and command != ran.command:
            yield f"dvc.yaml in {label} runs stage {ran.name} as `{command}`; it ran as `{ran.command}`"
        for name in self.ran_without(ran):
            yield f"dvc.yaml in {label} lets stage {ran.name} read {name}; it ran without"

    def ran_without(self, ran: Stage) -> Iterator[str]:
        """The dependencies and parameters of dvc.yaml that the stage as it ran did not have."""
        stage = self.stages.get(ran.name) or {}
        if "wdir" in stage or "@" in ran.name:
            return
        known = {dep.path for dep in ran.deps}
        for path in _paths(stage.get("deps")):
            if "${" not in path and posixpath.normpath(path) not in known:
                yield path
        used = ran.params.get("params.yaml", {})
        for name in stage.get("params") or []:
            if isinstance(name, str) and name not in used:
                yield f"parameter {name}"

    def never_ran(self, lock: Lock) -> Iterator[str]:
        """The stages that dvc.lock does not know, one by one or as `NAME@...` of a matrix."""
        known = {name.partition("@")[0] for name in lock.stages}
        yield from (name for name in self.stages if name not in known)


def _paths(rows: Any) -> list[str]:
    """The paths of a list whose items are PATH or {PATH: options}."""
    names = [row if isinstance(row, str) else next(iter(row), "") for row in rows or []]
    return [str(name) for name in names]
