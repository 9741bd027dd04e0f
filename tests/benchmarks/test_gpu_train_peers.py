"""What the peers' table says of a contender: the half that counts, the projection, and what a cut run leaves."""

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_train_peers as peers


def watched(file: Path, marks: list[tuple[int, float, int]], monkeypatch: Any) -> dict[str, Any]:
    """The answer after marks of (step, second, tokens so far), for a job of 1,000 tokens an epoch."""
    watch = peers.Watch(file, 0.0, 1e12, 1000)
    for step, second, tokens in marks:
        monkeypatch.setattr(time, "time", lambda now=second: now)
        watch.mark(step, tokens)
    return dict(json.loads(file.read_text(encoding="utf-8")))


def test_the_speed_is_that_of_the_second_half_and_start_up_is_counted_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = [(1, 20.0, 10), (5, 60.0, 50), (10, 61.0, 100), (15, 62.0, 150), (20, 63.0, 200)]
    answer = watched(tmp_path / "a.json", marks, monkeypatch)
    assert (answer["seconds_to_first_step"], answer["tokens_per_second"], answer["tokens_a_step"]) == (20.0, 50, 10)
    assert answer["projected_seconds_to_adapter"] == pytest.approx(20 + (3 * 1000 - 10) / 50)


def test_one_step_alone_is_no_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = watched(tmp_path / "a.json", [(1, 20.0, 10)], monkeypatch)
    assert answer["seconds_to_first_step"] == 20.0
    assert "tokens_per_second" not in answer


def test_a_loss_that_is_no_number_shows(tmp_path: Path) -> None:
    watch = peers.Watch(tmp_path / "a.json", 0.0, 1e12, 1000)
    watch.log({"loss": 2.0, "grad_norm": float("nan")})
    watch.write()
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["finite"] is False


def test_a_library_that_is_absent_is_said_to_be_and_a_run_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("unsloth") is None:
        name = next(name for name in peers.CONTENDERS if name.startswith("Unsloth"))
        assert peers.contend(name, tmp_path) == {"skipped": "not installed"}
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import pathlib, sys, time\n"
        "pathlib.Path(sys.argv[3]).write_text('{\"steps\": 7}')\n"
        "print('at work', flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.setattr(peers, "__file__", str(slow))
    start = time.monotonic()
    assert peers.contend("any", tmp_path, 2) == {"steps": 7, "stopped": "at work\n"}
    assert time.monotonic() - start < 20
