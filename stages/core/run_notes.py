"""How far a run is, what it took and ran on. It changes from run to run, so it is kept out of every tracked output."""

import importlib.metadata
import importlib.util
import logging
import platform
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class Energy:
    """What a block used, in kWh: of processors and cards that tell it themselves; None where none does."""

    kilowatt_hours: float | None = None


@contextmanager
def energy_used() -> Iterator[Energy]:
    """The energy of the block, known after it, by codecarbon where that is installed (extra `energy`).

    Only what the hardware counts is taken, by RAPL of a processor and NVML of a card: without them codecarbon guesses
    from tables, and a guess is no measurement.
    """
    found = Energy()
    if not importlib.util.find_spec("codecarbon"):
        yield found
        return
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.core.cpu import is_rapl_available
    from codecarbon.core.gpu_nvidia import is_nvidia_system

    processor, card = is_rapl_available(), is_nvidia_system()
    if not processor and not card:
        yield found
        return
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it speaks before it reads its own setting
    # The country decides the emissions alone, which are not read.
    tracker = OfflineEmissionsTracker(
        country_iso_code="USA", save_to_file=False, allow_multiple_runs=True, log_level="critical"
    )
    tracker.start()
    try:
        yield found
    finally:
        tracker.stop()
        total = tracker.final_emissions_data
        found.kilowatt_hours = (total.cpu_energy if processor else 0.0) + (total.gpu_energy if card else 0.0)


@contextmanager
def measured(stage: str) -> Iterator[dict[str, object]]:
    """Write seconds, memory, energy, machine and versions to metrics/env/STAGE.json when the block succeeds.

    Yields a dict for what the stage wants to add.
    """
    start = time.perf_counter()
    notes: dict[str, object] = {}
    with energy_used() as energy:
        yield notes
    if energy.kilowatt_hours is not None:
        notes["energy_kwh"] = energy.kilowatt_hours
    write_json(
        paths.ENVIRONMENT / f"{stage}.json",
        {
            "seconds": round(time.perf_counter() - start, 2),
            "peak_memory_mib": peak_bytes() // 2**20,
            **machine_notes(),
            **notes,
        },
    )


def track(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield `items` while showing how many of `total` are done and how long the rest should take at the last pace.

    A bar on a terminal, a plain line now and then elsewhere. What a killed run had finished is there at once.
    """
    if not sys.stderr.isatty():
        return _lines(items, total, what)
    import rich.progress

    return iter(rich.progress.track(items, what, total))


def _lines(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    last, done_then = time.monotonic(), 0
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last >= _SECONDS_BETWEEN_LINES:
            left = (now - last) / (done - done_then) * (total - done)
            print(f"{what}: {done} of {total}, about {left:.0f} s left", file=sys.stderr, flush=True)
            last, done_then = now, done
        yield item
