"""sweep on real DVC experiments, whose training is a script: a loss that depends on the learning rate and the rank."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scratch import ENVIRONMENT, Scratch

from stages.core.errors import UserError
from stages.team.sweep import Range, Search, Stop, Sweep, _shares, settled
from stages.team.sweep_page import scatter

pytest_plugins = ["scratch_fixtures"]
ROOT = Path(__file__).parents[2]
TRAIN = """
import json, os, pathlib, time
params = pathlib.Path("params.yaml").read_text()
rate = float(next(line.split()[1] for line in params.splitlines() if "learning_rate:" in line))
curve = pathlib.Path("metrics/curves/plots/metrics/validation/loss.tsv")
curve.parent.mkdir(parents=True)
slow = pathlib.Path("ROOT/slow").exists()  # beside the copies in which trials run
pathlib.Path("ROOT/threads", os.environ["OMP_NUM_THREADS"]).touch()
if rate == 0.5:
    raise SystemExit("this rate fails")
text = "step\\tloss\\n"
for step in (1, 2, 3):
    text += f"{step}\\t{rate * 10 + 1 / step}\\n"
    curve.write_text(text)
    time.sleep(600 if slow or rate == 0.9 and step == 3 else 0)
loss = {"validation_best": rate * 10 + 1 / 3, "validation_last": 7.0}
pathlib.Path("metrics/train.json").write_text(json.dumps({"loss": loss}))
"""
PIPELINE = """
stages:
  train:
    cmd: python -ES train.py
    deps: [train.py]
    params: [train]
    outs: [metrics/train.json]
    plots: [{metrics/curves: {cache: false}}]
  evaluate:
    cmd: exit 1  # looks at the hold-out: no trial may come here
    deps: [metrics/train.json]
"""


@pytest.fixture
def project(tmp_path: Path, quiet_git: None) -> Scratch:
    scratch = Scratch(tmp_path / "project")
    scratch.write("params.yaml", (ROOT / "params.yaml").read_text())
    scratch.write("train.py", TRAIN.replace("ROOT", str(tmp_path)))
    (tmp_path / "threads").mkdir()
    scratch.write("dvc.yaml", PIPELINE)
    scratch.write(".gitignore", ".tunetrail/\n/metrics/train.json\n/sweep.yaml\n")
    scratch.git("init", "--quiet", "--initial-branch=main")
    scratch.dvc("init")
    scratch.commit("Start")
    return scratch


def ask(project: Scratch, **spec: Any) -> Any:
    """`tunetrail sweep` of the learning rate."""
    given = {"name": "rates", "sampler": "grid", "trials": 9, "parameters": {"train.learning_rate": [0.1, 0.2]}}
    project.write("sweep.yaml", json.dumps(given | spec))
    return project.tunetrail("sweep", "sweep.yaml")


def experiments(project: Scratch) -> list[str]:
    refs = project.git("for-each-ref", "--format=%(refname)", "refs/exps")
    return sorted(ref.rpartition("/")[2] for ref in refs.splitlines() if "/exps/exec" not in ref)


def test_each_trial_is_an_experiment_and_the_best_can_be_applied(project: Scratch, tmp_path: Path) -> None:
    rates = [0.3, 0.1, 0.5, 0.2]
    said = ask(project, parameters={"train.learning_rate": rates}, workers=2, trials=3)
    assert said.code == 0, said.err
    assert "rates-2: dvc exp run failed" in said.out
    assert "this rate fails" in said.out
    assert [file.name for file in (tmp_path / "threads").iterdir()] == [str(max((os.cpu_count() or 1) // 2, 1))]
    more = ask(project, parameters={"train.learning_rate": rates}, workers=2)  # goes on with what is left
    assert "3 of 4 trials have a value" in more.out
    assert more.out.endswith("best: validation_best 1.33333 with {'train.learning_rate': 0.1}\ndvc exp apply rates-1\n")
    assert experiments(project) == ["rates-0", "rates-1", "rates-3"]
    page = (project.root / ".tunetrail/sweeps/rates/sweep.html").read_text()
    assert page.count("<circle") == 6  # history and one slice
    assert "<script" not in page
    assert "<td>train.learning_rate</td><td>1.00</td>" in page
    project.dvc("exp", "apply", "rates-1")
    assert "learning_rate: 0.1" in (project.root / "params.yaml").read_text()
    assert json.loads((project.root / "metrics/train.json").read_text())["loss"]["validation_best"] < 1.4


def test_a_trial_worse_than_the_others_is_pruned_while_it_trains(project: Scratch) -> None:
    """It would take ten minutes."""
    said = ask(project, parameters={"train.learning_rate": [0.1, 0.2, 0.3, 0.9]})
    assert "rates-3: pruned" in said.out, said.err
    assert experiments(project) == ["rates-0", "rates-1", "rates-2"]
    assert not list((project.root / ".dvc/tmp/exps").glob("standalone/tmp*"))  # its copy is gone


def test_a_killed_sweep_goes_on(project: Scratch, tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    project.write(
        "sweep.yaml",
        json.dumps(
            {
                "name": "rates",
                "sampler": "random",
                "trials": 2,
                "parameters": {"train.learning_rate": {"low": 0.1, "high": 0.4}},
            }
        ),
    )
    command = [sys.executable, "-m", "stages.cli", "sweep", "sweep.yaml"]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=project.root, env=environment)
    trials = _until(
        lambda: list((project.root / ".dvc/tmp/exps").glob("standalone/tmp*/metrics/curves/plots/metrics/*/loss.tsv"))
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    spec = json.loads((project.root / "sweep.yaml").read_text())
    busy = ask(project, **spec)
    assert (busy.code, "a trial that a killed one left, is at work" in busy.err) == (1, True)
    _kill_those_in(trials[0].parents[5])
    (tmp_path / "slow").unlink()
    _until(lambda: "at work" not in (answers := ask(project, **spec)).err and [answers])
    said = ask(project, **spec)
    assert said.code == 0, said.err
    assert "2 of 3 trials have a value" in said.out
    assert experiments(project) == ["rates-1", "rates-2"]


def _until(found: Any) -> Any:
    for _ in range(1200):
        if got := found():
            return got
        time.sleep(0.1)
    raise AssertionError("nothing came")


def _kill_those_in(folder: Path) -> None:
    import psutil

    for one in psutil.process_iter():
        try:
            if Path(one.cwd()) == folder:
                one.kill()
        except psutil.Error:
            continue


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            {"objective": "adapter.exact_match"},
            "never by the hold-out: rows that choose a model no longer tell how good",
        ),
        ({"parameters": {"train.learning_rat": [1]}}, "train.learning_rat"),
        ({"parameters": {"train.rank": [8, "many"]}}, "train.rank"),
        ({"parameters": {"train.rank": {"low": 8, "high": 0.5}}}, "low must be below high"),
        ({"parameters": {"holdout.share": [0.1, 0.2]}}, "only parameters of train and augment can be swept"),
        ({"parameters": {"train.max_tokens": [64, 128]}}, "others change the validation rows"),
        ({"parameters": {"train.batch_size": [2, 4]}}, "write prune: false"),
        (
            {"parameters": {"train.learning_rate": {"low": 0.1, "high": 0.2}}},
            "a grid needs a list, or low, high and step",
        ),
        ({"parameters": {"train.rank": []}}, "train.rank: a list needs values"),
        ({"parameters": {"train.rank": {"low": 4, "high": 16, "step": -4}}}, "should be greater than 0"),
        ({"parameters": {"train.learning_rate": {"low": 0.1, "high": 0.2, "step": 0.1, "log": True}}}, "step and log"),
        ({"parameters": {"train.rank.x": [8]}}, "train.rank: "),
        ({"sampler": "guess"}, "sampler: input should be 'tpe', 'random' or 'grid'"),
        ({"trails": 3}, "trails: extra inputs are not permitted"),
    ],
)
def test_a_mistake_is_a_sentence(project: Scratch, spec: dict[str, Any], said: str) -> None:
    answer = ask(project, **spec)
    assert answer.code == 2
    assert said in answer.err
    assert "sweep.yaml" in answer.err


def test_a_sweep_belongs_to_a_commit(project: Scratch) -> None:
    project.replace("params.yaml", "seed: 17", "seed: 18")
    changed = ask(project)
    assert (changed.code, "commit them first" in changed.err) == (1, True)


def test_the_first_failure_ends_a_sweep_that_cannot_work(project: Scratch) -> None:
    said = ask(project, parameters={"train.learning_rate": [0.5, 0.1]})
    assert said.code == 2
    assert "the first trial failed: dvc exp run failed" in said.err


def test_each_worker_has_a_card_or_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert list(_shares(3)) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert list(_shares(2)) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert list(_shares(1)) == [{}]
    with pytest.raises(UserError, match="workers: 3, but this machine has 2 cards: one worker a card"):
        list(_shares(3))


def trial(minute: int, value: float, state: str = "COMPLETE") -> SimpleNamespace:
    done = datetime(2026, 1, 1) + timedelta(minutes=minute)
    return SimpleNamespace(value=value, state=SimpleNamespace(name=state), datetime_complete=done)


@pytest.mark.parametrize(
    ("values", "ends"),
    [([3.0, 2.0], False), ([3.0, 2.0, 1.995, 2.5], True), ([3.0, 2.0, 1.98, 2.5], False), ([1.0, 1.0, 1.0], True)],
)
def test_the_sweep_ends_when_the_best_moves_less_than_noise(values: list[float], ends: bool) -> None:
    trials = [trial(number, value) for number, value in enumerate(values)]
    assert settled(trials, Stop(noise=0.01, patience=2)) is ends
    assert not settled(trials, None)


def test_pruned_trials_count_as_no_better_and_unfinished_ones_not_at_all() -> None:
    stop = Stop(noise=0.01, patience=2)
    assert settled([trial(0, 1.0), trial(1, 0, "PRUNED"), trial(2, 0, "PRUNED")], stop)
    assert not settled([trial(0, 1.0), trial(1, 0, "FAIL"), trial(2, 0, "RUNNING")], stop)


def test_a_grid_of_steps_has_both_ends() -> None:
    assert Range(low=1, high=7, step=3).values() == [1, 4, 7]
    assert Range(low=0.1, high=0.3, step=0.1).values() == pytest.approx([0.1, 0.2, 0.3])
    assert Sweep.model_fields["objective"].default == "validation_best"


def test_a_trial_of_a_grid_that_was_killed_before_its_values_were_asked_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed again in the middle of the repair, it counts once."""
    spec = Sweep(name="rates", sampler="grid", trials=4, parameters={"train.rank": [1, 2]})
    repository: Any = SimpleNamespace(git=lambda *_: "0" * 40, resolve=lambda _: None)
    search = Search(spec, repository, tmp_path, 0)
    search.study.ask()
    with monkeypatch.context() as patch:
        patch.setattr(search.study, "tell", None)  # a kill after the trial was put back, before it was told
        with pytest.raises(TypeError):
            search.recover()
    search = Search(spec, repository, tmp_path, 0)
    search.recover()
    assert search.study.user_attrs["killed"] == [0]
    waiting = [trial.system_attrs["fixed_params"]["train.rank"] for trial in search._trials("WAITING")]
    assert sorted(waiting) == [1, 2]


def test_a_slice_of_values_of_any_type_has_a_place_for_each() -> None:
    values: list[Any] = [None, 1, 1.0, True, "a<b", "1"]
    ticks = scatter([(value, 0.5, "x") for value in values])["ticks"]
    assert [text for _, text in ticks] == ["1", "1.0", "None", "True", "a<b"]
