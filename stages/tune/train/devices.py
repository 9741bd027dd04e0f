"""Several devices, one process each: the machine setting `processes` says how many, or torchrun or accelerate starts
them.

How many there are changes speed alone, so it is no parameter: a run goes on after a kill with another number.
"""

import os
import socket
import subprocess
import sys
import time
from typing import Any

from stages.core.errors import UserError
from stages.core.machine import machine_settings


def start_all() -> None:
    """Start the processes that were asked for and end with their exit code; return at once in each of them."""
    if "LOCAL_RANK" in os.environ:
        return
    count = machine_settings().processes
    if count > 1:
        raise SystemExit(_run(count))
    take_one_card()


def take_one_card() -> None:
    """A single process computes on one card, whatever else it could see."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


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
        # Where one has ended well, the others are about to end, too.
        while not any(child.poll() for child in children) and any(child.returncode is None for child in children):
            time.sleep(0.2)
    finally:
        for child in children:  # one that failed leaves the others waiting for it
            child.kill()
            child.wait()
    codes = [child.returncode for child in children]
    return next((code for code in codes if code > 0), max(map(abs, codes)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def join() -> None:
    """Find the other processes, where there are any, and this process's card.

    Raises UserError when the machine has fewer CUDA cards than processes.
    """
    import torch
    from accelerate import PartialState

    on_card = torch.cuda.is_available()
    if on_card and count() > 1 and (card := int(os.environ["LOCAL_RANK"])) >= torch.cuda.device_count():
        cards = torch.cuda.device_count()
        raise UserError(f"process {card + 1} is to train on a card of its own, but there are {cards} here")
    PartialState(cpu=not on_card)


def rank() -> int:
    """The number of this process."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def add_up(tensor: Any) -> Any:
    """The sum of a tensor over all processes, in place."""
    if count() > 1:
        from torch import distributed

        distributed.all_reduce(tensor)
    return tensor
