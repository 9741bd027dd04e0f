"""Two processes learn what one does; only the first writes; a run goes on with another number of them."""

import functools
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from project import set_params
from stage_process import die_training, run_stage
from training_project import Result, assert_same, lay_out, result, shard_without_cards, sharded

from stages.core.errors import UserError
from stages.core.files import read_json
from stages.tune.train import devices
from stages.tune.train.devices import free_port


def become(rank: int, port: int, then: Callable[[], None] | None = None, **speed: str) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {f"TUNETRAIL_{name.upper()}": value for name, value in speed.items()}
    torch.set_num_threads(1)
    if then:
        then()


def train_on_two(project: Path, die: Callable[[], None] | None = None, **speed: str) -> list[tuple[int, str]]:
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(run_stage, project, "train", functools.partial(become, rank, port, die, **speed), str(rank))
            for rank in range(2)
        ]
        return [run.result() for run in runs]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("processes") / "project", early_stopping_patience=None)


@pytest.fixture(scope="module")
def one(project: Path) -> Result:
    code, text = run_stage(project, "train")
    assert code == 0, text
    return result(project)


@pytest.mark.parametrize("engine", ["trl", "fused"])
def test_two_processes_learn_what_one_does(project: Path, one: Result, engine: str) -> None:
    set_params(project, {"train": {"engine": engine}})
    (first, text), (second, silent) = train_on_two(project)
    set_params(project, {"train": {"engine": "auto"}})
    assert (first, second) == (0, 0), text + silent
    assert_same(result(project), one)
    assert read_json(project / "metrics" / "env" / "train.json")["devices"] == 2
    assert f"train.engine: {engine}" in text
    assert silent.count("\n") < 4, silent


@pytest.mark.parametrize("tokens", ["10000", "1"])
def test_how_two_processes_cut_a_batch_changes_no_loss(project: Path, one: Result, tokens: str) -> None:
    (first, text), (second, other) = train_on_two(project, micro_batch_tokens=tokens)
    assert (first, second) == (0, 0), text + other
    assert_same(result(project), one)


def test_sharded_weights_learn_the_same(project: Path, one: Result) -> None:
    die = functools.partial(shard_without_cards, die_training)
    died = train_on_two(project, die, sharding="true")
    assert all(code for code, _ in died), died
    assert sharded(project), died
    (first, text), (second, other) = train_on_two(project, shard_without_cards, sharding="true")
    assert (first, second) == (0, 0), text + other
    assert "checkpoint-8" in text
    assert_same(result(project), one)


def test_a_run_goes_on_with_another_number_of_processes(project: Path, one: Result) -> None:
    assert run_stage(project, "train", die_training)[0] < 0
    (code, text), _ = train_on_two(project)
    assert code == 0, text
    assert "checkpoint-8" in text
    assert_same(result(project), one)
    assert all(code < 0 for code, _ in train_on_two(project, die_training))
    code, text = run_stage(project, "train")
    assert code == 0, text
    assert "checkpoint-8" in text
    assert_same(result(project), one)


def test_a_mistake_ends_all_processes_with_its_own_code(project: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(project, broken)
    set_params(broken, {"train": {"max_tokens": 8}})
    done = subprocess.run(
        [sys.executable, "-m", "stages.tune.train"],
        cwd=broken,
        env=os.environ | {"TUNETRAIL_PROCESSES": "2", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "train.max_tokens" in done.stderr
    assert "Traceback" not in done.stderr


def test_processes_end_when_the_one_that_started_them_is_killed() -> None:
    started = "import os, sys, time; from stages.tune.train.devices import start_all; start_all(); print(os.getpid());"
    started += "sys.stdout.flush(); time.sleep(60)"
    child = f"subprocess.Popen([sys.executable, '-c', {started!r}], env=os.environ | {{'LOCAL_RANK': '0'}}).wait()"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import os, subprocess, sys; {child}"], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    number = int(parent.stdout.readline())
    ended = os.pidfd_open(number)
    parent.kill()
    assert select.select([ended], [], [], 30)[0]
    os.close(ended)
    parent.wait()
    parent.stdout.close()


def test_more_processes_than_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "3", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"process 3 .* there are 2 here"):
        devices.join({})


def test_the_process_that_waits_for_the_others_loads_no_torch() -> None:
    """Each of the others takes its seconds for that, and they can begin at once."""
    script = "import sys, stages.tune.train.__main__ as m; m._import_ahead(); print('torch' in sys.modules)"
    for processes, loaded in (("2", "False"), ("1", "True")):
        environment = os.environ | {"TUNETRAIL_PROCESSES": processes}
        said = subprocess.run(
            [sys.executable, "-c", script], check=True, env=environment, capture_output=True, text=True
        )
        assert said.stdout.split()[-1] == loaded
