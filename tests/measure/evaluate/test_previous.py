"""The previous release comes from DVC by its tag: out of the cache, out of the remote, also while `dvc repro` runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from scored import SCORING, generation, make_tasks
from scratch import Scratch

from stages.core.errors import UserError
from stages.measure.evaluate.previous import Previous, compare_previous, fetch_previous
from stages.scoring.metrics import as_json
from stages.scoring.own_metric import ScoreRows
from stages.scoring.rows import score_row
from stages.text.json_schema import Tasks

pytest_plugins = ["scratch_fixtures"]

TAG = "tickets@v1.0.0"
# A stage that answers, and one that fetches an earlier answer while DVC holds its lock on the repository.
PIPELINE = """
stages:
  evaluate:
    cmd: mkdir -p data/generations && cp answers.jsonl data/generations/adapter.jsonl
    deps: [answers.jsonl]
    outs: [data/generations/adapter.jsonl]
  later:
    cmd: python fetch.py
    deps: [data/generations/adapter.jsonl]
    outs: [fetched.json]
"""
FETCH = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from pathlib import Path
from stages.measure.evaluate.previous import fetch_previous
Path("fetched.json").write_text(json.dumps(fetch_previous(Path.cwd(), {TAG!r}).rows))
"""


def row(key: str, output: str = "yes") -> dict[str, Any]:
    return {"id": key, "prompt": "p", "completion": "yes", "label": None, "output": output, "tokens": 2}


def write_answers(scratch: Scratch, rows: list[dict[str, Any]]) -> None:
    scratch.write("answers.jsonl", "".join(json.dumps(one) + "\n" for one in rows))


@pytest.fixture(scope="module")
def two_releases(tmp_path_factory: pytest.TempPathFactory, quiet_git: None) -> Scratch:
    """A repository whose first release is tagged and pushed; its present answers are others."""
    folder = tmp_path_factory.mktemp("releases")
    scratch = Scratch(folder / "repository")
    scratch.root.mkdir()
    scratch.git("init", "--quiet", "--initial-branch=main")
    scratch.dvc("init")
    scratch.dvc("remote", "add", "--default", "store", str(folder / "remote"))
    scratch.write("dvc.yaml", PIPELINE)
    scratch.write("fetch.py", FETCH)
    write_answers(scratch, [row("a"), row("b", "no")])
    scratch.dvc("repro", "evaluate")
    first = scratch.commit("First release")
    scratch.git("tag", "--annotate", "--message", "first", TAG)
    scratch.dvc("push")
    write_answers(scratch, [row("b"), row("c")])
    scratch.dvc("repro", "evaluate")
    scratch.commit("Second run")
    assert first != scratch.git("rev-parse", "HEAD")
    return scratch


@pytest.fixture
def copy(two_releases: Scratch, tmp_path: Path) -> Scratch:
    return two_releases.copy(tmp_path / "repository")


def test_the_answers_come_from_the_cache_and_from_the_remote(copy: Scratch) -> None:
    found = fetch_previous(copy.root, TAG)
    assert [(one["id"], one["output"]) for one in found.rows] == [("a", "yes"), ("b", "no")]
    assert (found.release, found.commit) == (TAG, copy.git("rev-parse", f"{TAG}^{{commit}}"))
    copy.forget_cache()
    assert fetch_previous(copy.root, TAG) == found
    assert (copy.root / "data/generations/adapter.jsonl").read_text().count("no") == 0


def test_a_stage_fetches_while_dvc_runs_it(copy: Scratch) -> None:
    copy.forget_cache()
    copy.dvc("repro", "--force", "later")
    assert [one["id"] for one in json.loads((copy.root / "fetched.json").read_text())] == ["a", "b"]


def test_an_unknown_tag_says_what_to_do(copy: Scratch) -> None:
    with pytest.raises(UserError, match=r"no tag tickets@v9; `git fetch --tags`"):
        fetch_previous(copy.root, "tickets@v9")


def test_answers_that_nobody_has_are_named(copy: Scratch) -> None:
    copy.forget_cache()
    remote = copy.root / "empty"
    copy.dvc("remote", "add", "--default", "--force", "store", str(remote))
    remote.mkdir()
    with pytest.raises(UserError, match=r"adapter.jsonl of tickets@v1.0.0 cannot be had .*`dvc push` where"):
        fetch_previous(copy.root, TAG)
    copy.dvc("remote", "remove", "store")
    with pytest.raises(UserError, match=r"adapter.jsonl of tickets@v1.0.0 cannot be had"):
        fetch_previous(copy.root, TAG)


def test_a_tag_without_answers_is_named(copy: Scratch) -> None:
    copy.git("checkout", "--quiet", "--orphan", "bare")
    copy.git("rm", "--quiet", "--cached", "dvc.lock")
    copy.git("commit", "--quiet", "--message", "no lock")
    copy.git("tag", "bare@v1")
    with pytest.raises(UserError, match=r"adapter.jsonl of bare@v1 cannot be had"):
        fetch_previous(copy.root, "bare@v1")


def test_a_damaged_cache_is_no_evidence(copy: Scratch) -> None:
    shutil.copytree(copy.root / ".dvc" / "cache", copy.root / "kept")
    for file in (copy.root / ".dvc" / "cache" / "files" / "md5").rglob("*"):
        if file.is_file() and b'"no"' in file.read_bytes():
            file.chmod(0o644)
            file.write_text("{}\n")
    with pytest.raises(UserError, match="damaged"):
        fetch_previous(copy.root, TAG)


def scored(tasks: Tasks) -> ScoreRows:
    return lambda rows: [score_row(row, tasks) for row in rows]


def test_rows_are_paired_by_id_and_the_others_counted(tmp_path: Path) -> None:
    tasks = make_tasks(tmp_path)
    right, wrong = '{"intent": "refund", "order": 7}', "{}"
    then = [generation(right, key="a"), generation(wrong, key="b"), generation(right, key="gone")]
    now = [score_row(generation(said, key=key), tasks) for key, said in (("b", right), ("new", right), ("a", right))]
    before, comparison = compare_previous(Previous(TAG, "c" * 40, then), now, scored(tasks), SCORING)
    assert as_json(before)["rows"] == {"both": 2, "only_now": 1, "only_then": 1}
    assert before.scores.exact_match.count == 1
    change = comparison.exact_match
    assert (comparison.rows, change.won, change.lost) == (2, 1, 0)
    assert comparison.perplexity is None  # the older rows have no likelihoods


def test_no_row_in_common_is_an_error(tmp_path: Path) -> None:
    tasks = make_tasks(tmp_path)
    now = [score_row(generation("{}", key="b"), tasks)]
    with pytest.raises(UserError, match="answered none of the present hold-out rows"):
        compare_previous(
            Previous(TAG, "c" * 40, [generation("{}", key="a")]),
            now,
            scored(tasks),
            SCORING,
        )
