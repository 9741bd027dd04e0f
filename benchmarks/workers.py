"""Measurements in processes of their own, and the tables that keep their results."""

import atexit
import json
import multiprocessing
import os
import platform
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stages.core.run_notes import library_versions

RESULTS = Path(__file__).parent / "results"


class Workers:
    """Processes that have imported all they need and wait for work; each does one piece and ends."""

    def __init__(self, ahead: int = 3) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._idle = [self._start() for _ in range(ahead)]

    def do(self, seconds: int, function: Callable[..., dict[str, Any]], *args: Any, **options: Any) -> dict[str, Any]:
        """The function's answer, or what became of it."""
        process, pipe = self._idle.pop(0)
        self._idle.append(self._start())
        pipe.send((function, args, options))
        answer = pipe.recv() if pipe.poll(seconds) else {"error": f"nothing within {seconds} s"}
        process.kill()
        process.join()
        return dict(answer)

    def close(self) -> None:
        for process, _ in self._idle:
            process.kill()

    def _start(self) -> tuple[Any, Any]:
        mine, theirs = self._context.Pipe()
        process = self._context.Process(target=work, args=(theirs,))  # a daemon may not start what a stage starts
        process.start()
        atexit.register(process.kill)
        return process, mine


def work(pipe: Any) -> None:
    function, args, options = pipe.recv()
    try:
        pipe.send(function(*args, **options))
    except BaseException as error:
        traceback.print_exc()
        pipe.send({"error": f"{type(error).__name__}: {str(error)[:300]}"})


class Table:
    """Printed line by line, and kept with the machine that it was measured on."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._rows: dict[str, dict[str, Any]] = {}

    def add(self, name: str, answer: dict[str, Any]) -> None:
        self._rows[name] = answer
        print(f"{self._title}: {name}: {json.dumps(answer)}", flush=True)

    def write(self, machine: dict[str, Any]) -> None:
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"{self._title}.json"
        file.write_text(json.dumps({"machine": machine, "rows": self._rows}, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    return {
        "card": torch.cuda.get_device_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "libraries": library_versions(),
    }
