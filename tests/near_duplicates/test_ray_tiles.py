"""The join on a cluster of two machines, of which one dies, against the join of one machine and brute force."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_sketched import by_brute_force
from variants import MIXED, texts_with_variants

from stages.core.errors import UserError
from stages.near_duplicates import pairs, ray_tiles
from stages.near_duplicates.pairs import cross_pairs, near_pairs
from stages.near_duplicates.rule import Pair

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
from ray.cluster_utils import Cluster  # noqa: E402  # only where it is

ROOT = Path(__file__).parents[2]
TEXTS = texts_with_variants(1500, 40, MIXED)
# A driver that dies when some tiles are finished.
KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1] + "/tests/near_duplicates")
from variants import MIXED, texts_with_variants
from stages.near_duplicates import pairs, ray_tiles
ray_tiles._SIDE, pairs._FEW = 250, 0
finish, finished = ray_tiles._finish, []
def and_die(path, found):
    finish(path, found)
    finished.append(path)
    if len(finished) == 3:
        os.kill(os.getpid(), 9)
ray_tiles._finish = and_die
pairs.near_pairs(texts_with_variants(1500, 40, MIXED), 90)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head on which no task runs, and a worker of one core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        memory = {"object_store_memory": 80 * 2**20}
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
        try:
            made.add_node(num_cpus=1, **memory)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture
def on_cluster(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNETRAIL_RAY", cluster.address)
    monkeypatch.setattr(pairs, "_FEW", 0)
    monkeypatch.setattr(ray_tiles, "_SIDE", 250)
    return cluster


def on_one_machine(call: Any, *arguments: Any) -> list[Pair]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TUNETRAIL_RAY")
        found: list[Pair] = call(*arguments)
        assert found, "a test without pairs shows nothing"
        assert found == by_brute_force(call, *arguments)
    return found


def left_behind() -> list[Path]:
    return [path for path in Path(".tunetrail").rglob("*") if path.is_file()]


def test_a_machine_that_dies_changes_nothing(on_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = on_one_machine(near_pairs, TEXTS, 90)
    (dying,) = on_cluster.worker_nodes
    finish, finished = ray_tiles._finish, []

    def and_one_dies(path: Path, found: Any) -> None:
        finish(path, found)
        finished.append(path)
        if len(finished) == 2:
            on_cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        if len(finished) == 6:  # two tasks for each core are under way, so the one that dies has some
            on_cluster.remove_node(dying, allow_graceful=False)

    monkeypatch.setattr(ray_tiles, "_finish", and_one_dies)
    assert near_pairs(TEXTS, 90) == expected
    assert len(finished) == len(set(finished)) > 10
    assert left_behind() == []


def test_two_sides_and_a_side_that_is_short(on_cluster: Any) -> None:
    left, right = TEXTS[:300], TEXTS[300:]
    assert cross_pairs(left, right, 75) == on_one_machine(cross_pairs, left, right, 75)
    assert near_pairs([], 90) == []
    assert left_behind() == []


def test_a_killed_driver_goes_on_with_what_is_left(on_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(ROOT)], env=environment, check=False)
    assert killed.returncode == -9
    kept = left_behind()
    assert len(kept) == 3
    kept[0].write_bytes(kept[0].read_bytes()[:-1])  # torn, as no kill leaves it: computed again
    finish, names = ray_tiles._finish, []

    def noted(path: Path, found: Any) -> None:
        names.append(path.name)
        finish(path, found)

    monkeypatch.setattr(ray_tiles, "_finish", noted)
    assert near_pairs(TEXTS, 90) == on_one_machine(near_pairs, TEXTS, 90)
    assert kept[0].name in names
    assert not {path.name for path in kept[1:]} & set(names)
    assert left_behind() == []


def test_too_many_pairs_are_the_same_sentence_and_leave_nothing(
    on_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "_MOST", 10)
    with pytest.raises(UserError, match=r"raise dedup\.threshold"):
        near_pairs(TEXTS, 90)
    assert left_behind() == []


def test_a_task_that_cannot_run_is_a_sentence(on_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_tiles, "near_in_tile", _in_this_module)  # which no worker has
    with pytest.raises(UserError, match=r"could not compute a tile: .*No module named.*needs the packages"):
        near_pairs(TEXTS, 90)


def _in_this_module(*_: Any) -> None:
    raise AssertionError


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no such machine", "machine:port", "[::1"])
def test_an_address_where_nothing_answers_is_a_sentence(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNETRAIL_RAY", address)
    monkeypatch.setattr(pairs, "_FEW", 0)
    with pytest.raises(UserError, match="no Ray cluster answers there"):
        near_pairs(TEXTS[:100], 90)


def test_a_missing_package_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNETRAIL_RAY", "auto")
    monkeypatch.setattr(pairs, "_FEW", 0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'tunetrail\[ray\]'"):
        near_pairs(TEXTS[:100], 90)


def test_without_the_setting_ray_is_not_imported() -> None:
    code = (
        "import sys; from stages.near_duplicates import pairs; pairs._FEW = 0;"
        "pairs.near_pairs([str(n) for n in range(500)], 90); assert 'ray' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TUNETRAIL_RAY"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
