"""The judge as a stage: off for nothing, never paid twice, the same bytes from the same replies, no key anywhere."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from asked_servers import Proxy, judging, reply
from completeness import pipeline
from dvc.utils.serialize import dumps_yaml
from judge_project import KEY, judge_params, make_judge_project, right_one
from project import ROOT, run, set_params

import stages.core.errors
from stages.core import paths
from stages.core.files import read_json
from stages.measure.gates.__main__ import check_gates
from stages.measure.judge.__main__ import main
from stages.records.record import write_rows

PAIRS = [("wrong", "RIGHT")] * 8 + [("RIGHT", "wrong")] * 2 + [("wrong", "false")] * 2 + [("same", "same")]
ASKED = 2 * 12


def judge(folder: Path) -> tuple[int, str]:
    """Run the stage in this process, which is quicker; exit code, and all that was printed."""
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            stages.core.errors.run(main)
        except SystemExit as left:
            return int(str(left.code)), said.getvalue()
    return 0, said.getvalue()


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "stages.measure.judge"], cwd=folder, env=environment)


def endpoint(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"


def test_off_it_asks_nobody_and_needs_nothing(tmp_path: Path) -> None:
    folder = make_judge_project(tmp_path, PAIRS, endpoint="http://127.0.0.1:9/v1")
    set_params(folder, {"judge": {"enabled": False}})
    shutil.rmtree(folder / "data")
    assert judge(folder)[0] == 0
    assert read_json(folder / paths.JUDGE_METRICS) == {"enabled": 0}
    assert not (folder / ".tunetrail").exists()


def test_the_verdict_is_that_of_the_judge_and_is_paid_once(tmp_path: Path) -> None:
    with judging(right_one) as server:
        folder = make_judge_project(tmp_path, PAIRS, endpoint=endpoint(server.port), repeats=0)
        said = "asking judge 24 times; 0 replies are known already\nagainst_baseline: 8 wins, 3 ties, 2 losses\n"
        assert judge(folder) == (0, said)
        assert len(server.seen) == ASKED
        first = (folder / paths.JUDGE_METRICS).read_bytes()
        metrics = json.loads(first)
        found = metrics["against_baseline"]
        assert (found["wins"], found["ties"], found["losses"], found["identical"]) == (8, 3, 2, 1)
        assert check_gates(judge_params().gates, {"judge": metrics})["gates"]["judge_better"]["state"] == "PASS"
        assert judge(folder)[0] == 0
        assert len(server.seen) == ASKED
    assert (folder / paths.JUDGE_METRICS).read_bytes() == first
    assert read_json(folder / paths.ENVIRONMENT / "judge.json")["replies_asked"] == 0


def test_a_previous_release_meets_the_rows_that_it_answered(tmp_path: Path) -> None:
    with judging(right_one) as server:
        folder = make_judge_project(tmp_path, PAIRS, endpoint=endpoint(server.port), repeats=0)
        ids = [json.loads(line)["id"] for line in (folder / paths.HOLDOUT).read_text().splitlines()]
        earlier = {ids[0]: "wrong", ids[8]: "RIGHT", ids[9]: "wrong", "a row of then": "RIGHT"}
        answers = [{"id": id, "output": said} for id, said in earlier.items()]
        write_rows(folder / paths.PREVIOUS_GENERATIONS, [{"release": "v1"}, *answers])
        assert judge(folder)[0] == 0
        assert len(server.seen) == ASKED  # the base said the same two, and was asked about already
    found = read_json(folder / paths.JUDGE_METRICS)["against_previous"]
    assert (found["rows"], found["wins"], found["losses"], found["identical"]) == (3, 1, 1, 1)


def test_what_is_another_question_is_asked_anew(tmp_path: Path) -> None:
    with judging(right_one) as server:
        folder = make_judge_project(tmp_path, PAIRS, endpoint=endpoint(server.port), repeats=0)
        judge(folder)
        for change, more in (
            ({"timeout": 9.0, "parallel": 1, "price": {"input": 1.0, "output": 1.0}}, 0),
            ({"model": "another"}, ASKED),
            ({"max_tokens": 17}, ASKED),
            ({"criteria": "Shorter is better."}, ASKED),
            ({"rows": 5}, 0),
            ({"rows": None, "repeats": 3}, 6),
        ):
            before = len(server.seen)
            set_params(folder, {"judge": change})
            assert judge(folder)[0] == 0
            assert len(server.seen) - before == more, change


def test_killed_it_goes_on_without_paying_twice(tmp_path: Path) -> None:
    with judging(right_one) as server:
        whole = make_judge_project(tmp_path / "whole", PAIRS, endpoint=endpoint(server.port))
        judge(whole)
        all_asked = len(server.seen)
        proxy = Proxy(server.port)
        folder = make_judge_project(tmp_path / "killed", PAIRS, endpoint=proxy.endpoint)
        proxy.faults = [None] * 11 + [-1] * 100
        process = start(folder)
        kept = folder / paths.JUDGE_REPLIES
        while not (proxy.connections == 13 and kept.read_bytes().count(b"\n") == 11):  # and two under way
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / paths.JUDGE_METRICS).exists()
        with kept.open("rb+") as handle:  # as if it had died in the middle of a line
            handle.truncate(kept.stat().st_size - 9)
        proxy.faults = []
        assert judge(folder)[0] == 0
        proxy.close()
    assert len(server.seen) - all_asked == all_asked + 1  # the reply whose line was cut
    assert (folder / paths.JUDGE_METRICS).read_bytes() == (whole / paths.JUDGE_METRICS).read_bytes()


def test_a_judge_that_cannot_be_asked_is_a_sentence_and_loses_nothing(tmp_path: Path) -> None:
    with judging(right_one) as server:
        proxy = Proxy(server.port)
        folder = make_judge_project(tmp_path, PAIRS, endpoint=proxy.endpoint, repeats=0)
        proxy.faults = [None] * 7 + [reply("400 Bad Request", "the model is asleep")] * 40
        code, said = judge(folder)
        assert code == 2
        assert f"error: the judge at {proxy.endpoint} refuses the request with HTTP 400: the model is asleep;" in said
        assert "Traceback" not in said
        proxy.faults = []
        assert judge(folder)[0] == 0
        assert len(server.seen) == ASKED
        proxy.close()


@pytest.mark.parametrize("model", ["nowhere", "data"])
def test_a_local_judge_that_is_no_model_is_a_sentence(tmp_path: Path, model: str) -> None:
    folder = make_judge_project(tmp_path, PAIRS, provider="local", model=model)
    code, said = judge(folder)
    assert (code, "Traceback" in said) == (2, False)
    assert f"judge.model: {model} is no folder with a model" in said


def test_two_rows_of_files_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = make_judge_project(tmp_path, PAIRS)
    answers = folder / paths.BASE_GENERATIONS
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[1:]))
    code, said = judge(folder)
    assert (code, "Traceback" in said) == (2, False)
    assert f"{paths.BASE_GENERATIONS} does not answer the rows of {paths.HOLDOUT}" in said


def test_the_key_is_nowhere_but_in_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through DVC, with a server that echoes the key and refuses, then answers; every file and word is searched."""
    monkeypatch.setenv("SOME_KEY", KEY)
    with judging(right_one) as server:
        proxy = Proxy(server.port)
        folder = make_judge_project(tmp_path / "project", PAIRS, endpoint=proxy.endpoint, key_variable="SOME_KEY")
        (folder / "dvc.yaml").write_text(dumps_yaml({"stages": {"judge": pipeline(ROOT)["judge"]}}))
        shutil.copytree(ROOT / "constraints", folder / "constraints")
        shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("*.pyc.*"))
        run(folder, "git", "init", "--quiet")
        run(folder, "dvc", "init", "--quiet")
        proxy.faults = [reply("400 Bad Request", f"bad key {KEY}")] * 2 + [reply("401 Unauthorized", KEY)] * 2
        failed = run(folder, "dvc", "repro", "--verbose", check=False)
        assert (failed.returncode, "refuses the request with HTTP 400: bad key ***" in failed.stderr) == (255, True)
        proxy.faults = []
        done = run(folder, "dvc", "repro", "--verbose")
        proxy.close()
    assert {headers.get("Authorization") for headers, _ in server.seen} == {f"Bearer {KEY}"}
    assert read_json(folder / paths.JUDGE_METRICS)["against_baseline"]["wins"] == 8
    assert KEY not in failed.stdout + failed.stderr + done.stdout + done.stderr
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert folder / "dvc.lock" in files
    assert folder / paths.JUDGE_REPLIES in files
    assert [file for file in files if KEY.encode() in file.read_bytes()] == []
