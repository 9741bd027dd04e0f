"""The pipeline as its users run it: `dvc repro`, again, by force, and the commands that show what it did."""

import csv
import json
import re
from pathlib import Path
from typing import Any

from project import commit, run, set_params, stage_outputs

from stages.core import paths
from stages.core.files import read_json
from stages.core.yaml_reader import load_yaml
from stages.params.loader import load_params

STAGES = [
    "augment",
    "base",
    "baseline",
    "checks",
    "clean",
    "dedup",
    "evaluate",
    "gates",
    "judge",
    "manifest",
    "merge_quantize",
    "prefer",
    "report",
    "review",
    "split",
    "train",
]


def locked(repository: Path) -> dict[str, dict[str, str]]:
    """The MD5 of every dependency and output in dvc.lock, by stage and path."""
    lock = load_yaml((repository / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    return {
        stage: {item["path"]: item["md5"] for kind in ("deps", "outs") for item in entry[kind]}
        for stage, entry in lock.items()
    }


def test_all_stages_ran_and_git_holds_what_it_should(copy: Path) -> None:
    assert sorted(locked(copy)) == STAGES
    tracked = run(copy, "git", "ls-files").stdout.split()
    for name in ("metrics/gates.json", "metrics/details.json", "metrics/summary.json", "metrics/report.md"):
        assert name in tracked
    assert {"data/holdout.lock", "dvc.lock"} <= set(tracked)
    made = [name for name in tracked if not name.startswith("stages/")]
    assert not [name for name in made if name.endswith((".safetensors", ".html")) or name == "data/train.jsonl"]
    assert run(copy, "git", "status", "--porcelain").stdout == ""


def test_a_second_repro_runs_nothing(copy: Path) -> None:
    assert "Running stage" not in run(copy, "dvc", "repro").stdout


def test_metrics_are_nested_numbers_that_dvc_shows(copy: Path) -> None:
    shown: dict[str, Any] = json.loads(run(copy, "dvc", "metrics", "show", "--json").stdout)[""]["data"]
    for file, entry in shown.items():
        written = json.loads((copy / file).read_text(encoding="utf-8"))
        assert entry["data"] == without_empty_groups(written), f"{file}: dvc metrics leaves something out"
    assert list(shown) == ["metrics/summary.json"]
    numbers = leaves(shown["metrics/summary.json"]["data"])
    assert 12 <= len(numbers) <= 25
    assert all(isinstance(number, int | float) for number in numbers)
    summary, details = (read_json(copy / file) for file in (paths.SUMMARY, paths.DETAILS))
    exact = details["evaluate"]["adapter"]["exact_match"]
    assert summary["adapter"]["exact_match"] == exact["value"]
    assert exact["n"] > 0


def leaves(node: Any) -> list[Any]:
    return [leaf for one in node.values() for leaf in leaves(one)] if isinstance(node, dict) else [node]


def without_empty_groups(metrics: dict[str, Any]) -> dict[str, Any]:
    """DVC shows none, and none tells anything."""
    pruned = {key: without_empty_groups(one) if isinstance(one, dict) else one for key, one in metrics.items()}
    return {key: one for key, one in pruned.items() if one != {}}


def test_plots_have_axes_with_names(copy: Path, tmp_path: Path) -> None:
    run(copy, "dvc", "plots", "show", "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots" / "index.html").read_text(encoding="utf-8")
    for words in ("optimiser step", "nats a token", "label of the reference", "label that the model gave"):
        assert words in page
    with (copy / "metrics" / "confusion.csv").open(encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["actual", "predicted"]


def test_the_graph_has_every_stage(copy: Path) -> None:
    graph = run(copy, "dvc", "dag", "--mermaid").stdout
    assert all(f'"{stage}"' in graph for stage in STAGES)


def test_an_experiment_runs_what_its_parameter_makes_stale(copy: Path) -> None:
    done = run(copy, "dvc", "exp", "run", "--name", "slower", "-S", "train.learning_rate=5e-4")
    ran = {stage for stage in STAGES if f"Running stage '{stage}'" in done.stdout}
    assert ran >= {"train", "evaluate", "merge_quantize", "manifest", "report"}
    assert not ran & {"base", "clean", "dedup", "split", "augment", "baseline"}
    difference = json.loads(run(copy, "dvc", "params", "diff", "--json").stdout)
    assert difference["params.yaml"]["train.learning_rate"] == {"old": 1e-3, "new": 5e-4, "diff": -5e-4}
    changed = json.loads(run(copy, "dvc", "metrics", "diff", "--json").stdout)
    assert "adapter.perplexity" in changed["metrics/summary.json"]
    for command in ("show", "diff"):  # few enough numbers to read
        lines = run(copy, "dvc", "metrics", command, "--md").stdout.splitlines()
        assert len(lines) <= 30, "\n".join(lines)
    assert "slower" in run(copy, "dvc", "exp", "show", "--csv").stdout
    assert_both_loss_curves_are_drawn(copy)
    assert_the_comparison_fits_a_screen(copy)


def assert_both_loss_curves_are_drawn(repository: Path) -> None:
    drawn = json.loads(run(repository, "dvc", "plots", "diff", "HEAD", "workspace", "--json").stdout)["data"]
    (loss,) = drawn["loss"]
    points = loss["content"]["data"]["values"]
    for file in ("train", "validation"):
        of_file = [point for point in points if point["filename"] == f"{file}/loss.tsv"]
        assert {point["rev"] for point in of_file} == {"HEAD", "workspace"}


def assert_the_comparison_fits_a_screen(repository: Path) -> None:
    """After a change of one learning rate, what is not folded away."""
    said = run(repository, "tunetrail", "compare", "HEAD").stdout
    shown = re.sub("<details>.*?</details>\n", "", said, flags=re.DOTALL).splitlines()
    assert "| `train.learning_rate` | 0.001 | 0.0005 | parameter |" in shown
    assert any("paired test" in line for line in shown)
    assert len(shown) <= 40, said


def test_a_key_that_the_file_lacks_is_set_with_a_plus(copy: Path) -> None:
    assert "ngram_max_share" not in load_yaml((copy / "params.yaml").read_text(encoding="utf-8"))["checks"]
    run(copy, "dvc", "exp", "run", "-S", "+checks.ngram_max_share=0.5", "checks")
    assert load_params("checks", path=copy / "params.yaml").checks.ngram_max_share == 0.5
    lock = load_yaml((copy / "dvc.lock").read_text(encoding="utf-8"))["stages"]["checks"]
    assert lock["params"]["params.yaml"]["checks"]["ngram_max_share"] == 0.5


def test_what_a_stage_does_not_read_leaves_it_as_it_is(copy: Path) -> None:
    with (copy / "constraints" / "tools.txt").open("a", encoding="utf-8") as file:
        file.write("some-http-client==1.0\n")
    (copy / "machine.yaml").write_text("packing: false\n")
    assert stale(copy) == set()
    set_params(copy, {"generation": {"max_new_tokens": 9}, "task": {"forbidden_phrases": ["surely"]}})
    assert {"baseline", "evaluate", "merge_quantize"} <= stale(copy)
    assert not {"base", "train", "dedup", "split"} & stale(copy)


def stale(repository: Path) -> set[str]:
    return set(json.loads(run(repository, "dvc", "status", "--json").stdout))


def test_another_chat_template_makes_the_base_model_and_what_asks_it_stale(copy: Path) -> None:
    own = (copy / paths.BASE / "chat_template.jinja").read_text(encoding="utf-8")
    file = copy / "data" / "chat_template.jinja"
    file.write_text("{#- The same turns, with a remark. -#}\n" + own, encoding="utf-8")
    ran = run(copy, "dvc", "repro", "base", "clean").stdout
    assert "Running stage 'base'" in ran
    assert "Running stage 'clean'" not in ran
    assert (copy / paths.BASE / "chat_template.jinja").read_text(encoding="utf-8") == file.read_text(encoding="utf-8")
    stale = json.loads(run(copy, "dvc", "status", "--json").stdout)
    assert {"baseline", "train", "evaluate", "merge_quantize", "manifest"} <= stale.keys()


def test_a_parameter_that_changes_no_weights_costs_no_training(copy: Path) -> None:
    set_params(copy, {"clean": {"max_prompt_characters": 1999}})
    ran = run(copy, "dvc", "repro").stdout
    assert "Running stage 'clean'" in ran
    assert "Running stage 'manifest'" in ran
    assert "Running stage 'train'" not in ran
    assert "Running stage 'merge_quantize'" not in ran


def test_every_weight_is_in_safetensors(pipeline: Path) -> None:
    names = {file.suffix for file in (pipeline / "models").rglob("*") if file.is_file()}
    assert ".safetensors" in names
    assert not names & {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


def test_rollback_brings_every_byte_of_the_first_release_back(copy: Path, tmp_path: Path) -> None:
    """Release A, change data and parameters, release B; then A again, in a fresh clone."""
    remote = tmp_path / "remote"
    run(copy, "dvc", "remote", "add", "--default", "store", str(remote))
    first = commit(copy, "Name the remote")
    run(copy, "dvc", "push")
    run(copy, "git", "tag", "A")
    originals = {stage: stage_outputs(copy, stage) for stage in STAGES}

    raw = copy / "data" / "raw" / "tickets.jsonl"
    raw.write_text("".join(raw.read_text(encoding="utf-8").splitlines(keepends=True)[3:]), encoding="utf-8")
    set_params(copy, {"train": {"learning_rate": 2e-3}})
    run(copy, "dvc", "repro")
    second = commit(copy, "Release B")
    run(copy, "dvc", "push")
    changed = {stage: stage_outputs(copy, stage) for stage in STAGES}
    assert changed["train"]["models/sft"] != originals["train"]["models/sft"]

    run(tmp_path, "git", "clone", "--quiet", str(copy), "fresh")
    fresh = tmp_path / "fresh"
    run(fresh, "git", "checkout", "--quiet", "A")
    run(fresh, "dvc", "pull", "--quiet")
    assert {stage: stage_outputs(fresh, stage) for stage in STAGES} == originals
    assert trace(fresh)["commit"]["sha"] in first_commits(fresh, first)

    run(fresh, "git", "checkout", "--quiet", second)
    run(fresh, "dvc", "fetch", "--quiet")
    run(fresh, "dvc", "checkout", "--quiet")
    assert trace(fresh)["commit"]["sha"] == second
    run(fresh, "git", "checkout", "--quiet", "A")
    run(fresh, "dvc", "checkout", "--quiet")
    assert {stage: stage_outputs(fresh, stage) for stage in STAGES} == originals


def trace(repository: Path) -> dict[str, Any]:
    done = run(repository, "tunetrail", "trace", "models/release/nf4/model.safetensors", "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    assert sorted(found) == sorted(
        ["file", "stage", "data", "params", "metrics", "base", "code", "commit", "tracked_run"]
    )
    assert found["file"]["trail"]["complete"], found["file"]["trail"]["broken"]
    return found


def first_commits(repository: Path, upto: str) -> list[str]:
    """The commits of release A: dvc.lock came with the first, the remote's name with the second."""
    return run(repository, "git", "rev-list", upto).stdout.split()
