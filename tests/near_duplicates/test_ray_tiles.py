"""The join on a cluster of two machines, of which one dies, against the join of one machine and brute force."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import Finished, add_worker, left_behind, running_cluster
from test_sketched import by_brute_force
from variants import MIXED, texts_with_variants

from stages.core.cluster import Shared
from stages.core.errors import UserError
from stages.near_duplicates import pairs, ray_tiles
from stages.near_duplicates.pairs import cross_pairs, near_pairs, nearest
from stages.near_duplicates.rule import Pair

ROOT = Path(__file__).parents[2]
TEXTS = texts_with_variants(1500, 40, MIXED)
# A driver that dies when some tiles are finished.
KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1] + "/tests/near_duplicates")
from variants import MIXED, texts_with_variants
from stages.core import cluster
from stages.near_duplicates import pairs, ray_tiles
ray_tiles._SIDE, pairs._FEW = 250, 0
finish, finished = cluster._finish, []
def and_die(path, found):
    finish(path, found)
    finished.append(path)
    if len(finished) == 3:
        os.kill(os.getpid(), 9)
cluster._finish = and_die
pairs.near_pairs(texts_with_variants(1500, 40, MIXED), 90)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with running_cluster() as made:
        yield made


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


def test_a_machine_that_dies_changes_nothing(on_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = on_one_machine(near_pairs, TEXTS, 90)
    (dying,) = on_cluster.worker_nodes

    def and_one_dies(count: int) -> None:
        if count == 2:
            add_worker(on_cluster)
        if count == 6:  # two tasks for each core are under way, so the one that dies has some
            on_cluster.remove_node(dying, allow_graceful=False)

    finished = Finished(monkeypatch, and_one_dies)
    assert near_pairs(TEXTS, 90) == expected
    assert len(finished.names) == len(set(finished.names)) > 10
    assert left_behind() == []


def test_a_run_of_texts_is_sent_once(on_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def noted(shared: Shared, ray: Any) -> Any:
        if shared.sent is None:
            sent.append(tuple(shared.value))
        return reference(shared, ray)

    reference = Shared.reference
    monkeypatch.setattr(Shared, "reference", noted)
    finished = Finished(monkeypatch)
    assert near_pairs(TEXTS, 90) == on_one_machine(near_pairs, TEXTS, 90)
    assert len(sent) == len({*sent}) < len(finished.names) * 1.5


@pytest.mark.parametrize("letters", [MIXED, "ab"])  # of two letters: many are equally near
def test_the_nearest_is_that_of_one_machine(letters: str, on_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_with_variants(400, 6 if letters == "ab" else 30, letters)
    some, others = texts[:60], texts[60:]
    monkeypatch.setattr(pairs, "_FEW_NEAREST", 0)
    monkeypatch.setattr(pairs, "_CANDIDATES", 90)
    monkeypatch.setattr(pairs, "_ROWS", 25)
    finished, found = Finished(monkeypatch), nearest(some, others, len(others))
    assert len(finished.names) == 12
    monkeypatch.delenv("TUNETRAIL_RAY")
    assert found == nearest(some, others, len(others))
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
    finished = Finished(monkeypatch)
    assert near_pairs(TEXTS, 90) == on_one_machine(near_pairs, TEXTS, 90)
    assert kept[0].name in finished.names
    assert not {path.name for path in kept[1:]} & {*finished.names}
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
    with pytest.raises(UserError, match=r"could not compute a task: .*No module named.*needs the packages"):
        near_pairs(TEXTS, 90)


def _in_this_module(*_: Any) -> None:
    raise AssertionError


def test_of_a_cluster_that_this_machine_belonged_to_it_says_how_to_forget_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNETRAIL_RAY", "auto")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(pairs, "_FEW", 0)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1, does not answer; start it anew, or forget it: ray stop"):
        near_pairs(TEXTS[:100], 90)


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
