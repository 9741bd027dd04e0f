"""Several devices, one process each: the machine setting `processes` says how many, or torchrun or accelerate starts
them; on several machines (`machines.py`) so many on each.

How many there are changes speed alone, so it is no parameter: a run goes on after a kill with another number.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stages.core.errors import Refusal, UserError
from stages.core.machine import machine_settings
from stages.tune.train import machines

_LOOK_EVERY = 0.2  # seconds


def start_all() -> None:
    """Start the processes that were asked for and end with their exit code; return at once in each of them."""
    if "LOCAL_RANK" in os.environ:
        threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
        return
    if only_waits():
        raise SystemExit(_run(machine_settings().processes, machines.asked_for()))
    take_one_card()


def only_waits() -> bool:
    """Whether this process starts others and has no work of its own. Raises UserError as `start_all` does."""
    return "LOCAL_RANK" not in os.environ and (machine_settings().processes > 1 or bool(machines.asked_for()))


def _end_with(parent: int) -> None:
    """A process whose parent was killed would train on, and write beside the next run of the same command."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(Refusal.exit_code)


def take_one_card() -> None:
    """A single process computes on one card, whatever else it could see."""
    if "LOCAL_RANK" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


def _run(count: int, others: Mapping[str, str]) -> int:
    first = int(others.get("GROUP_RANK", "0")) * count
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GROUP_RANK": "0"}
    environment |= {"LOCAL_WORLD_SIZE": str(count), "WORLD_SIZE": str(count * int(others.get("GROUP_WORLD_SIZE", "1")))}
    environment |= others
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "stages.tune.train"],
            env=environment | {"RANK": str(first + local), "LOCAL_RANK": str(local)},
            stdout=None if first + local == 0 else subprocess.DEVNULL,
        )
        for local in range(count)
    ]
    try:
        # Where one has ended well, the others are about to end, too.
        while not any(child.poll() for child in children) and any(child.returncode is None for child in children):
            time.sleep(_LOOK_EVERY)
        for child in children:
            if (child.returncode or 0) < 0:
                name = signal.Signals(-child.returncode).name
                said = (
                    f"{name} ended a process of the training; run the same command again to go on from its checkpoint"
                )
                print(f"error: {said}", file=sys.stderr)
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


def join(alike: Mapping[str, str]) -> None:
    """Find the other processes, where there are any, and this process's card.

    `alike` has what must be equal on all machines, by its name.

    Raises UserError when the machine has fewer CUDA cards than processes, or for what `machines.meet` does.
    """
    import torch
    from accelerate import PartialState

    on_card = torch.cuda.is_available()
    if on_card and count() > 1 and (card := int(os.environ["LOCAL_RANK"])) >= torch.cuda.device_count():
        cards = torch.cuda.device_count()
        raise UserError(f"process {card + 1} is to train on a card of its own, but there are {cards} here")
    if machines.count() > 1:
        machines.meet("nccl" if on_card else "gloo", alike)
    PartialState(cpu=not on_card)


def plans_by() -> dict[str, str]:
    """What decides how this machine computes, by name: machines that plan otherwise would wait for each other."""
    import torch

    from stages.model.loading import compute_dtype

    speed = ("packing", "attention", "checkpointing", "compile", "micro_batch_tokens", "sharding")
    return {
        "devices": f"{os.environ.get('LOCAL_WORLD_SIZE', '1')} {'cards' if torch.cuda.is_available() else 'processes'}",
        "precision": str(compute_dtype()).removeprefix("torch."),
        **{
            f"machine setting {name}": str(value)
            for name, value in machine_settings().model_dump(include={*speed}).items()
        },
    }


@contextmanager
def together() -> Iterator[None]:
    """Work with the other processes; ends in a Refusal when one of them is gone."""
    from torch import distributed

    try:
        yield
    except RuntimeError as error:
        if count() > 1 and (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise Refusal(f"{machines.GONE} ({str(error).splitlines()[0]})") from error
        raise


def rank() -> int:
    """The number of this process among all."""
    return int(os.environ["RANK"]) if "LOCAL_RANK" in os.environ else 0


def count() -> int:
    """Of processes, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1


def add_up(tensor: Any) -> Any:
    """The sum of a tensor over all processes, in place."""
    if count() > 1:
        from torch import distributed

        distributed.all_reduce(tensor)
    return tensor


def least(value: int | None) -> int | None:
    """The least value of all processes, which must plan alike; None where there are none."""
    if value is None or count() == 1:
        return value
    import torch
    from accelerate import PartialState
    from torch import distributed

    tensor = torch.tensor(value, device=PartialState().device)
    distributed.all_reduce(tensor, distributed.ReduceOp.MIN)
    return int(tensor)
