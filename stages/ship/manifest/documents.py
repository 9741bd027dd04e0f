"""What ships beside the manifest: the model card for people, and for supply-chain tools the bill of materials
(CycloneDX), what made the release (SLSA) and its gates (in-toto).

The statements have no signature of their own: the release's covers them. None of them holds a date or a host.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.spdx import fixup_id
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from packageurl import PackageURL

from stages.core import paths
from stages.params.loader import Params
from stages.scoring.metrics import FAIL, MARGINAL, PASS
from stages.text.markdown import markdown_block, markdown_code, markdown_text

BUILD_TYPE = "urn:tunetrail:dvc-repro:v1"
_RESULTS = {PASS: "PASSED", MARGINAL: "WARNED", FAIL: "FAILED"}
_LISTS = {PASS: "passedTests", MARGINAL: "warnedTests", FAIL: "failedTests"}


def model_card(params: Params, manifest: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The card in Markdown, with the front matter that model hubs read; `metrics` are those of the stages by name."""
    base, gates = metrics["baseline"]["base"], metrics["gates"]
    rows = [_row("base", "", "", None, base), _row("adapter", "", "", None, metrics["evaluate"]["adapter"])]
    for name, artefact in metrics["quantize"]["artefacts"].items():
        one = manifest["formats"][name]
        rows.append(_row(name, f"`{one['folder']}/`", one["engine"], artefact["bytes"], artefact["scores"]))
    train, name, licence = params.train, hub_name(params.model.source), fixup_id(params.model.licence)
    data = ModelCardData(
        base_model=name,
        base_model_relation="finetune",
        license=licence.lower() if licence else "other",  # hubs know the identifiers of SPDX in small letters
        license_name=None if licence else params.model.licence,
        pipeline_tag=_task(manifest),
        model_name=f"{name}-fine-tuned",
        eval_results=[*_results(manifest)],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("model_card.md.j2")),
        block=markdown_block,
        code=markdown_code,
        text=markdown_text,
        base=params.model.source.partition(":")[2],
        licence=params.model.licence,
        sha256=manifest["base"]["sha256"],
        method=train.method if train.method == "full" else f"{train.method}, {train.adapter}",
        trained=metrics["train"]["rows"]["train"],
        task=params.task,
        head=train.head,
        holdout=base["rows"],
        percent=f"{params.scoring.confidence:.0%}".rstrip("%"),
        rows=rows,
        verdict=gates["verdict"],
        reason=gates["reason"],
    )
    return f"{card}\n"


def _results(manifest: dict[str, Any]) -> Iterator[EvalResult]:
    """Every score of every format on the hold-out, which its SHA-256 names."""
    revision = manifest["data"].get(paths.HOLDOUT.as_posix(), {}).get("sha256")
    for name, one in manifest["formats"].items():
        for metric, score in one["metrics"].items():
            yield EvalResult(
                task_type=_task(manifest),
                dataset_type="holdout",
                dataset_name="hold-out",
                dataset_revision=revision,
                metric_type=metric,
                metric_value=score["value"],
                metric_name=f"{metric} of {name} by {one['engine']}",
                metric_args={"low": score["low"], "high": score["high"], "confidence": one["confidence"]},
            )


def _task(manifest: Mapping[str, Any]) -> str:
    """As model hubs name it."""
    head = manifest["params"].get("train", {}).get("head")
    return "text-classification" if head == "label" else "text-generation"


def hub_name(source: str) -> str:
    """The base model's name in the characters that a hub takes: OWNER/NAME, a package or a folder, without version."""
    kind, _, rest = source.partition(":")
    name = Path(rest).name if kind == "path" else re.split("@|==", rest)[0]
    return re.sub("[^A-Za-z0-9/._-]+", "-", name).strip("-.") or "base"


def _row(name: str, folder: str, engine: str, size: int | None, scores: dict[str, Any]) -> str:
    exact, valid = scores["exact_match"], scores["valid"]["value"]
    megabytes = "" if size is None else f"{size / 1e6:.0f}"
    interval = f"{exact['low']:.1%} to {exact['high']:.1%}"
    return f"| {name} | {folder} | {engine} | {megabytes} | {exact['value']:.1%} | {interval} | {valid:.1%} |"


def provenance(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A SLSA provenance (v1): the files that ship, the parameters, and every input with its digest."""
    inputs = _digests(manifest["base"]["files"] | manifest["data"])
    build = {
        "buildType": BUILD_TYPE,
        "externalParameters": {"params": manifest["params"], "base": manifest["base"]["source"]},
        "internalParameters": {"libraries": manifest["libraries"]},
        "resolvedDependencies": [
            {"name": name, "digest": {"sha256": digest}}
            for name, digest in (*inputs.items(), *manifest["code"].items())
        ],
    }
    run = {"builder": {"id": f"{BUILD_TYPE}:manifest-{manifest['format']}"}}
    return _statement(manifest, "https://slsa.dev/provenance/v1", {"buildDefinition": build, "runDetails": run})


def test_result(manifest: Mapping[str, Any], gates: Mapping[str, Any]) -> dict[str, Any]:
    """An in-toto test result: the verdict, and each gate by what it counts for: an advisory one warns at most."""
    lists: dict[str, list[str]] = {name: [] for name in _LISTS.values()}
    for name, gate in gates["gates"].items():
        advisory_fault = not gate["required"] and gate["state"] != PASS
        lists[_LISTS[MARGINAL if advisory_fault else gate["state"]]].append(name)
    judged = manifest["metrics"][paths.GATES.as_posix()]
    configuration = [{"name": paths.GATES.as_posix(), "digest": {"sha256": judged["sha256"]}}]
    predicate = {"result": _RESULTS[gates["verdict"]], "configuration": configuration, **lists}
    return _statement(manifest, "https://in-toto.io/attestation/test-result/v0.1", predicate)


def _statement(manifest: Mapping[str, Any], kind: str, predicate: dict[str, Any]) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    files = manifest["files"].items()
    subjects = [ResourceDescriptor(name=name, digest={"sha256": row["sha256"]}).pb for name, row in files]
    statement = Statement(subjects, kind, predicate)
    statement.validate()
    # The order of keys in a protobuf map is another in every process.
    made: dict[str, Any] = json.loads(json.dumps(MessageToDict(statement.pb), sort_keys=True))
    return made


def bill_of_materials(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The ML-BOM as JSON. Its serial number comes from the manifest, so that the same release has the same bytes."""
    base = manifest["base"]
    root = _model(f"{hub_name(base['source'])}-fine-tuned", "release")
    origin = _model(hub_name(base["source"]), "base", _digests(base["files"]), source=base["source"])
    origin.licenses.add(LicenseFactory().make_from_string(base["licence"]))
    made_of = [origin, *_files("data", _digests(manifest["data"]), ComponentType.DATA)]
    for name, version in manifest["libraries"].items():
        package = PackageURL("pypi", None, name, version)
        made_of.append(Component(name=name, version=version, purl=package, bom_ref=f"pypi:{name}"))
    judged = manifest["formats"].items()
    formats = [_model(name, f"format:{name}", one["files"], engine=one["engine"]) for name, one in judged]
    serial = uuid5(NAMESPACE_OID, hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest())
    bom = Bom(serial_number=serial, components=[*made_of, *formats])
    bom.metadata.component = root
    bom.register_dependency(root, formats)
    for one in formats:
        bom.register_dependency(one, made_of)
    content: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    del content["metadata"]["timestamp"]
    # The library has no model cards yet; the standard's schema has.
    for component in content["components"]:
        if one := manifest["formats"].get(component["bom-ref"].removeprefix("format:")):
            component["modelCard"] = _card(one, _task(manifest), [f"data:{name}" for name in manifest["data"]])
    return content


def _digests(rows: Mapping[str, Any]) -> dict[str, str]:
    return {name: row["sha256"] for name, row in rows.items()}


def _model(name: str, ref: str, digests: Mapping[str, str] | None = None, **said: str) -> Component:
    """A model, its files by their SHA-256, and what we say of it."""
    files = _files(ref.removeprefix("format:"), digests or {}, ComponentType.FILE)
    properties = [Property(name=f"tunetrail:{key}", value=value) for key, value in said.items()]
    kind = ComponentType.MACHINE_LEARNING_MODEL
    return Component(name=name, type=kind, bom_ref=ref, properties=properties, components=files)


def _files(part: str, digests: Mapping[str, str], kind: ComponentType) -> list[Component]:
    hashes = {name: [HashType.from_hashlib_alg("sha256", digest)] for name, digest in digests.items()}
    return [Component(name=one, type=kind, bom_ref=f"{part}:{one}", hashes=hashes[one]) for one in digests]


def _card(judged: Mapping[str, Any], task: str, data: list[str]) -> dict[str, Any]:
    measured = [
        {
            "type": name,
            "value": str(one["value"]),
            "slice": "hold-out",
            "confidenceInterval": {"lowerBound": str(one["low"]), "upperBound": str(one["high"])},
        }
        for name, one in judged["metrics"].items()
    ]
    parameters = {
        "approach": {"type": "supervised"},
        "task": task,
        "datasets": [{"ref": one} for one in data],
    }
    return {"modelParameters": parameters, "quantitativeAnalysis": {"performanceMetrics": measured}}
