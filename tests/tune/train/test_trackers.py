"""A run is told to a tracker by transformers' own callback, and each leads to the other.

MLflow is a real server on loopback; Trackio keeps its runs in a folder, which its own command reads.
"""

import functools
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from project import commit, run
from stage_process import run_stage
from training_project import lay_out

from stages.core import paths
from stages.core.dvc_lock import entry_hash
from stages.core.errors import UserError
from stages.core.files import file_digest, read_json
from stages.core.git import WorkingTree
from stages.tune.train.callbacks import Tracked

FIRST = SimpleNamespace(is_world_process_zero=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder}/runs.db")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(folder))
        from mlflow.server import app
        from werkzeug.serving import make_server

        served = make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()
        served.server_close()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a release, in which somebody has edited a file since."""
    folder = lay_out(tmp_path_factory.mktemp("tracked") / "project")
    (folder / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    (folder / ".gitignore").write_text("/models\n/data\n/metrics\n.tunetrail/\n__pycache__/\n.stage-output\n")
    run(folder, "git", "init", "--quiet", "--initial-branch=main")
    commit(folder, "Start")
    run(folder, "git", "tag", "--annotate", "--message", "A release", "tickets@v1.0.0")
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text() + "\n")
    return folder


def report_to(tracker: str, settings: dict[str, str]) -> None:
    os.environ.update({"TUNETRAIL_REPORT_TO": tracker, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", **settings})


def tags(project: Path) -> dict[str, str]:
    return {
        "tunetrail.commit": run(project, "git", "rev-parse", "HEAD").stdout.strip(),
        "tunetrail.release": "tickets@v1.0.0-dirty",
        "tunetrail.dvc_lock_md5": file_digest(project / "dvc.lock", "md5"),
    }


def validation_losses(project: Path) -> list[tuple[int, float]]:
    lines = (project / paths.CURVES / "plots/metrics/validation/loss.tsv").read_text().splitlines()[1:]
    assert lines
    return [(int(step), float(loss)) for step, loss in map(str.split, lines)]


def test_the_run_has_its_commit_and_the_adapter_has_its_run(project: Path, server: str) -> None:
    code, text = run_stage(
        project, "train", die=functools.partial(report_to, "mlflow", {"MLFLOW_TRACKING_URI": server})
    )
    assert code == 0, text
    known = read_json(project / paths.TRACKED_RUNS)
    adapter = entry_hash(WorkingTree(project).md5s(paths.SFT.as_posix()))
    assert list(known) == [adapter]
    assert known[adapter]["tracker"] == "mlflow"

    from mlflow import MlflowClient

    client = MlflowClient(server)
    told = client.get_run(known[adapter]["run"])
    assert {key: value for key, value in told.data.tags.items() if key.startswith("tunetrail.")} == tags(project)
    assert told.info.status == "FINISHED"
    assert told.data.params["learning_rate"] == "0.001"
    curve = [(one.step, one.value) for one in client.get_metric_history(told.info.run_id, "eval_loss")]
    assert curve == [(step, pytest.approx(loss)) for step, loss in validation_losses(project)]


def test_trackio_has_the_run_in_its_folder_and_trace_names_it(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"TRACKIO_DIR": str(tmp_path / "Läufe einer Woche"), "TRACKIO_PROJECT": "tickets"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    run(project, "git", "commit", "--quiet", "--allow-empty", "--message", "Another")
    for _ in range(2):  # a run of the same inputs goes on under its name, with the tags of the last
        code, text = run_stage(project, "train", die=functools.partial(report_to, "trackio", settings))
        assert code == 0, text
        run(project, "git", "reset", "--quiet", "--soft", "tickets@v1.0.0")
    tagged = tags(project)
    run(project, "dvc", "commit", "--force", "train")
    traced = json.loads(run(project, "tunetrail", "trace", "--json", "models/sft", check=False).stdout)
    assert traced["tracked_run"]["tracker"] == "trackio"

    named = ["--project", "tickets", "--run", traced["tracked_run"]["run"], "--json"]
    told = json.loads(run(project, "trackio", "get", "run", *named).stdout)
    assert {key: value for key, value in told["config"].items() if key.startswith("tunetrail.")} == tagged
    assert told["config"]["learning_rate"] == 0.001
    curve = json.loads(run(project, "trackio", "get", "metric", "--metric", "eval/loss", *named).stdout)["values"]
    assert [one["value"] for one in curve] == 2 * [pytest.approx(loss) for _, loss in validation_losses(project)]


def test_trackio_without_a_folder_ends_training_before_it_starts(project: Path) -> None:
    settings = {"TRACKIO_DIR": str(project / "params.yaml/runs")}
    code, text = run_stage(project, "train", die=functools.partial(report_to, "trackio", settings))
    assert code == 2
    assert "error: report_to: trackio takes no run: " in text
    assert "Traceback" not in text


def test_a_tracker_that_does_not_answer_ends_training_before_it_starts(project: Path) -> None:
    nobody = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
    code, text = run_stage(project, "train", die=functools.partial(report_to, "mlflow", nobody))
    assert code == 2
    assert "error: report_to: mlflow takes no run: " in text
    assert "TUNETRAIL_REPORT_TO=none goes without" in text
    assert "Traceback" not in text


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="report_to: wandb is not installed here; install it, or set TUNETRAIL_REPORT"):
        Tracked("wandb")


def test_a_tracker_that_fails_later_does_not_end_training(capsys: pytest.CaptureFixture[str]) -> None:
    class Failing:
        def on_log(self, *_: object, **__: object) -> None:
            raise ConnectionError

    tracked = Tracked("mlflow")
    tracked._theirs = Failing()
    tracked.on_log(None, FIRST, None)
    tracked.on_log(None, FIRST, None)
    tracked.on_train_end(None, FIRST, None)
    assert capsys.readouterr().out == "report_to: mlflow failed (ConnectionError); training goes on without it\n"
