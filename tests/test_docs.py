"""Every command in README, CONTRIBUTING and docs/, run as printed on the tiny pipeline; .ci/run runs the first two."""

import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dvc.utils.serialize import dumps_yaml
from project import ROOT, commit, run, set_params, stage_outputs

from stages.core.files import read_json
from stages.core.yaml_reader import load_yaml
from stages.params.measure import STANDING
from stages.tune.train.devices import free_port

RUN_BY_ANOTHER_TEST = {"specialists"}  # tests/pipeline/test_specialist_projects.py, which looks at what comes of them
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TITLES = [page.stem for page in PAGES]


def commands(page: Path) -> list[str]:
    """The lines of the page's shell blocks, without comments; a line that ends in a backslash goes on."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = (line for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


def of_the_checkout(command: str) -> bool:
    """Commands about the project itself, which the tiny pipeline has no part of."""
    return command.startswith(("make ", "python -m pytest", "python benchmarks/"))


def test_the_gate_runs_the_first_commands() -> None:
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    first = commands(PAGES[0])[:2]
    assert first == ["make repro", "make test"]
    assert all(command in gate for command in first)


@pytest.mark.parametrize("page", PAGES, ids=TITLES)
def test_commands_about_the_project_itself_name_what_is_there(page: Path) -> None:
    for command in filter(of_the_checkout, commands(page)):
        program, *words = shlex.split(command)
        if program == "make":
            done = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{page.name}: {command}: {done.stderr}"
        else:
            places = [word for word in words if "/" in word and not word.startswith("-")]
            assert all((ROOT / place).exists() for place in places), f"{page.name}: {command}"


@pytest.fixture(scope="module")
def releasable(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline with a remote and gates that let a model pass that has learnt nothing."""
    folder = tmp_path_factory.mktemp("docs") / "releasable"
    shutil.copytree(pipeline.parent, folder, symlinks=True)
    repository = folder / pipeline.name
    # The tiny model learns nothing, so the gates that refuse a release must ask nothing of it; and it must be allowed
    # tokens enough for a right answer, or preflight says that no model could give one.
    params = load_yaml((repository / "params.yaml").read_text(encoding="utf-8"))
    params |= {"gates": dict.fromkeys(STANDING), "generation": {"max_new_tokens": 80}}
    (repository / "params.yaml").write_text(dumps_yaml(params), encoding="utf-8")
    run(repository, "dvc", "repro")
    commit(repository, "No gates")
    return repository


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if p.stem not in RUN_BY_ANOTHER_TEST and set(commands(p)) - {"make repro", "make test"}],
    ids=str,
)
def test_every_other_command_runs(page: Path, releasable: Path, tmp_path: Path) -> None:
    todo = [command for command in commands(page) if not of_the_checkout(command)]
    if not todo:
        pytest.skip("all commands of this page are about the project itself")
    shutil.copytree(releasable.parent, tmp_path / "copy", symlinks=True)
    repository = tmp_path / "copy" / releasable.name
    run(repository, "dvc", "remote", "add", "--default", "store", str(tmp_path / "remote"))
    commit(repository, "A remote to push to")
    for command in todo:
        run(repository, "bash", "-c", command)


def test_the_commands_for_several_machines_train_one_model(releasable: Path, tmp_path: Path) -> None:
    """As printed, at the same time, in two checkouts; the first one's is stopped after `train`."""
    text = (ROOT / "docs/many-machines.md").read_text(encoding="utf-8")
    first, other = re.findall(r"^NNODES=2 .*$", text, re.MULTILINE)
    places = [tmp_path / "first" / releasable.name, tmp_path / "other" / releasable.name]
    for place in places:
        shutil.copytree(releasable.parent, place.parent, symlinks=True)
        set_params(place, {"train": {"learning_rate": 2e-3}})
    port = f"export MASTER_PORT={free_port()} MASTER_ADDR=127.0.0.1; "
    with ThreadPoolExecutor(2) as pool:
        lines = [port + line.replace("MASTER_ADDR=HEAD ", "") for line in (f"{first} train", other)]
        ended = [*pool.map(lambda place, line: run(place, "bash", "-c", line, check=False), places, lines)]
    assert [done.returncode for done in ended] == [0, 0], [done.stdout + done.stderr for done in ended]
    assert read_json(places[0] / "metrics/env/train.json")["devices"] == 2
    assert "the first has the outputs" in ended[1].stderr
    assert stage_outputs(places[1], "train") == stage_outputs(releasable, "train") != stage_outputs(places[0], "train")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_task_for_skypilot_runs_the_first_and_the_others(rank: str, tmp_path: Path) -> None:
    text = (ROOT / "docs/many-machines.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(num_nodes.*?)^```$", text, re.MULTILINE | re.DOTALL)
    task = load_yaml(block)
    assert task.keys() == {"num_nodes", "run"}
    for name in ("tunetrail", "python"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$(basename "$0") $*"\n')
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SKYPILOT_NODE_RANK": rank}
    ran = subprocess.run(["bash", "-c", task["run"]], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ("python -m stages.tune.train" if int(rank) else "tunetrail repro")


@pytest.mark.parametrize("page", PAGES, ids=TITLES)
def test_files_and_folders_that_it_names_exist(page: Path, pipeline: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"`((?:data|models|metrics|examples|stages|tests|docs)/[\w./-]*)`", text)):
        assert (ROOT / name).exists() or (pipeline / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=TITLES)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in PAGES[2:]:
        built = tmp_path / ("index.html" if page.stem == "index" else f"{page.stem}/index.html")
        loaded = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]* (?:src|href)="(.*?)"', built.read_text())
        assert loaded
        assert not [place for place in loaded if "//" in place], page.name


@pytest.mark.parametrize(
    "file", sorted((ROOT / "examples").rglob("params*.yaml")), ids=lambda file: str(file.parent.name)
)
def test_example_parameters_are_valid(file: Path) -> None:
    from stages.params.loader import Params, load_params
    from stages.text.json_schema import Schema

    params = load_params(*Params.model_fields, path=file)
    # DVC knows no defaults: what a stage names must be there.
    text, given = (ROOT / "dvc.yaml").read_text(encoding="utf-8"), load_yaml(file.read_bytes())
    stages = load_yaml(text)["stages"].values()
    named = {key for stage in stages for key in stage.get("params", ()) if isinstance(key, str)}
    for key in named | set(re.findall(r"\$\{(.+?)\}", text)):
        place = given
        for part in key.split("."):
            assert part in place, key
            place = place[part]
    Schema(ROOT / params.task.schema_file)
