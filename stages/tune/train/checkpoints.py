"""Checkpoints live outside DVC's outputs, one folder for each exact state of inputs, parameters and code."""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from stages.core import paths
from stages.core.files import read_json, remove, tree_digest, write_text
from stages.core.run_notes import library_versions
from stages.core.yaml_reader import load_yaml
from stages.params.loader import read_params
from stages.tune.train import devices

# Written last, beside a checkpoint: the hash of its files. Without it, the process died while saving.
_MARK = ".sha256"


def run_key(stage: str = "train") -> str:
    """Hash of all that decides the stage's result: its dependencies and parameters in dvc.yaml, and the libraries.

    dvc.yaml is checked by a test to name every file and every parameter section that the stage reads.
    """
    entry = load_yaml(paths.PIPELINE.read_bytes())["stages"][stage]
    params = read_params()
    state: dict[str, Any] = {
        "deps": {dep: tree_digest(Path(dep)) for dep in entry["deps"]},
        "params": {key: _value(params, key) for key in entry["params"]},
        "libraries": library_versions(),
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def _value(params: Any, key: str) -> Any:
    """What params.yaml has at a key such as task.instruction; None where it leaves the default."""
    for name in key.split("."):
        params = params.get(name) if isinstance(params, dict) else None
    return params


def checkpoint_folder(key: str) -> Path:
    """The folder of this exact run. Of other unfinished runs the latest is kept, which somebody may go back to."""
    folder = paths.CHECKPOINTS / key
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted((p for p in paths.CHECKPOINTS.iterdir() if p != folder), key=lambda p: (p.stat().st_mtime_ns, p))
    if others and not devices.rank():
        for other in others[:-1]:
            remove(other)
        gone = f"; {len(others) - 1} older deleted" if len(others) > 1 else ""
        print(f"1 unfinished run with other data, parameters or code in {paths.CHECKPOINTS}: not used{gone}")
    return folder


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, the same for all processes; the first one deletes what is not whole.

    Whole is one whose files are as they were written, and those of the best one before it, which the run ends with.
    """
    if not devices.rank():
        found = {path: _is_whole(path) for path in folder.glob("checkpoint-*") if path.is_dir()}
        for path, whole in found.items():
            if not (whole and found.get(_best(path), True)):
                print(f"{path} is damaged or written by half: deleted")
                remove(path)
    devices.wait_for_all()
    numbers = [int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*") if path.is_dir()]
    if not numbers:
        return None
    newest = folder / f"checkpoint-{max(numbers)}"
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

    A checkpoint is marked once it is written, with the hash of its files.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % args.save_steps == 0 or state.global_step == state.max_steps:
            control.should_log = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        devices.wait_for_all()  # each process writes files of its own into it
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_text(checkpoint.with_name(checkpoint.name + _MARK), tree_digest(checkpoint))
