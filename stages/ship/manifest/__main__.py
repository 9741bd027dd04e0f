"""manifest: hashes of every file that ships and of all that made it; the model card, bill of materials, attestations.

A stage of its own, so that a changed parameter or comment upstream that leaves the weights as they are costs a
second here and not another round of merging, quantising and judging. It holds content hashes alone, so that the same
content gives the same manifest on every day.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.dependencies import filled_in
from stages.core.errors import run
from stages.core.files import content_hashes, file_digest, files_under, read_json, write_json, write_text
from stages.core.run_notes import library_versions
from stages.core.yaml_reader import load_yaml
from stages.params.loader import Params, load_params
from stages.ship.manifest.documents import bill_of_materials, model_card, provenance, test_result

FORMAT = 2  # described by manifest.schema.json
_METRICS = (
    paths.BASELINE_METRICS,
    paths.TRAIN_METRICS,
    paths.PREFER_METRICS,
    paths.EVALUATE_METRICS,
    paths.QUANTIZE_METRICS,
    paths.GATES,
)
_DOCUMENTS = (paths.MODEL_CARD, paths.BOM, paths.PROVENANCE, paths.TEST_RESULT)


def main() -> None:
    # fmt: off
    params = load_params(
        "augment", "checks", "clean", "dedup", "engine", "evaluate", "gates", "generation", "holdout", "judge", "model",
        "prefer", "probes", "quantize", "review", "scoring", "seed", "split", "task", "train",
    )
    # fmt: on
    metrics = {path.stem: read_json(path) for path in _METRICS}
    manifest = build_manifest(params, metrics["quantize"]["artefacts"])
    write_text(paths.MODEL_CARD, model_card(params, manifest, metrics))
    write_json(paths.BOM, bill_of_materials(manifest))
    write_json(paths.PROVENANCE, provenance(manifest))
    write_json(paths.TEST_RESULT, test_result(manifest, metrics["gates"]))
    # They speak of what ships; that they are whole, the manifest says.
    manifest["files"] |= {file.name: content_hashes(file) for file in _DOCUMENTS}
    write_json(paths.MANIFEST, manifest)
    print(f"wrote {paths.MANIFEST}: {len(manifest['files'])} files that ship")


def build_manifest(params: Params, artefacts: dict[str, Any]) -> dict[str, Any]:
    """Hash what dvc.yaml names as dependencies, sorted by what it is; say what each of `artefacts` was judged by.

    The dependencies in dvc.yaml are the one list of what makes a release; what is hashed is what DVC watches. The code
    is that of the stages before this one: another report changes no manifest.
    """
    deps = stage_dependencies("manifest")
    shipped = _files(dep for dep in deps if paths.RELEASE in dep.parents)
    files = {file.relative_to(paths.RELEASE).as_posix(): content_hashes(file) for file in shipped}
    return {
        "format": FORMAT,
        "files": files,
        "formats": {name: judged(name, artefact, params, files) for name, artefact in artefacts.items()},
        "adapter": _hashed([paths.ADAPTER]),
        "base": {
            "source": params.model.source,
            "sha256": params.model.sha256,
            "licence": params.model.licence,
            "files": _hashed([paths.BASE]),
        },
        "data": _hashed(dep for dep in deps if dep.parts[0] not in ("models", "metrics") and not _is_code(dep)),
        "code": {file.as_posix(): file_digest(file) for file in _files(code_before("manifest"))},
        "params": params.model_dump(mode="json"),
        "metrics": _hashed(dep for dep in deps if dep.parts[0] == "metrics"),
        "libraries": library_versions(),
    }


def judged(name: str, artefact: dict[str, Any], params: Params, files: dict[str, Any]) -> dict[str, Any]:
    """A format of the release: its files, the engine that was asked, how it decoded, every score with its interval."""
    return {
        "folder": name,
        "files": {file: row["sha256"] for file, row in files.items() if file.startswith(f"{name}/")},
        "engine": artefact["engine"],
        **({"merge": artefact["merge"]} if "merge" in artefact else {}),
        "decoding": {"temperature": 0, **params.generation.model_dump(mode="json"), **artefact["decoding"]},
        "rows": artefact["scores"]["rows"],
        "confidence": params.scoring.confidence,
        "metrics": {key: one for key, one in artefact["scores"].items() if isinstance(one, dict) and "low" in one},
    }


def code_before(stage: str) -> list[Path]:
    """The code that other stages depend on, none twice, without that of stages that read the manifest themselves."""
    others = [stage_dependencies(name) for name in _stages() if name != stage]
    code = {dep for deps in others if paths.MANIFEST not in deps for dep in deps if _is_code(dep)}
    return sorted(dep for dep in code if not code & set(dep.parents))


def stage_dependencies(stage: str) -> list[Path]:
    """The stage's `deps` in dvc.yaml with ${section.key} filled in from params.yaml."""
    return [Path(filled_in(dep)) for dep in _stages()[stage]["deps"]]


def _stages() -> dict[str, Any]:
    stages: dict[str, Any] = load_yaml(paths.PIPELINE.read_bytes())["stages"]
    return stages


def _is_code(dep: Path) -> bool:
    """Stages and the pins of their packages. A raw file outside the repository is data."""
    return dep.parts[0] in ("stages", paths.CONSTRAINTS.name)


def _files(places: Iterable[Path]) -> list[Path]:
    return [file for place in places for file in files_under(place)]


def _hashed(places: Iterable[Path]) -> dict[str, Any]:
    return {file.as_posix(): content_hashes(file) for file in _files(places)}


if __name__ == "__main__":
    run(main)
