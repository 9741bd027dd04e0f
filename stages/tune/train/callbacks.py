"""What happens beside the optimiser's steps: curves, trackers, sample answers, progress, checkpoints.

Checkpoints live outside DVC's outputs, one folder for each exact state of inputs, parameters and code.
"""

import hashlib
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import get_last_checkpoint

from stages.core import paths
from stages.core.dependencies import digest, filled_in
from stages.core.dvc_lock import entry_hash, value_at
from stages.core.errors import Refusal, UserError
from stages.core.files import file_digest, read_json, remove, tree_digest, write_json, write_text
from stages.core.git import LOCK, Repository, WorkingTree
from stages.core.machine import machine_settings
from stages.core.run_notes import library_versions
from stages.core.yaml_reader import load_yaml
from stages.model.answers import answer_rows
from stages.model.chat import Chat
from stages.params.loader import read_params
from stages.params.model import Generation
from stages.records.record import Record, read_rows, write_rows
from stages.tune.train import devices, machines

_SECONDS_BETWEEN_LINES = 10.0
_SAMPLES = "samples.jsonl"
# Written last, beside a checkpoint: the hash of its files. Without it, the process died while saving.
_MARK = ".sha256"

# The trainer's name of a value, and the curve that shows it.
_CURVES = {
    "loss": "train/loss",
    "grad_norm": "train/gradient_norm",
    "learning_rate": "train/learning_rate",
    "eval_loss": "validation/loss",
    "reward": "train/reward",
    "eval_reward": "validation/reward",
    "rewards/margins": "train/margin",
    "eval_rewards/margins": "validation/margin",
}


class Curves(TrainerCallback):  # type: ignore[misc]
    """Loss curves for `dvc plots`, written while training runs; at most once a second, since a card waits meanwhile."""

    _live: Any = None

    def __init__(self, folder: Path = paths.CURVES) -> None:
        self._folder, self._kept, self._written = folder, list[dict[str, Any]](), 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        from dvclive import Live

        # DVCLive would else write a dvc.yaml of its own and save an experiment within the experiment.
        self._live = Live(str(self._folder), dvcyaml=None, save_dvc_exp=False)
        self._live.summary["step"] = 0  # else its place in the file would tell when the first was written
        self._kept = list(state.log_history)  # a resumed run first repeats the curve up to its checkpoint
        self._write()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._live:
            self._kept.append(state.log_history[-1])
            if time.monotonic() - self._written >= 1 or _broken(state.log_history[-1]):
                self._write()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._live:
            self._write()
            self._live.end()

    def _write(self) -> None:
        for entry in self._kept:
            self._live.step = entry["step"]
            for name, curve in _CURVES.items():
                if name in entry:
                    self._live.log_metric(curve, entry[name], timestamp=False)
        if self._kept:
            self._live.sync()
        self._kept, self._written = [], time.monotonic()


class Tracked(TrainerCallback):  # type: ignore[misc]
    """Tells MLflow, Weights & Biases or Trackio of the run, by transformers' own callback and the tracker's settings.

    The run there is tagged with commit, release and dvc.lock. A tracker that does not take the run ends training before
    it starts; one that fails later is left alone, and training goes on. A run that is resumed is a new one there, but
    in Trackio, which goes on with the run of the same name.
    """

    def __init__(self, tracker: str) -> None:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(f"report_to: {tracker} is not installed here; install it, or set TUNETRAIL_REPORT_TO=none")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # else it tries for minutes
        (kind,) = get_reporting_integration_callbacks([tracker])
        self.tracker, self.run, self._theirs = tracker, "", kind()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        args.project = os.environ.get("TRACKIO_PROJECT", args.project)  # Trackio itself reads no such setting
        try:
            self._theirs.on_train_begin(args, state, control, **kwargs)
            module = importlib.import_module(self.tracker)
            if self.tracker == "mlflow":
                module.set_tags(trail_tags())
                self.run = module.active_run().info.run_id
            else:
                module.config.update(trail_tags(), allow_val_change=True)
                if self.tracker == "trackio":
                    module.utils.TRACKIO_DIR.mkdir(parents=True, exist_ok=True)  # else it only warns, in a thread
                self.run = module.run.id if self.tracker == "wandb" else module.context_vars.current_run.get().name
        except Exception as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"report_to: {self.tracker} takes no run: {why}; TUNETRAIL_REPORT_TO=none goes without"
            ) from error

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell("on_log", args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell("on_train_end", args, state, control, **kwargs)

    def _tell(self, event: str, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self._theirs is None:
            return
        try:
            getattr(self._theirs, event)(args, state, control, **kwargs)
        except Exception as error:
            self._theirs = None
            print(f"report_to: {self.tracker} failed ({type(error).__name__}); training goes on without it", flush=True)

    def remember(self, folder: Path) -> None:
        """Write down which run made the folder, for `tunetrail trace` on this machine."""
        file = paths.of_checkout(paths.TRACKED_RUNS)
        known = read_json(file) if file.is_file() else {}
        adapter = entry_hash(WorkingTree(Path()).md5s(folder.as_posix()))
        write_json(file, {**known, adapter: {"tracker": self.tracker, "run": self.run}})


def trackers() -> list[TrainerCallback]:
    """The tracker that this machine reports to, if any."""
    return [] if (name := machine_settings().report_to) == "none" else [Tracked(name)]


def trail_tags() -> dict[str, str]:
    """What leads from a tracker's run back here. The release is the last one before, in the form of `git describe`."""
    repository, lock = Repository(Path.cwd()), Path(LOCK)
    return {
        "tunetrail.commit": repository.git("rev-parse", "HEAD", check=False),
        "tunetrail.release": repository.git("describe", "--tags", "--dirty", check=False),
        "tunetrail.dvc_lock_md5": file_digest(lock, "md5") if lock.is_file() else "",
    }


class Samples(TrainerCallback):  # type: ignore[misc]
    """At each validation, the model's answers to the same few prompts, to see it learn; a checkpoint keeps its own."""

    def __init__(self, chat: Chat, records: Sequence[Record]) -> None:
        self._chat, self.records = chat, records
        self.rows: list[dict[str, Any]] = []
        # As long as the longest reference: what an evaluation allows would make training depend on it.
        limit = max((len(chat.completion_ids(record.completion)) for record in records), default=1)
        self._generation = Generation(max_new_tokens=limit)
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext  # in which the model can answer

    def go_on_from(self, checkpoint: Path) -> None:
        self.rows = list(read_rows(checkpoint / _SAMPLES))

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.records or not state.is_world_process_zero:
            return
        with self.around():
            answers = answer_rows(model, self._chat, self.records, self._generation, "samples")
        self.rows += [{"step": state.global_step, **row} for row in answers]

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_rows(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _SAMPLES, self.rows)


class Progress(TrainerCallback):  # type: ignore[misc]
    """A line now and then: step, losses, time left."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first, self._start, self._last = state.global_step, time.monotonic(), 0.0
        self._logged: list[tuple[int, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        now, logs = time.monotonic(), logs or {}
        if "loss" in logs:  # not the summary at the end, before which weights were saved
            self._logged.append((state.global_step, now))
        if "eval_reward" in logs:
            what = f"validation reward {logs['eval_reward']:.4f}"
        elif "eval_loss" in logs:
            what = f"validation loss {logs['eval_loss']:.4f}"
        elif "loss" in logs and now - self._last >= _SECONDS_BETWEEN_LINES:
            what = f"loss {logs['loss']:.4f}"
        else:
            return
        self._last = now
        if state.is_world_process_zero:
            left = (now - self._start) / max(state.global_step - self.first, 1) * (state.max_steps - state.global_step)
            line = f"train: step {state.global_step} of {state.max_steps}, {what}, about {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    def steps_per_second(self) -> float | None:
        """In the second half of the run, past start-up and compilation; None for a run too short to tell."""
        half = self._logged[len(self._logged) // 2 :]
        if len(half) < 2 or half[-1][0] == half[0][0]:
            return None
        return (half[-1][0] - half[0][0]) / (half[-1][1] - half[0][1])


def _broken(logs: Mapping[str, Any]) -> list[str]:
    """The names of what is no number."""
    return [name for name in _CURVES if not math.isfinite(logs.get(name) or 0.0)]


class StopsAtNaN(TrainerCallback):  # type: ignore[misc]
    """Ends a run once its numbers are none, before they reach a checkpoint."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if wrong := _broken(logs or {}):
            raise Refusal(
                f"training stopped at step {state.global_step} of {state.max_steps}: {wrong[0]} is {logs[wrong[0]]}. "
                "Try a lower train.learning_rate, a lower train.alpha or train.precision: float32"
            )


def run_state(stage: str = "train") -> dict[str, str]:
    """All that decides the stage's result, by name: its dependencies and parameters in dvc.yaml, and the libraries.

    dvc.yaml is checked by a test to name every file and every parameter section that the stage reads.
    """
    entry = load_yaml(paths.PIPELINE.read_bytes())["stages"][stage]
    params = read_params()
    return {
        **{dep: digest(dep) for dep in map(filled_in, entry["deps"])},
        **{f"parameter {key}": json.dumps(value_at(params, key), sort_keys=True) for key in entry["params"]},
        **library_versions(),
    }


def run_key(state: Mapping[str, str]) -> str:
    """Hash of `run_state`."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def checkpoint_folder(key: str) -> Path:
    """The folder of this exact run. Of other unfinished runs the latest is kept, which somebody may go back to.

    A machine that trains along has copies of the first one's alone, beside its own.
    """
    if machines.number():
        folder = paths.CHECKPOINTS.with_name("along") / str(machines.number())
        if machines.leads():
            remove(folder)
            folder.mkdir(parents=True)
        return folder
    folder = paths.CHECKPOINTS / key
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted((p for p in paths.CHECKPOINTS.iterdir() if p != folder), key=lambda p: (p.stat().st_mtime_ns, p))
    if others and not devices.rank():
        for other in others[:-1]:
            remove(other)
        gone = f"; {len(others) - 1} older deleted" if len(others) > 1 else ""
        print(f"1 unfinished run with other data, parameters or code in {paths.CHECKPOINTS}: not used{gone}")
    return folder


def newest_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint, the same for all processes; the first one deletes what is not whole.

    Whole is one whose files are as they were written, and those of the best one before it, which the run ends with.
    """
    if not devices.rank():
        found = {path: _is_whole(path) for path in folder.glob("checkpoint-*") if path.is_dir()}
        for path, whole in found.items():
            if not (whole and found.get(_best(path), True)):
                print(f"{path} is damaged or written by half: deleted")
                remove(path)
    PartialState().wait_for_everyone()
    newest: str | None = get_last_checkpoint(str(folder))
    if machines.count() > 1:
        machines.hand_out(folder, {Path(newest).name, _best(Path(newest)).name} if newest else ())
        PartialState().wait_for_everyone()
        newest = get_last_checkpoint(str(folder))
    if newest:
        print(f"going on from {newest}")
    return newest


def _is_whole(checkpoint: Path) -> bool:
    mark = checkpoint.with_name(checkpoint.name + _MARK)
    return mark.is_file() and mark.read_bytes() == tree_digest(checkpoint).encode()


def _best(checkpoint: Path) -> Path:
    """The best checkpoint when this one was written."""
    try:
        best = read_json(checkpoint / "trainer_state.json")["best_model_checkpoint"]
    except (OSError, ValueError, KeyError):
        best = None
    return checkpoint.with_name(Path(best).name) if best else checkpoint


class WholeCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Log the loss with each checkpoint, which keeps no running mean of it, and at the end, however short the run.

    A checkpoint is marked once it is written, with the hash of its files. The best one is known to every process: the
    trainer looks for it on the disk, and a machine that trains along would not load it with the others.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.best_global_step:
            state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{state.best_global_step}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % args.save_steps == 0 or state.global_step == state.max_steps:
            control.should_log = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_train_begin(args, state, control)
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for writer in range(1, devices.count() if machines.count() > 1 else 1):
            machines.bring(checkpoint, f"rng_state_{writer}.pth", writer, devices.rank())
        PartialState().wait_for_everyone()  # each process writes files of its own into it
        if state.is_world_process_zero:
            write_text(checkpoint.with_name(checkpoint.name + _MARK), tree_digest(checkpoint))
