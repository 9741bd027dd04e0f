"""What a run took and ran on. It changes from run to run, so it is kept out of every tracked output."""

import importlib.metadata
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

from stages.core import paths
from stages.core.files import write_json

# The libraries whose version can change a model or an answer.
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "safetensors")


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
