"""Several devices, one process each; TUNETRAIL_PROCESSES says how many, or torchrun and accelerate start them.

How many there are changes speed alone, so it is no parameter: a run goes on after a kill with another number.
"""

import os
import socket
import subprocess
import sys
import time

from stages.core.errors import UserError

_VARIABLE = "TUNETRAIL_PROCESSES"


def start_all() -> None:
    """Start the processes that were asked for and end with their exit code; return at once in each of them."""
    asked = os.environ.get(_VARIABLE, "1")
    if "LOCAL_RANK" in os.environ or asked == "1":
        return
    if not asked.isdigit() or asked == "0":
        raise UserError(f"{_VARIABLE}={asked} is not allowed; write the number of devices to train on, such as 2")
    raise SystemExit(_run(int(asked)))


def _run(count: int) -> int:
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "stages.tune.train"],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)},
            stdout=None if rank == 0 else subprocess.DEVNULL,
        )
        for rank in range(count)
    ]
    try:
        while all(child.poll() is None for child in children):
            time.sleep(0.2)
        if not any(child.returncode for child in children):  # the others are about to end, too
            for child in children:
                child.wait()
    finally:
        for child in children:  # one that failed leaves the others waiting for it
            child.kill()
            child.wait()
    failed = [child.returncode for child in children if child.returncode > 0]
    return failed[0] if failed else max(abs(child.returncode) for child in children)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
