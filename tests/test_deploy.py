"""The recipes of examples/deploy: linters and schemas pass, and they name what project, params.yaml and CLI have."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from key_files import write_keys
from project import ROOT
from scratch import Scratch

from stages.cli import parser
from stages.core import paths
from stages.core.yaml_reader import load_yaml
from stages.ship.release.released_files import find_release
from stages.ship.release.verify import sign

pytest_plugins = ["scratch_fixtures"]

DEPLOY = ROOT / "examples/deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
OF_THE_USER = {"release-key.pub", ".tunetrail/releases/v${VERSION}"}


def instructions(name: str) -> list[str]:
    text = DOCKERFILE.replace("\\\n", " ")
    return [line.removeprefix(name).strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def resources() -> dict[str, Any]:
    parts = (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8").split("\n---\n")
    return {one["kind"]: one for one in map(load_yaml, parts)}


def test_the_dockerfile_has_no_lint() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_takes_what_is_there_and_the_build_may_see_it() -> None:
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    sources = [word for line in instructions("COPY") for word in line.split()[:-1]]
    assert {"stages", "constraints", ".git"} < set(sources)
    for source in sources:
        assert source in OF_THE_USER or (ROOT / source).exists() or source == ".git"
        assert f"\n!{source.removesuffix('/v${VERSION}')}\n" in ignore


def test_the_image_has_every_pin() -> None:
    files = {str(file.relative_to(ROOT)) for file in (ROOT / "constraints").glob("*.txt")}
    pins = files - {"constraints/vllm.txt"}  # of an environment of its own
    assert set(re.findall(r"--constraint (\S+)", instructions("RUN")[0])) == pins


def test_the_container_starts_a_command_that_is_one() -> None:
    shell = json.loads(instructions("CMD")[0])
    words = shlex.split(shell[2].replace("$VERSION", "1.0.0"))
    assert words[:2] == ["exec", "tunetrail"]
    options = parser().parse_args(words[2:])
    assert (options.name, options.port, options.host) == ("1.0.0", int(instructions("EXPOSE")[0]), "0.0.0.0")
    assert options.key.name in instructions("COPY")[-2]
    assert (
        options.api_key_variable
        == resources()["Deployment"]["spec"]["template"]["spec"]["containers"][0]["env"][0]["name"]
    )


def test_what_the_image_has_is_enough_to_find_and_verify_the_release(scratch: Scratch, tmp_path: Path) -> None:
    private, public = write_keys(scratch.root, "release-key")
    private.rename(tmp_path / private.name)
    public.rename(tmp_path / public.name)
    sign(scratch.root, scratch.root / paths.RELEASE, tmp_path / private.name, scratch.root / paths.SIGNATURE)
    scratch.commit("Signed")
    assert scratch.tunetrail("release", "1.0.0", "--key", str(tmp_path / public.name)).code == 0
    found = find_release(scratch.root, scratch.root, tmp_path / public.name, None, "1.0.0")
    shutil.copy(tmp_path / public.name, scratch.root)
    image = tmp_path / "image"
    for line in instructions("COPY"):
        *sources, target = line.replace("${VERSION}", "1.0.0").split()
        for source in filter(Path.exists, (scratch.root / source for source in sources)):
            goal = image / target / (source.name if target == "./" else "")
            goal.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, goal)
    assert not (image / ".dvc").exists()
    there = find_release(image, image, image / public.name, None, "1.0.0")
    assert (there.id, there.tree) == (found.id, image / ".tunetrail/releases/v1.0.0")


@pytest.mark.parametrize("kind", ["Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"])
def test_kubernetes_takes_the_manifest(kind: str) -> None:
    one = resources()[kind]
    kubernetes_validate.validate(one, "1.31", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**one, "spec": {**one["spec"], "replica": 2}}, "1.31", strict=True)


def test_no_pod_goes_before_another_is_ready() -> None:
    found = resources()
    deployment = found["Deployment"]["spec"]
    container = deployment["template"]["spec"]["containers"][0]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert container["ports"][0]["containerPort"] == int(instructions("EXPOSE")[0])
    assert {container[f"{one}Probe"]["httpGet"]["path"] for one in ("startup", "readiness", "liveness")} == {"/health"}
    assert found["Service"]["spec"]["selector"] == deployment["template"]["metadata"]["labels"]
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]


def test_ollama_asks_as_the_release_was_judged() -> None:
    params = load_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))
    text = (DEPLOY / "Modelfile").read_text(encoding="utf-8")
    given = dict(re.findall(r"^PARAMETER (\S+) (.+)$", text, re.MULTILINE))
    assert given["num_predict"] == str(params["generation"]["max_new_tokens"])
    assert (given["temperature"], given["seed"]) == ("0", "0")
    assert f'SYSTEM "{params["task"]["instruction"]}"' in text
    assert f"gguf/model-{params['quantize']['gguf']['type']}.gguf" in text
    turn, end = re.findall(r"{{ range .Messages }}(.*?){{ end }}(.*?)\"\"\"", text, re.DOTALL)[0]
    messages = [("system", "Answer."), ("user", "Hello")]
    said = "".join(turn.replace("{{ .Role }}", role).replace("{{ .Content }}", words) for role, words in messages) + end
    assert said == ("<|im_start|>system\nAnswer.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert given["stop"].strip('"') in turn
