"""Measurements in processes of their own, and the tables that keep their results."""

import atexit
import json
import multiprocessing
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
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


class Lines:
    """The lines of a file of results, and processes that do what is not there yet, in the order that it was begun in.

    `work(*task)` gives what its line has beside the keys that it was begun with. A process does one piece after
    another, so that what it imported serves them all; without `workers`, this process does.
    """

    def __init__(self, file: Path, work: Callable[..., Any], workers: int, seconds: float) -> None:
        self._file, self._work, self._workers = file.absolute(), work, workers
        self._start, self._seconds = time.monotonic(), seconds
        known = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in known]
        self._pool: Any = None
        self._waiting: list[tuple[dict[str, Any], tuple[Any, ...]]] = []
        self._open: dict[Any, dict[str, Any]] = {}

    def find(self, kind: str, **keys: Any) -> list[dict[str, Any]]:
        """The lines without a fault."""
        return [one for one in self.lines if one["kind"] == kind and keys.items() <= one.items() and "error" not in one]

    def begin(self, kind: str, name: str, args: Iterable[Any], **keys: Any) -> None:
        """Have it measured after all that was begun before, unless it is known."""
        line = {"kind": kind, "set": name, **keys}
        known = self.find(kind, set=name, **keys) or line in self._open.values()
        if not known and line not in [waiting for waiting, _ in self._waiting]:
            self._waiting.append((line, (kind, *args)))

    def wait(self, share: float) -> None:
        """Until all is measured, or so much of the time is over: what waits then is forgotten, what runs goes on."""
        end = self._start + self._seconds * share
        while (self._waiting or self._open) and time.monotonic() < end:
            while self._waiting and len(self._open) < max(1, self._workers):
                line, task = self._waiting.pop(0)
                self._open[self._submit(task)] = line
            done, _ = wait(self._open, max(0.0, end - time.monotonic()), FIRST_COMPLETED)
            for future in done:
                self._add(future)
        self._waiting.clear()

    def _submit(self, task: tuple[Any, ...]) -> Any:
        if not self._workers:
            future = Future[Any]()
            future.set_result(self._work(*task))
            return future
        with suppress(AttributeError, BrokenProcessPool):
            return self._pool.submit(self._work, *task)
        self._pool = ProcessPoolExecutor(self._workers, multiprocessing.get_context("spawn"))
        return self._pool.submit(self._work, *task)

    def _add(self, future: Any) -> None:
        try:
            line = {**self._open[future], **future.result()}
        except BrokenProcessPool as error:  # a process was killed: the others of its pool are gone, too
            line = {**self._open[future], "error": str(error)}
        del self._open[future]
        self.lines.append(line)
        with self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        print({key: value for key, value in line.items() if not isinstance(value, (list, dict))}, flush=True)

    def close(self) -> None:
        """End the processes, whatever they do."""
        for future in [future for future in self._open if future.done()]:
            self._add(future)
        if self._pool:
            processes = [*self._pool._processes.values()]
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()


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
