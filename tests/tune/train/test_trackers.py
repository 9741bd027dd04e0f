"""A run is told to a real MLflow server on loopback, by transformers' own callback, and each leads to the other."""

import functools
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


def report_to(uri: str) -> None:
    settings = {"TUNETRAIL_REPORT_TO": "mlflow", "MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    os.environ.update(settings)


def test_the_run_has_its_commit_and_the_adapter_has_its_run(project: Path, server: str) -> None:
    code, text = run_stage(project, "train", die=functools.partial(report_to, server))
    assert code == 0, text
    known = read_json(project / paths.TRACKED_RUNS)
    adapter = entry_hash(WorkingTree(project).md5s(paths.SFT.as_posix()))
    assert list(known) == [adapter]
    assert known[adapter]["tracker"] == "mlflow"

    from mlflow import MlflowClient

    client = MlflowClient(server)
    told = client.get_run(known[adapter]["run"])
    head = run(project, "git", "rev-parse", "HEAD").stdout.strip()
    ours = {key: value for key, value in told.data.tags.items() if key.startswith("tunetrail.")}
    assert ours == {
        "tunetrail.commit": head,
        "tunetrail.release": "tickets@v1.0.0-dirty",
        "tunetrail.dvc_lock_md5": file_digest(project / "dvc.lock", "md5"),
    }
    assert told.info.status == "FINISHED"
    assert told.data.params["learning_rate"] == "0.001"
    lines = (project / paths.CURVES / "plots/metrics/validation/loss.tsv").read_text().splitlines()[1:]
    curve = [(one.step, one.value) for one in client.get_metric_history(told.info.run_id, "eval_loss")]
    assert curve == [(int(step), pytest.approx(float(loss))) for step, loss in map(str.split, lines)]
    assert curve


def test_a_tracker_that_does_not_answer_ends_training_before_it_starts(project: Path) -> None:
    code, text = run_stage(project, "train", die=functools.partial(report_to, "http://127.0.0.1:1"))
    assert code == 2
    assert "error: report_to: mlflow takes no run: " in text
    assert "TUNETRAIL_REPORT_TO=none goes without" in text
    assert "Traceback" not in text


def test_a_tracker_that_is_not_installed_is_named() -> None:
    with pytest.raises(UserError, match="report_to: trackio is not installed here; install it, or set TUNETRAIL_REP"):
        Tracked("trackio")


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
