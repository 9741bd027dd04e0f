"""What made the release, and which gates it passed, in the forms that supply-chain tools read (in-toto, SLSA).

They are statements without a signature of their own: the release's covers them. They hold no date and no host.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from stages.core import paths
from stages.scoring.metrics import FAIL, MARGINAL, PASS

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
