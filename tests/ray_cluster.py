"""A Ray cluster of this machine's processes: a head on which no task runs, and workers of a core that may be killed."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
from ray.cluster_utils import Cluster  # noqa: E402  # only where it is

from stages.core import cluster as on_cluster  # noqa: E402

os.environ.setdefault("RAY_worker_niceness", "0")  # else the tests' workers yield to the other tests
SEEDS = range(int(os.environ.get("RAY_SEEDS", "1")))  # make test-ray SEEDS=…
MEMORY = {"object_store_memory": 80 * 2**20}
# A node whose process is gone is missed within two seconds, not half a minute.
WATCHED = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


@contextmanager
def running_cluster() -> Iterator[Any]:
    """A cluster with one worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": WATCHED, **MEMORY}
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            add_worker(made)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def add_worker(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, **MEMORY)


def set_workers(cluster: Any, count: int) -> None:
    while len(cluster.worker_nodes) > count:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    while len(cluster.worker_nodes) < count:
        add_worker(cluster)


class Finished:
    """Notes every task that the cluster has finished, and calls `then` with their number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, then: Callable[[int], None] = lambda count: None) -> None:
        self.names: list[str] = []
        finish = on_cluster._finish

        def noted(path: Path, result: bytes) -> None:
            finish(path, result)
            self.names.append(path.name)
            then(len(self.names))

        monkeypatch.setattr(on_cluster, "_finish", noted)


def shuffled(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Of the tasks under way a random one ends next, not the first."""
    wait, draw = ray.wait, random.Random(seed)

    def any_of(running: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        ready, _ = wait(running, num_returns=len(running))
        return [draw.choice(ready)], []

    monkeypatch.setattr(ray, "wait", any_of)


def here(seed: int, cores: int = 2) -> Any:
    """In place of the connection to a cluster: tasks in this process, of those under way a random one next."""
    draw = random.Random(seed)

    class Ray:
        def remote(self, **_: Any) -> Any:
            return lambda function: SimpleNamespace(remote=lambda *task: partial(function, *task))

        def cluster_resources(self) -> dict[str, float]:
            return {"CPU": cores}

        def wait(self, running: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
            assert len(running) <= 2 * cores
            return draw.sample(running, num_returns), []

        def get(self, started: Any) -> Any:
            return started()

    return lambda address: nullcontext(Ray())


def left_behind() -> list[Path]:
    return [path for path in Path(".tunetrail").rglob("*") if path.is_file()]
