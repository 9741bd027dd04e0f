"""Two folders that share nothing train one model as two machines on loopback; only the first writes outputs."""

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from project import set_params
from stage_process import die_training, run_stage
from stage_server import programs
from training_project import Result, assert_same, lay_out, result, shard_without_cards, sharded

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_json
from stages.tune.train import machines
from stages.tune.train.devices import free_port

Ended = tuple[int, str]


def be_a_machine(python: str, prepared: str, **variables: str) -> None:
    """In the process that starts those of its machine; they are forked, too, and begin with what `prepared` says."""
    sys.executable = python
    os.environ |= {"STAGE_PREPARED_BY": prepared, **variables}


def be_a_process(die: Callable[[], None] | None) -> None:
    torch.set_num_threads(1)
    from stages.tune.train import machines as in_the_project

    in_the_project._AT_ONCE = 1000  # a checkpoint travels in many parts
    in_the_project._SILENT = float(os.environ.get("SILENT", "60"))
    if die:
        die()


def die_in_step(number: int, by: int = signal.SIGKILL) -> None:
    """Kill training in its step of this number, or do what another signal does."""
    import transformers

    take, calls = transformers.Trainer.get_batch_samples, [0]

    def counted(self: transformers.Trainer, *args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == number:
            if place := os.environ.get("STOPPED_AT"):
                Path(place).write_text(str(os.getpid()))
            os.kill(os.getpid(), by)
        return take(self, *args, **kwargs)

    transformers.Trainer.get_batch_samples = counted


def start(project: Path, die: Callable[[], None] | None, **variables: str) -> Ended:
    prepared = project / ".prepared"
    prepared.write_bytes(
        ForkingPickler.dumps((sys.path, bytes(ForkingPickler.dumps(functools.partial(be_a_process, die)))))
    )
    there = functools.partial(be_a_machine, str(programs() / "python"), str(prepared), **variables)
    return run_stage(project, "train", there)


def train_on(
    projects: list[Path], dies: Mapping[int, Callable[[], None]] = MappingProxyType({}), **variables: str
) -> list[Ended]:
    shared = {"NNODES": str(len(projects)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} | variables
    with ThreadPoolExecutor(len(projects)) as pool:
        runs = [
            pool.submit(start, project, dies.get(number), **shared, NODE_RANK=str(number))
            for number, project in enumerate(projects)
        ]
        return [run.result() for run in runs]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("machines") / "first", epochs=2, early_stopping_patience=None)


@pytest.fixture(scope="module")
def one(project: Path) -> Result:
    code, text = run_stage(project, "train")
    assert code == 0, text
    return result(project)


@pytest.fixture
def two(project: Path, one: Result, tmp_path: Path) -> list[Path]:
    """The project as two machines have it, without outputs."""
    places = [tmp_path / "first machine", tmp_path / "zweite Maschine"]
    for place in places:
        shutil.copytree(project, place, ignore=shutil.ignore_patterns("sft", ".tunetrail", "metrics", ".prepared*"))
    return places


def files(project: Path) -> set[str]:
    inside = (file.relative_to(project) for file in project.rglob("*") if file.is_file())
    return {file.as_posix() for file in inside if "__pycache__" not in file.parts and file.name != ".prepared"}


@pytest.mark.parametrize(("engine", "processes"), [("trl", "1"), ("fused", "2")])
def test_two_machines_learn_what_one_does(two: list[Path], one: Result, engine: str, processes: str) -> None:
    for place in two:
        set_params(place, {"train": {"engine": engine, "early_stopping_patience": 3}})  # the best model is the last
    before = files(two[1])
    (code, text), (along, said) = train_on(two, TUNETRAIL_PROCESSES=processes)
    assert (code, along) == (0, 0), text + said
    assert_same(result(two[0]), one)
    assert read_json(two[0] / "metrics" / "env" / "train.json")["devices"] == 2 * int(processes)
    assert "waits for the other 1 of 2 machines, at most 600 s" in text
    assert "the first has the outputs" in said
    assert files(two[1]) == before


def test_a_run_goes_on_with_another_number_of_machines(two: list[Path], one: Result) -> None:
    assert run_stage(two[0], "train", die_training)[0] < 0
    (code, text), (along, said) = train_on(two, {1: functools.partial(die_in_step, 6)})
    assert "checkpoint-8" in text, text + said
    assert (code, along) == (1, 9), text + said
    assert "another process of this training is gone" in text
    assert "SIGKILL ended a process of the training" in said
    assert "Traceback" not in text + said
    code, text = run_stage(two[0], "train")
    assert code == 0, text
    assert "checkpoint-12" in text
    assert_same(result(two[0]), one)


def test_a_machine_that_is_off_is_noticed_though_its_connections_are_open(two: list[Path]) -> None:
    port, stopped = str(free_port()), functools.partial(die_in_step, 6, signal.SIGSTOP)
    shared = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SILENT": "3"}
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(start, two[1], stopped, **shared, NODE_RANK="1", STOPPED_AT=str(two[1] / "process"))
        code, text = start(two[0], None, **shared, NODE_RANK="0")
        os.kill(int((two[1] / "process").read_text()), signal.SIGKILL)
        other.result()
    assert code == 1, text
    assert "another process of this training is gone or out of reach" in text
    assert "(silent for 3 s)" in text


def test_sharded_training_goes_on_with_another_number_of_machines(two: list[Path], one: Result) -> None:
    for place in two:
        set_params(place, {"train": {"early_stopping_patience": 3}})
    shards, both = {"TUNETRAIL_SHARDING": "true"}, dict.fromkeys(range(2), shard_without_cards)
    dies = functools.partial(shard_without_cards, die_training)
    assert start(two[0], dies, TUNETRAIL_PROCESSES="2", **shards)[0] != 0
    assert sharded(two[0])
    (code, text), _ = train_on(two)
    assert code == 2, text
    assert "was written with sharding; set the machine setting sharding to true" in text
    (code, text), (along, said) = train_on(two, both, **shards)
    assert (code, along) == (0, 0), text + said
    assert "checkpoint-8" in text
    assert_same(result(two[0]), one)


def test_machines_that_differ_are_refused_before_they_train(two: list[Path]) -> None:
    with (two[1] / paths.TRAIN).open("a") as stream:
        stream.write((two[1] / paths.VALIDATION).read_text())
    set_params(two[1], {"train": {"rank": 2}})
    (code, text), (along, said) = train_on(two)
    assert (code, along) == (2, 2), text + said
    for printed in (text, said):
        assert (
            "machine 1 has other data/train.jsonl, parameter train than the first; bring all to one commit" in printed
        )
        assert "Traceback" not in printed
    assert not (two[0] / paths.SFT).exists()


def test_a_first_machine_that_cannot_listen_says_so(two: list[Path]) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = start(two[0], None, NNODES="2", NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    assert code == 2, text
    assert f"this machine cannot listen at 127.0.0.1:{port}" in text
    assert "Traceback" not in text


def test_who_waits_in_vain_ends(two: list[Path]) -> None:
    shared = {"NNODES": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TUNETRAIL_WAIT": "1"}
    code, text = start(two[1], None, **shared, NODE_RANK="1")
    assert code == 2, text
    assert f"the first machine did not answer at 127.0.0.1:{shared['MASTER_PORT']} within 1 s" in text
    (code, text), (along, said) = train_on(two, NNODES="3", TUNETRAIL_WAIT="3")
    assert (code, along) == (2, 2), text + said
    for printed in (text, said):
        assert "no machine came with NODE_RANK 2 within 3 s; run `python -m stages.tune.train` there" in printed
        assert "Traceback" not in printed


def test_torchrun_starts_them_as_well(two: list[Path], one: Result) -> None:
    words = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    words += ["--no-python", str(programs() / "python"), "-m", "stages.tune.train"]
    runs = []
    for number, place in enumerate(two):
        run = [sys.executable, "-m", "torch.distributed.run", "--node-rank", str(number), *words]
        pipe, out = subprocess.PIPE, subprocess.STDOUT
        environment = os.environ | {"PYTHONPATH": ""}
        runs.append(subprocess.Popen(run, cwd=place, env=environment, stdout=pipe, stderr=out, text=True))
    texts = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], texts
    assert_same(result(two[0]), one)
    assert not (two[1] / paths.SFT).exists()


ASKED = {"GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"}
LAUNCHERS = {
    "torchrun": {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.7"},
    "one process a machine": {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"},
    "SkyPilot": {
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
    },
}


@pytest.mark.parametrize("variables", LAUNCHERS.values(), ids=LAUNCHERS)
def test_launchers_say_who_is_who(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    assert machines.asked_for() == {}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert machines.asked_for() == ASKED
    monkeypatch.setenv("DVC_STAGE", "train")
    with pytest.raises(UserError, match=r"machine 1 of several, and the first alone \(NODE_RANK=0\) runs `dvc repro`"):
        machines.asked_for()
    monkeypatch.setenv("NNODES", "1")
    assert machines.asked_for() == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("NNODES", "1:2"), ("NODE_RANK", "2"), ("NODE_RANK", ""), ("MASTER_ADDR", ""), ("MASTER_PORT", "x")],
)
def test_variables_that_say_too_little_are_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for known, right in {**LAUNCHERS["torchrun"], "MASTER_PORT": "29500", name: value}.items():
        monkeypatch.setenv(known, right)
    with pytest.raises(UserError, match=rf"{name} \('{value}'"):
        machines.asked_for()
