"""Checkpoints live outside DVC's outputs, one folder for each exact state of inputs, parameters and code."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from stages.core import paths
from stages.core.files import tree_digest
from stages.core.run_notes import library_versions
from stages.core.yaml_reader import load_yaml
from stages.params.loader import read_params
from stages.tune.train import devices

_COMPLETE = "complete"  # written last into a checkpoint: without it, the process died while saving


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
    """The folder of this exact run; says so when only other runs have left checkpoints."""
    folder = paths.CHECKPOINTS / key
    others = [p for p in paths.CHECKPOINTS.glob("*") if p != folder]
    if others and not folder.exists():
        print(f"{len(others)} unfinished run(s) with other data, parameters or code in {paths.CHECKPOINTS}: not used")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, the same for all processes; the first one deletes what was written by half."""
    if devices.rank():
        devices.wait_for_all()
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / _COMPLETE).is_file():
            whole.append(checkpoint)
        elif not devices.rank():
            shutil.rmtree(checkpoint)
    if not devices.rank():
        devices.wait_for_all()
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    if newest:
        print(f"going on from {newest}")
    return newest


class WholeCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Log the loss with each checkpoint, which keeps no running mean of it, and at the end, however short the run.

    A checkpoint is marked once it is written.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % args.save_steps == 0 or state.global_step == state.max_steps:
            control.should_log = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE).touch()
