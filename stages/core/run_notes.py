"""How far a run is, what it took and ran on. It changes from run to run, so it is kept out of every tracked output."""

import importlib.metadata
import platform
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from stages.core import paths
from stages.core.files import write_json

_SECONDS_BETWEEN_LINES = 15.0
# The libraries whose version can change a model or an answer.
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "safetensors")

Item = TypeVar("Item")


def library_versions() -> dict[str, str]:
    """Installed versions, without the local part that names a build (2.13.0+cpu is 2.13.0)."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in LIBRARIES}


def machine_notes() -> dict[str, object]:
    """What kind of machine this is, without its name, and the versions on it."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "libraries": library_versions(),
    }


@contextmanager
def measured(stage: str) -> Iterator[dict[str, object]]:
    """Write seconds, memory, machine and versions to metrics/env/STAGE.json when the block succeeds.

    Yields a dict for what the stage wants to add.
    """
    start = time.perf_counter()
    notes: dict[str, object] = {}
    yield notes
    write_json(
        paths.ENVIRONMENT / f"{stage}.json",
        {
            "seconds": round(time.perf_counter() - start, 2),
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            **machine_notes(),
            **notes,
        },
    )


def track(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield `items` while showing how many of `total` are done and how long the rest should take.

    A bar on a terminal, a plain line now and then elsewhere.
    """
    if not sys.stderr.isatty():
        return _lines(items, total, what)
    import rich.progress

    return iter(rich.progress.track(items, what, total))


def _lines(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last >= _SECONDS_BETWEEN_LINES:
            left = (now - start) / done * (total - done)
            print(f"{what}: {done} of {total}, about {left:.0f} s left", file=sys.stderr, flush=True)
            last = now
        yield item
