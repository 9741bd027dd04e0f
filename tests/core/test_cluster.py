"""Tasks in order, whatever ends first, and what of them is there after a kill; the cluster itself is in test_shards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray_cluster import Finished, here, left_behind

from stages.core import cluster
from stages.core.cluster import in_order
from stages.core.errors import UserError

CALLS: list[int] = []


class Killed(BaseException):
    """No exception of a program: nothing is tidied up after it."""


def double(number: int) -> bytes:
    CALLS.append(number)
    return str(2 * number).encode()


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "_cluster", here(0))
    CALLS.clear()
    yield
    assert left_behind() == []


@given(numbers=st.lists(st.integers(0, 20)), seed=st.integers(0, 99), cores=st.integers(1, 5), dies=st.integers(0, 30))
def test_results_are_in_order_and_nothing_is_done_twice(numbers: list[int], seed: int, cores: int, dies: int) -> None:
    def kill(count: int) -> None:
        if count == dies:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "_cluster", here(seed, cores))
        finished = Finished(patch, kill)
        tasks = [(number,) for number in numbers]
        CALLS.clear()
        try:
            found = [*in_order(double, tasks, "", "doubles")]
        except Killed:
            assert len(left_behind()) == dies
            found = [*in_order(double, tasks, "", "doubles")]
    assert found == [str(2 * number).encode() for number in numbers]
    assert sorted(CALLS) == sorted({*numbers})
    assert len(finished.names) == len({*finished.names})
    assert left_behind() == []


def test_tasks_are_made_when_there_is_room_for_them() -> None:
    made = []

    def tasks() -> Iterator[tuple[int]]:
        for number in range(50):
            made.append(number)
            yield (number,)

    results = in_order(double, tasks(), "", "doubles")
    assert next(results) == b"0"
    assert len(made) - len(CALLS) <= 5, "two for each core, and the one that is asked for"
    assert [*results] == [str(2 * number).encode() for number in range(1, 50)]


def test_of_two_runs_at_once_neither_has_the_results_of_the_other() -> None:
    first = in_order(double, [(n,) for n in range(9)], "", "doubles")
    assert next(first) == b"0"
    held = left_behind()
    assert [*in_order(double, [(n,) for n in range(9)], "", "doubles")] == [str(2 * n).encode() for n in range(9)]
    assert left_behind() == held
    assert len([*first]) == 8


def test_a_caller_that_has_had_enough_leaves_nothing() -> None:
    results = in_order(double, [(n,) for n in range(9)], "", "doubles")
    assert next(results) == b"0"
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")])
def test_a_result_that_is_gone_is_a_sentence(damage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = cluster._finish

    def and_lost(path: Path, result: bytes) -> None:
        finish(path, result)
        damage(path)

    monkeypatch.setattr(cluster, "_finish", and_lost)
    with pytest.raises(UserError, match="was removed or damaged meanwhile; run again"):
        [*in_order(double, [(1,)], "", "doubles")]
    monkeypatch.setattr(cluster, "_finish", finish)
    assert [*in_order(double, [(1,)], "", "doubles")] == [b"2"]


def test_what_is_stale_goes_when_all_is_done() -> None:
    stale = cluster._FINISHED / "doubles" / "of other rows"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    assert [*in_order(double, [], "", "doubles")] == []
