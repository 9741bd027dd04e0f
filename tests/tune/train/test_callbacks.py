"""A run whose numbers are none ends at once; its speed is that of its steps."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.core.errors import Refusal
from stages.tune.train.callbacks import Curves, Progress, StopsAtNaN

AT = SimpleNamespace(global_step=5, max_steps=40)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "eval_loss"])
def test_a_number_that_is_none_ends_the_run_with_advice(name: str) -> None:
    with pytest.raises(Refusal, match=rf"step 5 of 40: {name} is inf\. Try a lower train\.learning_rate"):
        StopsAtNaN().on_log(None, AT, None, {name: float("inf")})


def test_numbers_pass() -> None:
    StopsAtNaN().on_log(None, AT, None, {"loss": 5.0, "grad_norm": 0.0, "learning_rate": 1e-3, "epoch": 1.0})
    StopsAtNaN().on_log(None, AT, None, None)


def test_speed_is_of_steps_and_not_of_what_is_saved_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, clock = Progress(), [0.0]
    monkeypatch.setattr("stages.tune.train.callbacks.time.monotonic", lambda: clock[0])
    state = SimpleNamespace(global_step=0, max_steps=40, is_world_process_zero=False)
    progress.on_train_begin(None, state, None)
    assert progress.steps_per_second() is None
    for _ in range(8):
        state.global_step += 5
        clock[0] += 2.0
        progress.on_log(None, state, None, {"loss": 1.0})
    clock[0] += 60.0
    progress.on_log(None, state, None, {"train_runtime": 76.0})
    assert progress.steps_per_second() == 2.5


def test_the_curve_of_a_run_that_ends_in_nan_has_its_last_points(tmp_path: Path) -> None:
    curves, entries = Curves(tmp_path / "curves"), [{"loss": 2.0, "step": 1}, {"loss": 1.5, "step": 2}]
    state = SimpleNamespace(is_world_process_zero=True, log_history=[])
    curves.on_train_begin(None, state, None)
    for entry in [*entries, {"loss": float("nan"), "step": 3}]:  # within a second, in which none is written
        state.log_history.append(entry)
        curves.on_log(None, state, None)
    lines = (tmp_path / "curves/plots/metrics/train/loss.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == ["1", "2", "3"]


def test_curves_are_the_same_bytes_however_fast_the_steps_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [{"loss": 2.0, "step": 1}, {"eval_loss": 1.9, "step": 1}, {"loss": 1.5, "step": 2}]
    found = []
    for seconds in (0.0, 0.6, 2.0):
        clock, state = [0.0], SimpleNamespace(is_world_process_zero=True, log_history=[])
        monkeypatch.setattr("stages.tune.train.callbacks.time.monotonic", lambda: clock[0])  # noqa: B023 called in here
        folder = tmp_path / f"{seconds} seconds a step"
        curves = Curves(folder)
        curves.on_train_begin(None, state, None)
        for entry in entries:
            clock[0] += seconds
            state.log_history.append(entry)
            curves.on_log(None, state, None)
        curves.on_train_end(None, state, None)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        found.append({str(file.relative_to(folder)): file.read_bytes() for file in files})
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 3
