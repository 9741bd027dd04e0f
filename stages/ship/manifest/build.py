"""The manifest: content hashes alone, so that the same content gives the same manifest on every day."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.files import file_digest, files_under
from stages.core.run_notes import library_versions
from stages.core.yaml_reader import load_yaml
from stages.params import Params, read_params

FORMAT = 1
_SHIPPED = (paths.MERGED, paths.NF4, paths.INT8)


def build_manifest(params: Params) -> dict[str, Any]:
    """Hash every file that dvc.yaml names as a dependency of this stage, sorted by what it is.

    The dependencies in dvc.yaml are the one list of what makes a release; what is hashed is what DVC watches.
    """
    deps = stage_dependencies("manifest")
    return {
        "format": FORMAT,
        "files": {file.relative_to(paths.RELEASE).as_posix(): hashes(file) for file in _files(_SHIPPED)},
        "adapter": _hashed([paths.ADAPTER]),
        "base": {
            "source": params.model.source,
            "sha256": params.model.sha256,
            "licence": params.model.licence,
            "files": _hashed([paths.BASE]),
        },
        "data": _hashed(dep for dep in deps if not _is_of_the_project(dep)),
        "code": {
            file.as_posix(): file_digest(file)
            for file in _files(dep for dep in deps if dep.parts[0] == "stages" or len(dep.parts) == 1)
        },
        "params": params.model_dump(mode="json"),
        "metrics": _hashed(dep for dep in deps if dep.parts[0] == "metrics"),
        "libraries": library_versions(),
    }


def hashes(file: Path) -> dict[str, Any]:
    """SHA-256 for people and other tools, MD5 because DVC names contents by it, size in bytes."""
    return {"sha256": file_digest(file), "md5": file_digest(file, "md5"), "bytes": file.stat().st_size}


def stage_dependencies(stage: str) -> list[Path]:
    """The stage's `deps` in dvc.yaml with ${section.key} filled in from params.yaml."""
    values = read_params()

    def fill(match: re.Match[str]) -> str:
        value: Any = values
        for key in match.group(1).split("."):
            value = value[key]
        return str(value)

    entry = load_yaml(paths.PIPELINE.read_bytes())["stages"][stage]
    return [Path(re.sub(r"\$\{([\w.]+)\}", fill, dep)) for dep in entry["deps"]]


def _is_of_the_project(dep: Path) -> bool:
    """Not data: code, models, metrics, and the files at the top. A raw file outside the repository is data."""
    return dep.parts[0] in ("stages", "models", "metrics") or len(dep.parts) == 1


def _files(places: Iterable[Path]) -> list[Path]:
    return [file for place in places for file in files_under(place)]


def _hashed(places: Iterable[Path]) -> dict[str, Any]:
    return {file.as_posix(): hashes(file) for file in _files(places)}
