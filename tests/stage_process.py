"""Run one stage in a process of its own that is quick to start, and kill it at a chosen moment."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from stage_modules import module_of
from stage_server import programs


def run_stage(repository: Path, stage: str, die: Callable[[], None] | None = None, name: str = "") -> tuple[int, str]:
    """Run `python -m stages.STAGE` in the repository; `die` is called in the process before, and prepares its death.

    `name` tells apart processes that run at the same time.

    Returns the exit code (negative: the signal that killed it) and what it printed.
    """
    environment, file = {**os.environ, "PYTHONPATH": ""}, repository / f".prepared-by{name}"
    if die:
        file.write_bytes(ForkingPickler.dumps((sys.path, bytes(ForkingPickler.dumps(die)))))
        environment["STAGE_PREPARED_BY"] = str(file)
    words = [str(programs() / "python"), "-m", module_of(stage)]
    streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    done = subprocess.run(words, cwd=repository, env=environment, check=False, **streams)
    file.unlink(missing_ok=True)
    return done.returncode, done.stdout


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
