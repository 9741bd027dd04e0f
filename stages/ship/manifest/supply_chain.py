"""The release for supply-chain tools: its bill of materials (CycloneDX), what made it (SLSA), its gates (in-toto).

The statements have no signature of their own: the release's covers them. None of the three holds a date or a host.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from stages.core import paths
from stages.scoring.metrics import FAIL, MARGINAL, PASS
from stages.ship.manifest.model_card import hub_name

BUILD_TYPE = "urn:tunetrail:dvc-repro:v1"
_RESULTS = {PASS: "PASSED", MARGINAL: "WARNED", FAIL: "FAILED"}
_LISTS = {PASS: "passedTests", MARGINAL: "warnedTests", FAIL: "failedTests"}


def provenance(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A SLSA provenance (v1): the files that ship, the parameters, and every input with its digest."""
    build = {
        "buildType": BUILD_TYPE,
        "externalParameters": {"params": manifest["params"], "base": manifest["base"]["source"]},
        "internalParameters": {"libraries": manifest["libraries"]},
        "resolvedDependencies": list(_materials(manifest)),
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


def _materials(manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, row in {**manifest["base"]["files"], **manifest["data"]}.items():
        yield {"name": name, "digest": {"sha256": row["sha256"]}}
    yield from ({"name": name, "digest": {"sha256": digest}} for name, digest in manifest["code"].items())


def bill_of_materials(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The ML-BOM as JSON. Its serial number comes from the manifest, so that the same release has the same bytes."""
    base, model = manifest["base"], ComponentType.MACHINE_LEARNING_MODEL
    root = Component(name=f"{hub_name(base['source'])}-fine-tuned", type=model, bom_ref="release")
    licence = [LicenseFactory().make_from_string(base["licence"])]
    source = [Property(name="tunetrail:source", value=base["source"])]
    made_of = [
        Component(
            name=hub_name(base["source"]),
            type=model,
            bom_ref="base",
            licenses=licence,
            properties=source,
            components=_files("base", _digests(base["files"]).items(), ComponentType.FILE),
        ),
        *_files("data", _digests(manifest["data"]).items(), ComponentType.DATA),
        *(
            Component(name=name, version=version, purl=PackageURL("pypi", None, name, version), bom_ref=f"pypi:{name}")
            for name, version in manifest["libraries"].items()
        ),
    ]
    formats = [
        Component(
            name=name,
            type=model,
            bom_ref=f"format:{name}",
            properties=[Property(name="tunetrail:engine", value=one["engine"])],
            components=_files(name, one["files"].items(), ComponentType.FILE),
        )
        for name, one in manifest["formats"].items()
    ]
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
            component["modelCard"] = _card(one, [f"data:{name}" for name in manifest["data"]])
    return content


def _digests(rows: Mapping[str, Any]) -> dict[str, str]:
    return {name: row["sha256"] for name, row in rows.items()}


def _files(part: str, rows: Iterable[tuple[str, str]], kind: ComponentType) -> list[Component]:
    return [
        Component(name=name, type=kind, bom_ref=f"{part}:{name}", hashes=[HashType.from_hashlib_alg("sha256", digest)])
        for name, digest in rows
    ]


def _card(judged: Mapping[str, Any], data: list[str]) -> dict[str, Any]:
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
        "task": "text-generation",
        "datasets": [{"ref": one} for one in data],
    }
    return {"modelParameters": parameters, "quantitativeAnalysis": {"performanceMetrics": measured}}
