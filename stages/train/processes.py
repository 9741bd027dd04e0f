"""Several devices, one process each; TUNETRAIL_PROCESSES says how many, or torchrun and accelerate start them.

How many there are changes speed alone, so it is no parameter: a run goes on after a kill with another number.
"""

import os
import socket
import subprocess
import sys
import time

import torch
from torch import distributed

from stages.errors import UserError

_VARIABLE = "TUNETRAIL_PROCESSES"


def start_all() -> None:
    """Start the processes that were asked for and end with their exit code; return at once in each of them."""
    asked = os.environ.get(_VARIABLE, "1")
    if "LOCAL_RANK" in os.environ or asked == "1":
        return
    if not asked.isdigit() or asked == "0":
        raise UserError(f"{_VARIABLE}={asked} is not allowed; write the number of devices to train on, such as 2")
    cards = torch.cuda.device_count()
    if cards and int(asked) > cards:
        raise UserError(f"{_VARIABLE}={asked}, but this machine has {cards} CUDA card(s)")
    raise SystemExit(_run(int(asked)))


def _run(count: int) -> int:
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "stages.train"],
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


def join() -> None:
    """Find the other processes, where there are any, and this process's card."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def rank() -> int:
    """The number of this process, also before it has joined the others."""
    return distributed.get_rank() if distributed.is_initialized() else int(os.environ.get("RANK", "0"))


def count() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def wait_for_all() -> None:
    if distributed.is_initialized():
        distributed.barrier()


def leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor
