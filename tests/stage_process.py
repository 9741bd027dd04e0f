"""Run one stage in a process of its own that is quick to start, and kill it at a chosen moment.

The processes are forked from a server that has the heavy libraries loaded already.
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stage_modules import module_of

_HEAVY = [
    "torch",
    "transformers",
    "datasets",
    "peft",
    "bitsandbytes",
    "dvclive",
    "scipy.stats",
    "trl.trainer.sft_trainer",
]


def run_stage(repository: Path, stage: str, die: Callable[[], None] | None = None, name: str = "") -> tuple[int, str]:
    """Run `python -m stages.STAGE` in the repository; `die` prepares the death of the process.

    `name` tells apart processes that run at the same time.

    Returns the exit code (negative: the signal that killed it) and what it printed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_HEAVY)
    output = repository / f".stage-output{name}"
    process = context.Process(target=_run, args=(repository, stage, die, output))
    process.start()
    process.join()
    text = output.read_text(encoding="utf-8")
    output.unlink()
    assert process.exitcode is not None
    return process.exitcode, text


def _run(repository: Path, stage: str, die: Callable[[], None] | None, output: Path) -> None:
    os.chdir(repository)
    sys.path.insert(0, str(repository))
    with (
        output.open("w", encoding="utf-8", buffering=1) as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        try:
            if die:
                die()
            runpy.run_module(module_of(stage), run_name="__main__", alter_sys=True)
        except Exception:
            traceback.print_exc()
            raise SystemExit(70) from None


def die_writing(number: int) -> None:
    """Kill the process when it is about to complete its output of this number, with the file half written."""
    replace, calls = Path.replace, [0]

    def half(self: Path, target: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            halves = [self] if self.is_file() else [file for file in self.rglob("*") if file.is_file()]
            for file in halves:
                os.truncate(file, file.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = half  # type: ignore[method-assign]


def die_first() -> None:
    die_writing(1)


def die_second() -> None:
    die_writing(2)


def die_training() -> None:
    """Kill training in its tenth optimiser step, after two checkpoints of four steps each."""
    import transformers

    take, calls = transformers.Trainer.get_batch_samples, [0]

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(self, *args, **kwargs)

    transformers.Trainer.get_batch_samples = counted


def die_saving_a_checkpoint() -> None:
    """Kill training while it writes its second checkpoint: the weights are there, the optimiser is not."""
    import transformers

    save, calls = transformers.Trainer._save_optimizer_and_scheduler, [0]

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return save(self, *args, **kwargs)

    transformers.Trainer._save_optimizer_and_scheduler = counted
